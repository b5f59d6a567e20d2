#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"
#include "core/random_bits.h"
#include "masks/mask_apply.h"

// y_k = x ⊙ M_k · s for `copies` masks of one x, and its adjoint dx = Σ_k g_k ⊙ M_k · s, which is
// the same for one mask. A mask is never stored: element e of copy k is kept where a number of 48
// random bits, of element k · padded(numel) + e, is not below its probability p.
//
// The product is a product: a NaN stays NaN under a zero of the mask.

namespace regkern::masks {

// p in units of 2⁻¹⁶ and of 2⁻⁴⁸. 16 bits decide but for one element in 65536, so no element takes
// more of the generator than 16 bits.
struct DropLevel {
  uint32_t upper;  // 0 … 65536
  uint32_t lower;
};

// Nothing is dropped by what is not in [0, 1]: kept_scale makes it all NaN.
REGKERN_HD DropLevel drop_level(double p) {
  const double units = p > 0.0 && p <= 1.0 ? p * 65536.0 : 0.0;
  const auto upper = static_cast<uint32_t>(units);
  return {upper, static_cast<uint32_t>((units - static_cast<double>(upper)) * 4294967296.0)};
}

// Where the first 16 bits are those of p.
REGKERN_HD bool keeps_tie(Seed seed, uint64_t element, DropLevel level) {
  return level.lower == 0 || philox(seed, Stream::choice, element).w[0] >= level.lower;
}

REGKERN_HD bool keeps(Seed seed, uint64_t element, uint32_t bits, DropLevel level) {
  return bits > level.upper || (bits == level.upper && keeps_tie(seed, element, level));
}

// The factor of what is kept. For p = 1 nothing is; a p outside of [0, 1] makes all NaN.
template <typename P>
REGKERN_HD P kept_scale(P p, bool scaled) {
  const P inverse = scaled && p < P(1) ? P(1) / (P(1) - p) : P(1);
  return p >= P(0) && p <= P(1) ? inverse : static_cast<P>(__builtin_nanf(""));
}

// Masks follow one another at whole blocks of the generator.
constexpr int64_t kDropoutBlock = 128;
REGKERN_HD int64_t padded_mask(int64_t numel) {
  return (numel + kDropoutBlock - 1) / kDropoutBlock * kDropoutBlock;
}

struct DropoutArgs {
  Dtype dtype;
  const void* x;  // (numel), or g (copies, numel) if `sums`
  void* y;        // (copies, numel), or (numel); may be x with one copy
  int64_t numel, copies;
  bool sums;
  const int64_t* seed;
  double p;
  const double* p_at;   // null, or where p stands instead
  const float* p_each;  // null, or the probabilities, of which element e has number mask_bit(e)
  MaskIndex p_index;
  bool scaled;
};

// Packed bits of a mask of `numel` elements, 1 for kept, and the factors of what is kept: one, or
// one for each probability.
struct DropoutBitsArgs {
  int64_t numel;
  const int64_t* seed;
  double p;
  const double* p_at;
  const float* p_each;  // null, or (numel)
  bool scaled;
  uint32_t* bits;  // (bit_words(numel))
  double* scale;   // (1) or (numel)
};

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(dropout, masks::DropoutArgs)
REGKERN_DECLARE_KERNEL(dropout_bits, masks::DropoutBitsArgs)
}  // namespace regkern
