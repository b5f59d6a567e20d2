#include "spectral/normalize_samples.h"

#include "core/parallel.h"
#include "spectral/sample_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

constexpr int64_t kGrain = int64_t{1} << 15;  // elements of a task

template <typename T>
void normalize_as(const NormalizeSamplesArgs& args) {
  using C = compute_t<T>;
  const Samples& s = args.samples;
  parallel_for(s.count, 1 + kGrain / (s.size + 1), [&](int64_t begin, int64_t end) {
    PieceBuffer<T> buffer;
    alignas(64) C scaled[kPiece];
    for (int64_t sample = begin; sample < end; ++sample) {
      const T* x = static_cast<const T*>(args.x) + sample * s.size;
      T* y = static_cast<T*>(args.y) + sample * s.size;
      const int64_t length = sample_length(s, sample);
      double squares = 0.0;
      for (int64_t first = 0; first < length; first += kPiece) {
        const int n = piece_length(length, first);
        const C* a = buffer.read(x + first, n);
        squares += piece_sum(n, [=](int i) { return product(a[i], a[i]); });
      }
      const double norm = regkern::sqrt(squares);
      static_cast<C*>(args.norm)[sample] = static_cast<C>(norm);
      const double factor = normalizing_factor(
          norm, static_cast<double>(static_cast<const C*>(args.scale)[sample * args.scale_stride]));
      for (int64_t first = 0; first < s.size; first += kPiece) {
        const int n = piece_length(length, first), whole = piece_length(s.size, first);
        const C* a = buffer.read(x + first, n);
        C* out = scaled;
        if constexpr (sizeof(T) == sizeof(C)) out = y + first;
#pragma omp simd
        for (int i = 0; i < n; ++i) out[i] = normalized(a[i], factor);
        for (int i = n; i < whole; ++i) out[i] = C(0);
        if constexpr (sizeof(T) != sizeof(C)) store_elements(scaled, whole, y + first);
      }
    }
  });
}

}  // namespace

void normalize_samples(const NormalizeSamplesArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { normalize_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
