#include "spectral/sample_sums.h"

#include "core/parallel.h"
#include "spectral/sample_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

constexpr int64_t kGrain = 64;  // pieces of a task

template <typename T>
void sums_as(const SampleSumsArgs& args) {
  using C = compute_t<T>;
  const Samples& s = args.samples;
  const int64_t pieces = piece_count(s.size), items = s.count * pieces;
  parallel_for(items, kGrain, [&](int64_t begin, int64_t end) {
    PieceBuffer<T> as, bs;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t sample = item / pieces, first = item % pieces * kPiece;
      const int n = piece_length(sample_length(s, sample), first);
      const int64_t at = sample * s.size + first;
      const C* a = as.read(static_cast<const T*>(args.a) + at, n);
      double* out = args.partial + item;
      if (args.kind == SampleSum::squares) {
        out[0] = piece_sum(n, [=](int i) { return product(a[i], a[i]); });
        continue;
      }
      const C* b = bs.read(static_cast<const T*>(args.b) + at, n);
      if (args.kind == SampleSum::difference) {
        out[0] = piece_sum(n, [=](int i) {
          const C d = a[i] - b[i];
          return product(d, d);
        });
        continue;
      }
      out[0] = piece_sum(n, [=](int i) { return product(a[i], a[i]); });
      out[items] = piece_sum(n, [=](int i) { return product(a[i], b[i]); });
      out[2 * items] = piece_sum(n, [=](int i) { return product(b[i], b[i]); });
    }
  });
  if (args.out == nullptr) return;
  C* out = static_cast<C*>(args.out);
  for (int k = 0; k < sum_count(args.kind); ++k)
    for (int64_t i = 0; i < s.count; ++i)
      out[k * s.count + i] = static_cast<C>(sample_total(args.partial, s, k, i));
}

}  // namespace

void sample_sums(const SampleSumsArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { sums_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
