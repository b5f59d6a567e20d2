#include "spectral/inner.h"

#include "core/math.h"
#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

template <typename T>
double segment_product(const T* x, const T* y, int n) {
  using C = compute_t<T>;
  const C sum = segment_sum<C>(n, [=](int i) { return widen(x[i]) * widen(y[i]); });
  if (square_sum_holds(fabs(sum))) return static_cast<double>(sum);
  return segment_sum<double>(n, [=](int i) {
    return static_cast<double>(widen(x[i])) * static_cast<double>(widen(y[i]));
  });
}

template <typename T>
void inner_as(const InnerArgs& args) {
  if (args.count == 0) return;
  const InnerRow& last = args.rows[args.count - 1];
  parallel_for(last.segment + segment_count(last.numel), 1, [&](int64_t begin, int64_t end) {
    int64_t r = 0;
    for (int64_t s = begin; s < end; ++s) {
      while (s >= args.rows[r].segment + segment_count(args.rows[r].numel)) ++r;
      const InnerRow& row = args.rows[r];
      const int64_t at = (s - row.segment) * kSegment, left = row.numel - at;
      args.segments[s] =
          segment_product(static_cast<const T*>(row.x) + at, static_cast<const T*>(row.y) + at,
                          static_cast<int>(left < kSegment ? left : kSegment));
    }
  });
  for (int64_t i = 0; i < args.count; ++i) {
    const InnerRow& row = args.rows[i];
    args.out[i] =
        total_of_spans(args.segments, row.segment, row.segment + segment_count(row.numel), 1);
  }
}

}  // namespace

void inner(const InnerArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { inner_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
