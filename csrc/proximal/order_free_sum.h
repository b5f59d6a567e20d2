#pragma once

#include <cstdint>

#include "core/math.h"

// Sums that are the same in any order: of integers. A number is cut off at a fixed place below the
// largest one of its slice, so a row may be compacted, cut among threads or read in vectors as each
// machine likes it, and its threshold has the same bits.

namespace regkern::proximal {

// Numbers in [-1, 1], cut off at 2⁻⁶²; 2³² of them fit.
struct WideSum {
  int64_t high = 0, low = 0;

  REGKERN_HD void add(double value) {
    constexpr double kStep = 2147483648.0;  // 2³¹
    const double scaled = value * kStep;
    const int64_t whole = static_cast<int64_t>(scaled);
    high += whole;
    low += static_cast<int64_t>((scaled - static_cast<double>(whole)) * kStep);
  }
  REGKERN_HD double value() const {
    constexpr double kStep = 1.0 / 2147483648.0;
    return (static_cast<double>(high) + static_cast<double>(low) * kStep) * kStep;
  }
};

// Floats in [-1, 1] times 2²⁸, cut off: four of them add up in 32 bits. Their error, 2⁻²⁸ of the
// largest, is far below a float's own rounding.
constexpr int kNarrowBits = 28;
REGKERN_HD int32_t narrow_term(float value, float scale) {
  return static_cast<int32_t>(value * scale);
}

// 2⁻ᵉ with m · 2⁻ᵉ in [½, 1) for normal m; of zero and of tiny m the largest that there is.
REGKERN_HD double inverse_power(double m) {
  const int64_t biased = bit_cast<int64_t>(m) >> 52 & 0x7FF;
  const int64_t inverse = 2045 - biased;  // (1023 - (biased - 1022)), biased again
  if (inverse >= 2046) return bit_cast<double>(int64_t{2046} << 52);
  if (inverse >= 1) return bit_cast<double>(inverse << 52);
  return bit_cast<double>(int64_t{1} << (51 + inverse));  // subnormal, still a power of two
}

// Whether inverse_power(m) · 2²⁸ is a float.
REGKERN_HD bool narrow_sum_holds(float m) { return m > 1.0e-29f; }

}  // namespace regkern::proximal
