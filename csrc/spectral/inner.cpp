#include "spectral/inner.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

template <typename T>
void inner_as(const InnerArgs& args) {
  using C = compute_t<T>;
  static_assert(kSumBlock == kBlock);
  sum_spans<1, double>(args.rows, args.count, args.spans,
                       [&](const InnerRow& row, int64_t e, int64_t n, double (&v)[1][kSumBlock]) {
                         C x[kBlock], y[kBlock];
                         load_elements(static_cast<const T*>(row.x) + e, n, x);
                         load_elements(static_cast<const T*>(row.y) + e, n, y);
#pragma omp simd
                         for (int i = 0; i < kBlock; ++i)
                           v[0][i] = static_cast<double>(x[i]) * static_cast<double>(y[i]);
                       });
  for (int64_t i = 0; i < args.count; ++i) {
    const InnerRow& row = args.rows[i];
    args.out[i] = total_of_spans(args.spans, row.span, row.span + span_count(row.numel), 1);
  }
}

}  // namespace

void inner(const InnerArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { inner_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
