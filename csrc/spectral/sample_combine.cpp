#include "spectral/sample_combine.h"

#include "core/parallel.h"
#include "spectral/sample_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

constexpr int64_t kGrain = 64;  // pieces of a task

template <typename T>
void combine_as(const SampleCombineArgs& args) {
  using C = compute_t<T>;
  const Samples& s = args.samples;
  const int64_t pieces = piece_count(s.size);
  parallel_for(s.count * pieces, kGrain, [&](int64_t begin, int64_t end) {
    PieceBuffer<T> as, bs;
    alignas(64) C y[kPiece];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t sample = item / pieces, first = item % pieces * kPiece;
      const int n = piece_length(sample_length(s, sample), first);
      const int whole = piece_length(s.size, first);
      const int64_t at = sample * s.size + first;
      const C* a = as.read(static_cast<const T*>(args.a) + at, n);
      const C* b = bs.read(static_cast<const T*>(args.b) + at, n);
      const C p = static_cast<const C*>(args.p)[sample], q = static_cast<const C*>(args.q)[sample];
      C* out = y;
      if constexpr (sizeof(T) == sizeof(C)) out = static_cast<C*>(args.y) + at;
#pragma omp simd
      for (int i = 0; i < n; ++i) out[i] = p * a[i] + q * b[i];
      for (int i = n; i < whole; ++i) out[i] = C(0);
      if constexpr (sizeof(T) != sizeof(C)) store_elements(y, whole, static_cast<T*>(args.y) + at);
    }
  });
}

}  // namespace

void sample_combine(const SampleCombineArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { combine_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
