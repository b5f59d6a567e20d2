#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/noise.h"
#include "core/random_bits.h"
#include "quantize/item_words.h"

// Noise of analog and low-precision hardware on a weight w, with n ~ N(0, 1) and s = max |w| or
// what stands for it:
//
//     none        y = w
//     add         y = w + σ s n
//     multiply    y = w (1 + σ n); truncated: the factor is at least 0
//     discretize  y = Δ round(w / Δ) + σ s n,  Δ = 2 r s
//     dorefa      y = s (2 r round((tanh w / (2 tanh s) + ½) / r) − 1) + σ s n
//     poly        y = w + σ s (c₀ + c₁ u + c₂ u²) n,  u = |w| / s
//     prog        y = sign(w) |w + σ s (c₀ + c₁ u + c₂ u²) n|
//
// and then y ⊙ M, M Bernoulli. s = 0 changes nothing. n, M and the bits of stochastic rounding are
// numbered by the element of the result in row-major order.

namespace regkern::quantize {

enum class Noise : int { none, add, multiply, discretize, dorefa, poly, prog };

struct WeightNoiseArgs {
  Dtype dtype;
  int64_t rows, row_size;
  int64_t copies;  // y is (copies, rows, row_size)
  const void* w;
  void* y;
  Noise kind;
  double std_dev;
  const void* scale;  // s, in the compute type: one number, or one per row
  int64_t scale_count;
  double resolution;  // r
  bool stochastic;
  double c0, c1, c2;
  bool truncate;
  double drop;        // the probability of a zero in M
  double kept_scale;  // what M has elsewhere
  bool exempt_last_column;
  const int64_t* seed;
};

REGKERN_HD bool draws_normals(const WeightNoiseArgs& a) {
  return a.std_dev != 0.0 && a.kind != Noise::none;
}
REGKERN_HD bool needs_scale(Noise kind) { return kind != Noise::none && kind != Noise::multiply; }

template <typename C>
struct NoiseNumbers {
  C std_dev, two_r, c0, c1, c2;
  double steps, r;
  bool stochastic, truncate;
};

template <typename C>
REGKERN_HD NoiseNumbers<C> noise_numbers(const WeightNoiseArgs& a) {
  return {static_cast<C>(a.std_dev),
          static_cast<C>(2.0 * a.resolution),
          static_cast<C>(a.c0),
          static_cast<C>(a.c1),
          static_cast<C>(a.c2),
          a.resolution > 0.0 ? 1.0 / a.resolution : 0.0,
          a.resolution,
          a.stochastic,
          a.truncate};
}

// a >= 0 to an integer: ties up; or up where its fraction exceeds (U + ½) 2⁻¹⁶ for 16 bits U.
// Adding 2²³ (2⁵²) rounds to the nearest integer, from which the floor is one step at most.
REGKERN_HD float rounded(float a, bool stochastic, uint32_t bits) {
  const float near = (a + 8388608.0f) - 8388608.0f;
  const float floor = near > a ? near - 1.0f : near;
  const float fraction = a - floor;
  const float bar = (static_cast<float>(static_cast<int32_t>(bits)) + 0.5f) * (1.0f / 65536.0f);
  const bool up = stochastic ? fraction > bar : fraction >= 0.5f;
  const float result = up ? floor + 1.0f : floor;
  return a < 8388608.0f ? result : a;  // NaN too
}
REGKERN_HD double rounded(double a, bool stochastic, uint32_t bits) {
  const double near = (a + 4503599627370496.0) - 4503599627370496.0;
  const double floor = near > a ? near - 1.0 : near;
  const double fraction = a - floor;
  const double bar = (static_cast<double>(static_cast<int32_t>(bits)) + 0.5) * (1.0 / 65536.0);
  const bool up = stochastic ? fraction > bar : fraction >= 0.5;
  const double result = up ? floor + 1.0 : floor;
  return a < 4503599627370496.0 ? result : a;
}

// tanh |x| = (1 − e) / (1 + e) with e = exp(−2 |x|).
REGKERN_HD double tanh_of(double x) {
  const double a = x < 0.0 ? -x : x;
  const double e = regkern::exp(-2.0 * a);
  const double t = (1.0 - e) / (1.0 + e);
  return x < 0.0 ? -t : t;
}

// tanh w / (2 tanh s) + ½, in [0, 1]. In double: it has to be on the right side of a tie.
// `range` is tanh_range(s).
REGKERN_HD double tanh_range(double s) { return 2.0 * tanh_of(s); }
REGKERN_HD double tanh_unit(double w, double range) {
  const double unit = tanh_of(w) / range + 0.5;
  return unit < 0.0 ? 0.0 : (unit > 1.0 ? 1.0 : unit);
}

// y for one element, without M. `unit` is tanh_unit(), for dorefa alone.
template <Noise kKind, typename C>
REGKERN_HD C noisy(const NoiseNumbers<C>& p, C w, C s, double unit, C n, uint32_t bits) {
  const C a = w < C(0) ? -w : w;
  C y = w;
  if constexpr (kKind == Noise::none) {
    return w;
  } else if constexpr (kKind == Noise::multiply) {
    const C factor = C(1) + p.std_dev * n;
    return w * (p.truncate && factor < C(0) ? C(0) : factor);
  } else if constexpr (kKind == Noise::add) {
    y = w + p.std_dev * s * n;
  } else if constexpr (kKind == Noise::discretize) {
    const C step = p.two_r * s;
    const C level = rounded(a / step, p.stochastic, bits) * step;
    y = (w < C(0) ? -level : level) + p.std_dev * s * n;
  } else if constexpr (kKind == Noise::dorefa) {
    const double level = rounded(unit * p.steps, p.stochastic, bits);
    y = static_cast<C>(static_cast<double>(s) * (2.0 * level * p.r - 1.0)) + p.std_dev * s * n;
  } else {
    const C u = a / s;
    y = w + p.std_dev * s * (p.c0 + u * (p.c1 + p.c2 * u)) * n;
    if constexpr (kKind == Noise::prog) {
      const C magnitude = y < C(0) ? -y : y;
      y = w > C(0) ? magnitude : (w < C(0) ? -magnitude : (w == C(0) ? w : y));
    }
  }
  return s == C(0) ? w : y;
}

// max |w| of the whole or of each row. The bits of |w|, taken as an integer, are ordered as the
// values are and put NaN above infinity, so the order does not matter and NaN wins.
struct WeightAbsmaxArgs {
  Dtype dtype;
  int64_t rows, row_size;
  const void* w;
  bool per_row;
  bool exempt_last_column;
  void* out;  // of the compute type
};

// y = x + Δ (U − ½). x is (outer, channels, inner), Δ one number or one for each channel.
struct UniformNoiseArgs {
  Dtype dtype;
  int64_t outer, channels, inner;
  const void* x;
  const void* step;  // (channels), of the compute type
  void* y;
  const int64_t* seed;
};

// out[c] = Σ g (U − ½) over the elements of channel c. A piece is piece_rows(inner) outer indices,
// or kPiece elements of one of them where inner is larger; element t of a piece goes to lane t mod
// kNoiseLanes in double, lanes are added by halves, and pieces in order.
constexpr int kNoiseLanes = 32;
constexpr int64_t kPiece = 4096;

struct UniformNoiseSumArgs {
  Dtype dtype;
  int64_t outer, channels, inner;
  const void* g;
  double* partial;  // (outer pieces, channels, inner pieces)
  void* out;        // (channels), of the compute type
  const int64_t* seed;
};

REGKERN_HD int64_t piece_rows(int64_t inner) {
  return inner >= kPiece ? 1 : kPiece / (inner > 0 ? inner : 1);
}
REGKERN_HD int64_t outer_pieces(int64_t outer, int64_t inner) {
  return (outer + piece_rows(inner) - 1) / piece_rows(inner);
}
REGKERN_HD int64_t inner_pieces(int64_t inner) { return (inner + kPiece - 1) / kPiece; }

REGKERN_HD double channel_sum(const UniformNoiseSumArgs& a, int64_t c) {
  const int64_t in = inner_pieces(a.inner), out = outer_pieces(a.outer, a.inner);
  double sum = 0.0;
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < in; ++i) sum += a.partial[(o * a.channels + c) * in + i];
  return sum;
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(weight_noise, quantize::WeightNoiseArgs)
REGKERN_DECLARE_KERNEL(weight_absmax, quantize::WeightAbsmaxArgs)
REGKERN_DECLARE_KERNEL(uniform_noise, quantize::UniformNoiseArgs)
REGKERN_DECLARE_KERNEL(uniform_noise_sum, quantize::UniformNoiseSumArgs)
}  // namespace regkern
