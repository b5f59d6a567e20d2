#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

// Branch-free elementary functions from additions, multiplications and bit operations alone. They
// vectorise in plain loops and, because the library is compiled without floating-point
// contraction, give the same bits in every instruction set, on the GPU and in the emulator.

namespace regkern {

template <typename To, typename From>
REGKERN_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// √x, correctly rounded.
REGKERN_HD float sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
REGKERN_HD double sqrt(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// ln x for finite x > 0, within 2 ulp. x = m 2^e with m in [√½, √2), s = (m − 1)/(m + 1),
// ln m = 2 atanh s = 2 (s + s³/3 + s⁵/5 + …).
REGKERN_HD float log(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x) - 0x3F3504F3u;  // √½
  const float e = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float m = bit_cast<float>((bits & 0x007FFFFFu) + 0x3F3504F3u);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float z = s * s;
  float series = 1.0f / 9;
  series = series * z + 1.0f / 7;
  series = series * z + 1.0f / 5;
  series = series * z + 1.0f / 3;
  const float tail = 2.0f * s * z * series;
  // ln 2 in two parts, so that e ln 2 is exact in its high one.
  return e * 0.693145752f + (2.0f * s + (tail + e * 1.42860677e-6f));
}

REGKERN_HD double log(double x) {
  const uint64_t bits = bit_cast<uint64_t>(x) - 0x3FE6A09E667F3BCDull;  // √½
  // From the upper half alone: 64 bits neither shift with a sign nor become a double in a vector.
  const double e = static_cast<double>(static_cast<int32_t>(bits >> 32) >> 20);
  const double m = bit_cast<double>((bits & 0x000FFFFFFFFFFFFFull) + 0x3FE6A09E667F3BCDull);
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double series = 1.0 / 23;
  series = series * z + 1.0 / 21;
  series = series * z + 1.0 / 19;
  series = series * z + 1.0 / 17;
  series = series * z + 1.0 / 15;
  series = series * z + 1.0 / 13;
  series = series * z + 1.0 / 11;
  series = series * z + 1.0 / 9;
  series = series * z + 1.0 / 7;
  series = series * z + 1.0 / 5;
  series = series * z + 1.0 / 3;
  const double tail = 2.0 * s * z * series;
  return e * 0.6931471803691238 + (2.0 * s + (tail + e * 1.9082149292705877e-10));
}

// eˣ for |x| ≤ 700, within 2 ulp; outside, the value at the nearer end. x = k ln 2 + r, |r| ≤ ½
// ln 2.
REGKERN_HD double exp(double x) {
  x = x > 700.0 ? 700.0 : x;
  x = x < -700.0 ? -700.0 : x;
  // Adding 1.5 · 2⁵² rounds to the nearest integer, which then stands in the low bits.
  const double shifted = x * 1.4426950408889634 + 6755399441055744.0;
  const double k = shifted - 6755399441055744.0;
  const double r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10;
  double series = 1.0 / 6227020800.0;
  series = series * r + 1.0 / 479001600.0;
  series = series * r + 1.0 / 39916800.0;
  series = series * r + 1.0 / 3628800.0;
  series = series * r + 1.0 / 362880.0;
  series = series * r + 1.0 / 40320.0;
  series = series * r + 1.0 / 5040.0;
  series = series * r + 1.0 / 720.0;
  series = series * r + 1.0 / 120.0;
  series = series * r + 1.0 / 24.0;
  series = series * r + 1.0 / 6.0;
  series = series * r + 0.5;
  series = series * r + 1.0;
  series = series * r + 1.0;
  const int64_t exponent = bit_cast<int64_t>(shifted) - bit_cast<int64_t>(6755399441055744.0);
  return series * bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

// cos 2πt and sin 2πt for t in [0, 1]: a quarter turn is split off, Taylor does the rest.
REGKERN_HD void cos_sin_turns(float t, float* cosine, float* sine) {
  const float shifted = t * 4.0f + 12582912.0f;  // 1.5 · 2²³ rounds to an integer
  const float quarter = shifted - 12582912.0f;
  const int32_t q = bit_cast<int32_t>(shifted) & 3;
  const float a = (t - quarter * 0.25f) * 6.28318531f;
  const float z = a * a;
  float s = 1.0f / 362880;
  s = s * z - 1.0f / 5040;
  s = s * z + 1.0f / 120;
  s = s * z - 1.0f / 6;
  s = a + a * z * s;
  float c = 1.0f / 40320;
  c = c * z - 1.0f / 720;
  c = c * z + 1.0f / 24;
  c = c * z - 0.5f;
  c = c * z + 1.0f;
  const float x = (q & 1) ? s : c;
  const float y = (q & 1) ? c : s;
  *cosine = (q == 1 || q == 2) ? -x : x;
  *sine = (q >= 2) ? -y : y;
}

// Two independent standard normals from two uniform words (Box and Muller). u is in (0, 1], so the
// largest value is √(2 · 25 ln 2) = 5.89.
REGKERN_HD void normal_pair(uint32_t w0, uint32_t w1, float* n0, float* n1) {
  const float u = (static_cast<float>(static_cast<int32_t>(w0 >> 8)) + 0.5f) * (1.0f / 16777216.0f);
  const float t = static_cast<float>(static_cast<int32_t>(w1 >> 8)) * (1.0f / 16777216.0f);
  const float r2 = -2.0f * regkern::log(u);
  const float r = regkern::sqrt(r2 > 0.0f ? r2 : 0.0f);
  float c, s;
  cos_sin_turns(t, &c, &s);
  *n0 = r * c;
  *n1 = r * s;
}

// ---- functions of one argument over the whole line ----

REGKERN_HD float fabs(float x) { return bit_cast<float>(bit_cast<uint32_t>(x) & 0x7FFFFFFFu); }
REGKERN_HD double fabs(double x) {
  return bit_cast<double>(bit_cast<uint64_t>(x) & 0x7FFFFFFFFFFFFFFFull);
}

// a or b, by a mask: of selections between floats that follow one from another gcc makes branches,
// and then no vectors.
REGKERN_HD float choose(bool first, float a, float b) {
#if defined(__CUDA_ARCH__)
  return first ? a : b;
#else
  const uint32_t mask = 0u - static_cast<uint32_t>(first);
  return bit_cast<float>((bit_cast<uint32_t>(a) & mask) | (bit_cast<uint32_t>(b) & ~mask));
#endif
}
REGKERN_HD double choose(bool first, double a, double b) {
#if defined(__CUDA_ARCH__)
  return first ? a : b;
#else
  const uint64_t mask = uint64_t{0} - static_cast<uint64_t>(first);
  return bit_cast<double>((bit_cast<uint64_t>(a) & mask) | (bit_cast<uint64_t>(b) & ~mask));
#endif
}

// |magnitude| with the sign of x.
REGKERN_HD float copysign(float magnitude, float x) {
  return bit_cast<float>((bit_cast<uint32_t>(magnitude) & 0x7FFFFFFFu) |
                         (bit_cast<uint32_t>(x) & 0x80000000u));
}
REGKERN_HD double copysign(double magnitude, double x) {
  return bit_cast<double>((bit_cast<uint64_t>(magnitude) & 0x7FFFFFFFFFFFFFFFull) |
                          (bit_cast<uint64_t>(x) & 0x8000000000000000ull));
}

// eˣ for |x| ≤ 87, within 2 ulp; outside, the value at the nearer end.
REGKERN_HD float exp(float x) {
  x = x > 87.0f ? 87.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 · 2²³ rounds to an integer
  const float k = shifted - 12582912.0f;
  const float r = (x - k * 0.693145752f) - k * 1.42860677e-6f;
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const uint32_t exponent = bit_cast<uint32_t>(shifted) - bit_cast<uint32_t>(12582912.0f);
  return series * bit_cast<float>((exponent + 127u) << 23);
}

// ln(1 + u) for u ≥ 0, within 4 ulp: what 1 + u rounds away is a factor to first order.
template <typename C>
REGKERN_HD C log1p(C u) {
  const C w = C(1) + u, d = w - C(1);
  const C scale = u / (d > C(0) ? d : C(1));
  return d > C(0) && d < static_cast<C>(__builtin_inf()) ? regkern::log(w) * scale : u;
}

// x^(1/3) for x ≥ 0, within 3 ulp. The exponent over three is a first guess within 4 %, and
// each of Halley's steps, y (y³ + 2x) / (2y³ + x), cubes the error. Subnormals are scaled by 2²⁴.
REGKERN_HD float cbrt(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float a = tiny ? x * 16777216.0f : x;
  float y = bit_cast<float>(bit_cast<uint32_t>(a) / 3u + 0x2A512CE3u);
  for (int i = 0; i < 3; ++i) {
    const float cube = y * y * y;
    y = y * ((cube + 2.0f * a) / (2.0f * cube + a));
  }
  y = tiny ? y * 0.00390625f : y;
  return x > 0.0f && x < static_cast<float>(__builtin_inf()) ? y : x;
}
REGKERN_HD double cbrt(double x) {
  const bool tiny = x < 2.2250738585072014e-308;
  const double a = tiny ? x * 18014398509481984.0 : x;  // 2⁵⁴
  // Of the upper half alone: a division of 64 bits does not vectorise.
  const uint32_t upper = static_cast<uint32_t>(bit_cast<uint64_t>(a) >> 32);
  double y = bit_cast<double>(static_cast<uint64_t>(upper / 3u + 0x2A9F7625u) << 32);
  for (int i = 0; i < 4; ++i) {
    const double cube = y * y * y;
    y = y * ((cube + 2.0 * a) / (2.0 * cube + a));
  }
  y = tiny ? y * 3.814697265625e-06 : y;  // 2⁻¹⁸
  return x > 0.0 && x < __builtin_inf() ? y : x;
}

// arctan x within 3 ulp, NaN for NaN: |x| > 1 is turned by π/2, and what is beyond tan π/8 then by
// π/4, so that the series is one of |z| ≤ tan π/8.
REGKERN_HD float atan(float x) {
  const float magnitude = fabs(x);
  const float t = magnitude > 1.0f ? 1.0f / magnitude : magnitude;
  const bool far = t > 0.414213562f;
  const float z = far ? (t - 1.0f) / (t + 1.0f) : t, q = z * z;
  float series = -1.0f / 19;
  series = series * q + 1.0f / 17;
  series = series * q - 1.0f / 15;
  series = series * q + 1.0f / 13;
  series = series * q - 1.0f / 11;
  series = series * q + 1.0f / 9;
  series = series * q - 1.0f / 7;
  series = series * q + 1.0f / 5;
  series = series * q - 1.0f / 3;
  float angle = z + z * q * series;
  angle = far ? angle + 0.785398163f : angle;
  angle = magnitude > 1.0f ? 1.57079633f - angle : angle;
  return copysign(angle, x);
}
REGKERN_HD double atan(double x) {
  const double magnitude = fabs(x);
  const double t = magnitude > 1.0 ? 1.0 / magnitude : magnitude;
  const bool far = t > 0.41421356237309503;
  const double z = far ? (t - 1.0) / (t + 1.0) : t, q = z * z;
  double series = 0.0;
  for (int n = 21; n > 0; --n) series = series * q + (n % 2 == 0 ? 1.0 : -1.0) / (2 * n + 1);
  double angle = z + z * q * series;
  angle = far ? angle + 0.78539816339744831 : angle;
  angle = magnitude > 1.0 ? 1.5707963267948966 - angle : angle;
  return copysign(angle, x);
}

}  // namespace regkern
