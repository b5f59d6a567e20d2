#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/math.h"

// The one definition of rounding. A grid is a set of numbers; rounding takes t to a neighbour on
// it:
//
//     a = |t|, q = distance of the grid's points around a, n = floor(a / q)
//     result = sign(t) q (n + up),  up = [a/q - n > threshold]
//
// with the threshold just below ½ for ties away from zero, (U + ½) 2⁻ᵏ for stochastic rounding (U
// the element's k random bits: the probability of going up is the fraction, rounded to k bits), 2
// toward zero, and the nearest even n for ties to even. What stands on the grid has fraction 0 and
// never moves. All steps are exact: q is a power of two.

namespace regkern::quantize {

enum class Rounding : int { nearest_even, nearest_away, toward_zero, floor, stochastic, noise };

REGKERN_HD constexpr bool is_random(Rounding rounding) {
  return rounding == Rounding::stochastic || rounding == Rounding::noise;
}

enum class Kind : int {
  floating,  // sign, exponent, mantissa
  cut,       // float32 with fewer mantissa bits: bfloat16, TF32, any e8mY
  integer    // the integers low … high
};

struct Grid {
  Kind kind;
  int exponent_bits, mantissa_bits, bias;
  double max;          // the largest finite value, of a floating grid
  double low, high;    // of integers
  bool infinity;       // has infinities
  bool nan;            // has a NaN
  bool negative_zero;  // has -0
};

// What scales of NVFP4 are numbers of.
REGKERN_HD constexpr Grid e4m3_grid() {
  return {Kind::floating, 4, 3, 7, 448.0, 0, 0, false, true, true};
}

struct Rounder {
  Grid grid;
  Rounding rounding;
  int random_bits;  // 8, 16 or 23
  bool saturate;    // what is too large becomes the largest, instead of infinity or NaN
};

template <typename C>
struct Layout;
template <>
struct Layout<float> {
  using bits = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr uint32_t kMagnitude = 0x7FFFFFFFu, kExponent = 0x7F800000u, kQuiet = 0x400000u;
  static constexpr float kInteger = 8388608.0f;  // from here on every number is an integer
};
template <>
struct Layout<double> {
  using bits = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr uint64_t kMagnitude = 0x7FFFFFFFFFFFFFFFull, kExponent = 0x7FF0000000000000ull,
                            kQuiet = 0x8000000000000ull;
  static constexpr double kInteger = 4503599627370496.0;
};

// For a >= 0. The adder rounds: past kInteger a float has no fraction. NaN stays.
template <typename C>
REGKERN_HD C nearest_integer(C a) {
  return a < Layout<C>::kInteger ? (a + Layout<C>::kInteger) - Layout<C>::kInteger : a;
}
template <typename C>
REGKERN_HD C floor_integer(C a) {
#if defined(__CUDA_ARCH__)
  return floor(a);
#elif defined(__SSE4_1__)
  if constexpr (sizeof(C) == 4)
    return __builtin_floorf(a);
  else
    return __builtin_floor(a);
#else
  const C nearest = nearest_integer(a);
  return nearest > a ? nearest - C(1) : nearest;
#endif
}

// The threshold of an element with the random bits U: 8, 16 or (of a 32-bit word) the upper 23.
template <typename C>
REGKERN_HD C stochastic_threshold(uint32_t bits, int random_bits) {
  const auto u = static_cast<C>(static_cast<int32_t>(random_bits == 23 ? bits >> 9 : bits));
  const C unit = random_bits == 8    ? C(1) / C(256)
                 : random_bits == 16 ? C(1) / C(65536)
                                     : C(1) / C(8388608);
  return (u + C(0.5)) * unit;
}
// Of the modes without randomness.
template <typename C>
REGKERN_HD C fixed_threshold(Rounding rounding) {
  // Between this and ½ there is no number.
  const C below_half = bit_cast<C>(bit_cast<typename Layout<C>::bits>(C(0.5)) - 1u);
  return rounding == Rounding::nearest_away ? below_half : C(2);
}

// a >= 0 to an integer. `negative` is the sign of what a is the magnitude of.
template <typename C>
REGKERN_HD C round_unit(C a, bool negative, Rounding rounding, C threshold) {
  if (rounding == Rounding::nearest_even) return nearest_integer(a);
  const C below = floor_integer(a);
  if (rounding == Rounding::floor) return negative && a > below ? below + C(1) : below;
  return a - below > threshold ? below + C(1) : below;
}

template <typename C>
REGKERN_HD bool is_negative(C x) {
  using L = Layout<C>;
  return (bit_cast<typename L::bits>(x) & ~L::kMagnitude) != 0;
}
// |magnitude| with the sign of x.
template <typename C>
REGKERN_HD C with_sign(C magnitude, C x) {
  using L = Layout<C>;
  return bit_cast<C>((bit_cast<typename L::bits>(magnitude) & L::kMagnitude) |
                     (bit_cast<typename L::bits>(x) & ~L::kMagnitude));
}

// x on a floating grid. In float the exponent has 7 bits at most: then every power of two below is
// a normal number.
template <typename C>
REGKERN_HD C round_floating(C x, const Grid& g, Rounding rounding, bool saturate, C threshold) {
  using L = Layout<C>;
  using B = typename L::bits;
  const C max = static_cast<C>(g.max), clip = C(2) * max;
  const C a = with_sign(x, C(1));
  const bool negative = is_negative(x);
  // A NaN is not clipped: it goes through the arithmetic and stays one.
  const C clipped = a > clip ? clip : a;
  // q = 2^(E - m) with E the exponent of x, at least the smallest of the grid: below it lie its
  // subnormals, equally spaced.
  const B smallest = static_cast<B>(L::kBias + 1 - g.bias) << L::kMantissa;
  const B own = bit_cast<B>(clipped) & L::kExponent;
  const B exponent = own > smallest ? own : smallest;
  const B places = static_cast<B>(g.mantissa_bits) << L::kMantissa;
  const C inverse = bit_cast<C>((static_cast<B>(2 * L::kBias) << L::kMantissa) + places - exponent);
  const C quantum = bit_cast<C>(exponent - places);
  const C rounded = round_unit(clipped * inverse, negative, rounding, threshold) * quantum;
  const C infinity = bit_cast<C>(L::kExponent);
  const C beyond = g.infinity ? infinity : bit_cast<C>(L::kExponent | L::kQuiet);
  // Toward zero nothing finite becomes infinite.
  const bool finite =
      saturate || rounding == Rounding::toward_zero || (rounding == Rounding::floor && !negative);
  const C above = finite ? max : beyond;
  const C at_infinity = g.infinity || !saturate ? beyond : max;
  C y = rounded > max ? above : rounded;
  y = a == infinity ? at_infinity : y;
  // x - 0 is x, and 0 for x = -0.
  return with_sign(y, x) + (g.negative_zero ? C(-0.0) : C(0.0));
}

// What is added to the bits of a float before its last `dropped` ones are cut off, so that they
// carry where the threshold asks for it.
REGKERN_HD uint32_t stochastic_carry(uint32_t bits, int random_bits, int dropped) {
  const uint32_t u = random_bits == 23 ? bits >> 9 : bits;
  const int more = dropped - random_bits;
  const uint32_t threshold = more > 0 ? ((2 * u + 1) << (more - 1)) + 1 : (u >> -more) + 1;
  return (1u << dropped) - threshold;
}
REGKERN_HD uint32_t fixed_carry(Rounding rounding, int dropped) {
  return rounding == Rounding::nearest_away ? (1u << dropped) >> 1 : 0u;
}

REGKERN_HD float round_cut(float x, const Grid& g, Rounding rounding, bool saturate,
                           uint32_t carry) {
  const int dropped = 23 - g.mantissa_bits;
  const uint32_t u = bit_cast<uint32_t>(x), a = u & 0x7FFFFFFFu, sign = u & 0x80000000u;
  const uint32_t tail = (1u << dropped) - 1u;
  if (rounding == Rounding::nearest_even) carry = (tail >> 1) + ((a >> dropped) & (tail & 1u));
  if (rounding == Rounding::floor) carry = sign != 0 ? tail : 0u;
  const uint32_t rounded = (a + carry) & ~tail;
  const bool finite =
      saturate || rounding == Rounding::toward_zero || (rounding == Rounding::floor && sign == 0);
  const uint32_t most = finite ? 0x7F7FFFFFu & ~tail : 0x7F800000u;
  uint32_t y = rounded > most ? most : rounded;
  y = a >= 0x7F800000u ? a : y;  // infinities and NaN
  return bit_cast<float>(y | sign);
}

// t = x / scale to the integers, the zero point added after rounding; not yet clamped.
template <typename C>
REGKERN_HD C round_integer(C t, C zero_point, Rounding rounding, C threshold) {
  const C a = with_sign(t, C(1));
  if (rounding == Rounding::noise) return t + (threshold - C(0.5)) + zero_point;
  return with_sign(round_unit(a, is_negative(t), rounding, threshold), t) + zero_point;
}
// NaN stays.
template <typename C>
REGKERN_HD C clamped(C q, C low, C high) {
  q = q < low ? low : q;
  return q > high ? high : q;
}

// The code of a number that stands on a floating grid of at most 8 bits.
REGKERN_HD uint32_t encode(float y, const Grid& g) {
  const uint32_t u = bit_cast<uint32_t>(y), a = u & 0x7FFFFFFFu;
  const int m = g.mantissa_bits, width = g.exponent_bits + m;
  const uint32_t sign = (u >> 31) << width;
  const uint32_t smallest = static_cast<uint32_t>(128 - g.bias) << 23;
  // Subnormals count quanta of 2^(1 - bias - m).
  const float inverse = bit_cast<float>(static_cast<uint32_t>(126 + g.bias + m) << 23);
  const float counted = a < smallest ? bit_cast<float>(a) * inverse : 0.0f;
  const uint32_t subnormal = static_cast<uint32_t>(static_cast<int32_t>(counted));
  const uint32_t normal = (a >> (23 - m)) - (static_cast<uint32_t>(127 - g.bias) << m);
  const uint32_t all = (1u << width) - 1u, infinity = ((1u << g.exponent_bits) - 1u) << m;
  uint32_t code = (a < smallest ? subnormal : normal) | sign;
  code = a == 0x7F800000u ? infinity | sign : code;
  const uint32_t nan = g.negative_zero ? all | sign : 1u << width;
  return a > 0x7F800000u ? nan : code;
}

}  // namespace regkern::quantize
