#pragma once

#include "core/isa.h"
#include "spectral/sample_pieces.h"

// Sums over the elements of every sample, in double (differences are taken in the compute type):
//
//     squares      Σ a²
//     difference   Σ (a − b)²
//     products     Σ a²,  Σ a b,  Σ b²

namespace regkern::spectral {

enum class SampleSum { squares, difference, products };

REGKERN_HD int sum_count(SampleSum kind) { return kind == SampleSum::products ? 3 : 1; }

struct SampleSumsArgs {
  Dtype dtype;
  SampleSum kind;
  Samples samples;
  const void* a;
  const void* b;
  double* partial;  // (sums, samples, pieces)
  void* out;        // (sums, samples) of the compute type, or null
};

inline int64_t partial_count(SampleSum kind, const Samples& s) {
  return sum_count(kind) * s.count * piece_count(s.size);
}

// Sum k of a sample from its pieces.
REGKERN_HD double sample_total(const double* partial, const Samples& s, int k, int64_t sample) {
  const int64_t pieces = piece_count(s.size);
  double total = 0.0;
  for (int64_t p = 0; p < pieces; ++p) total += partial[(k * s.count + sample) * pieces + p];
  return total;
}

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(sample_sums, spectral::SampleSumsArgs)
}
