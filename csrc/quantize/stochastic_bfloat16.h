#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"

// Stochastic rounding to bfloat16 and float16, with 16 random bits U an element. Of the two
// neighbours of x in the format, the one away from zero is taken iff
//
//     f > (U + ½) / 2¹⁶,    f = (|x| − lower) / (upper − lower),
//
// so P(away) is f rounded to 16 bits: the mean is x, exactly so for a float32 on its way to
// bfloat16. What the format holds never moves, a NaN stays NaN (quiet, sign kept), infinities stay,
// and a finite number never becomes infinite: beyond the largest finite one it is that.

namespace regkern::quantize {

// The functions below return the bits of the result in the format that their first argument names.

// A bfloat16 is the upper half of a float: f is its lower half, and a carry out of it is the step
// to the next neighbour, in a mantissa, into an exponent, or out of the subnormals.
REGKERN_HD uint32_t stochastic_bits(bfloat16, float x, uint32_t bits) {
  // Signed numbers, which vectors compare more cheaply.
  const auto u = static_cast<int32_t>(bit_cast<uint32_t>(x));
  const int32_t magnitude = u & 0x7FFFFFFF;
  const auto moved = static_cast<int32_t>(static_cast<uint32_t>(magnitude) + (0xFFFFu - bits));
  // The largest finite bfloat16 is 0x7F7F.
  const int32_t finite = moved < 0x7F7FFFFF ? moved : 0x7F7FFFFF;
  const int32_t special = magnitude | (magnitude > 0x7F800000 ? 0x00400000 : 0);
  const int32_t result = magnitude < 0x7F800000 ? finite : special;
  return static_cast<uint32_t>(result | (u & ~0x7FFFFFFF)) >> 16;
}

// The same for a float16, in fixed point with 16 bits of fraction.
REGKERN_HD uint32_t stochastic_bits(float16, float x, uint32_t bits) {
  const auto u = static_cast<int32_t>(bit_cast<uint32_t>(x));
  const int32_t magnitude = u & 0x7FFFFFFF;
  // Normal halves: re-biased; the 13 bits beyond the mantissa are the upper ones of f. What is
  // larger than all halves is capped here and saturates below.
  const int32_t above = magnitude > 0x38000000 ? magnitude : 0x38000000;
  const int32_t normal = ((above < 0x47800000 ? above : 0x47800000) - 0x38000000) * 8;
  // Subnormal halves: units of 2⁻²⁴, so f ends at 2⁻⁴⁰. Below that, more than half a unit is one.
  const int32_t below = magnitude < 0x38800000 ? magnitude : 0x38800000;
  const float scaled = bit_cast<float>(below) * 1099511627776.0f;
  const auto whole = static_cast<int32_t>(scaled);
  const int32_t subnormal = whole + (scaled - static_cast<float>(whole) > 0.5f ? 1 : 0);
  // The right one is the larger: they meet at 2⁻¹⁴, and below it the re-biased number is less.
  const int32_t fixed = subnormal > normal ? subnormal : normal;
  const int32_t moved = (fixed + static_cast<int32_t>(0xFFFFu - bits)) >> 16;
  const int32_t finite = moved < 0x7BFF ? moved : 0x7BFF;  // 65504
  // Masks, not selections: gcc follows those from one comparison to the next and finds branches.
  const int32_t special = 0x7C00 | (-static_cast<int32_t>(magnitude > 0x7F800000) & 0x0200);
  const int32_t is_finite = -static_cast<int32_t>(magnitude < 0x7F800000);
  const int32_t result = (finite & is_finite) | (special & ~is_finite);
  return static_cast<uint32_t>(result) | (static_cast<uint32_t>(u) >> 16 & 0x8000u);
}

// From double: fixed point in units of the neighbours' distance. kMantissa stored bits, exponents
// of normal numbers from kLowest up, kLargest the bits of the largest finite number.
template <int kMantissa, int kLowest, uint32_t kLargest>
REGKERN_HD uint32_t stochastic_fixed_point(double x, uint32_t bits) {
  constexpr uint32_t kInfinity = kLargest + 1u;
  const uint64_t u = bit_cast<uint64_t>(x);
  const auto sign = static_cast<uint32_t>(u >> 48) & 0x8000u;
  const uint64_t magnitude = u & 0x7FFFFFFFFFFFFFFFull;
  if (magnitude > 0x7FF0000000000000ull) return sign | kInfinity | 1u << (kMantissa - 1);
  if (magnitude == 0x7FF0000000000000ull) return sign | kInfinity;
  const int exponent = static_cast<int>(magnitude >> 52) - 1023;
  const int e = exponent > kLowest ? exponent : kLowest;
  // An exponent beyond the format's.
  if (e - kLowest + 1 >= static_cast<int>(kInfinity >> kMantissa)) return sign | kLargest;
  const double scaled = bit_cast<double>(magnitude) *
                        bit_cast<double>(static_cast<uint64_t>(1023 + kMantissa + 16 - e) << 52);
  const auto whole = static_cast<uint32_t>(scaled);
  const uint32_t fixed = whole + (scaled - static_cast<double>(whole) > 0.5 ? 1u : 0u);
  // Mantissa and exponent lie side by side: a subnormal that becomes normal, and a mantissa that
  // overflows, come out right.
  const uint32_t steps = (fixed + (0xFFFFu - bits)) >> 16;
  const uint32_t moved = steps + (static_cast<uint32_t>(e - kLowest) << kMantissa);
  return sign | (moved < kLargest ? moved : kLargest);
}

REGKERN_HD uint32_t stochastic_bits(bfloat16, double x, uint32_t bits) {
  return stochastic_fixed_point<7, -126, 0x7F7Fu>(x, bits);
}
REGKERN_HD uint32_t stochastic_bits(float16, double x, uint32_t bits) {
  return stochastic_fixed_point<10, -14, 0x7BFFu>(x, bits);
}

REGKERN_HD bfloat16 stochastic_bfloat16(float x, uint32_t bits) {
  return {static_cast<uint16_t>(stochastic_bits(bfloat16{}, x, bits))};
}

// A float32 is what the kernels compute in and stays as it is.
REGKERN_HD void narrow_stochastic(float x, uint32_t, float* out) { *out = x; }
template <typename T, typename C>
REGKERN_HD void narrow_stochastic(C x, uint32_t bits, T* out) {
  out->bits = static_cast<uint16_t>(stochastic_bits(T{}, x, bits));
}

}  // namespace regkern::quantize
