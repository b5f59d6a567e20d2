#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/noise.h"
#include "masks/mask_apply.h"

// Noise that is drawn again instead of stored. With n, m independent of each other, standard normal
// or uniform in (−1, 1), and coefficients that belong to groups of elements,
//
//     y = x (c + p n) + (d + q n + r m)
//
// Additive noise is q, multiplicative p; the perturbed sample of a diffusion is c, q and r, and a
// jitter by the statistics of features p, d and r. A coefficient that is not given is 0, c is 1.
//
// Element e has n of number e and m of number padded(numel) + e.

namespace regkern::masks {

constexpr int64_t kNoiseBlock = kNormalChunk;
REGKERN_HD int64_t padded_noise(int64_t numel) {
  return (numel + kNoiseBlock - 1) / kNoiseBlock * kNoiseBlock;
}

enum Coefficient : int { kFactor, kFactorNoise, kShift, kShiftNoise, kShiftMore, kCoefficients };

struct NoiseInjectArgs {
  Dtype dtype;
  const void* x;
  void* y;      // may be x
  void* noise;  // null, or where n goes
  int64_t numel;
  const int64_t* seed;
  bool normal;
  const void* coefficients[kCoefficients];  // null, or (groups) in the compute type
  MaskIndex index;                          // the group of an element
};

template <typename C>
REGKERN_HD C noisy(C x, C c, C p, C d, C q, C r, C n, C m) {
  return x * (c + p * n) + (d + q * n + r * m);
}

// y = x + ε n, x + ε m and (1 − α) of the first with α of the second, one after the other; α is
// uniform in (0, 1), a number for each sample.
struct NoiseTripletArgs {
  Dtype dtype;
  const void* x;  // (batch, size)
  void* y;        // (3, batch, size)
  int64_t batch, size;
  const int64_t* seed;
  double eps;
  double* alpha;  // (batch)
};

REGKERN_HD double triplet_weight(Seed seed, int64_t sample) {
  Draws draws(seed, Stream::weight, static_cast<uint64_t>(sample));
  return draws.uniform();
}

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(noise_inject, masks::NoiseInjectArgs)
REGKERN_DECLARE_KERNEL(noise_triplet, masks::NoiseTripletArgs)
}  // namespace regkern
