#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"
#include "quantize/segments.h"

// Weights whose bits are trained, and the sign with its surrogates.

namespace regkern::quantize {

constexpr int kMostBits = 24;  // every magnitude is exact in float32

// 1[x > 0] and sgn x with sgn 0 = +1; NaN stays.
template <typename C>
REGKERN_HD C bit_of(C x) {
  return x > C(0) ? C(1) : (x <= C(0) ? C(0) : x);
}
template <typename C>
REGKERN_HD C sign_of(C x) {
  return x >= C(0) ? C(1) : (x < C(0) ? C(-1) : x);
}

// w = c sgn(x_s) m with m = Σ_i 2^i 1[x_i > 0], over `bits` planes of `numel` elements each. With
// `codes` it is sgn(x_s) m as an integer of `itemsize` bytes instead, and NaN counts as no bit and
// as +1.
struct BitwiseArgs {
  Dtype dtype;
  int64_t numel;
  int bits;
  const void* planes;
  const void* sign;   // or null: +1
  const void* scale;  // c, one element in the type that is computed with
  void* w;
  bool codes;
  int itemsize;
};

// The other way round: x_i = 1[bit i of |code|] and x_s = sgn code, or ±1 for both.
struct UnpackBitsArgs {
  Dtype dtype;
  int64_t numel;
  int bits;
  int itemsize;  // of the codes
  const void* codes;
  bool latent;
  void* planes;
  void* sign;
};

// dx_i = g c sgn(x_s) 2^i where bit i of `trainable` is set and 0 elsewhere, dx_s = g c m,
// dc = Σ g sgn(x_s) m.
struct BitwiseGradientArgs {
  BitwiseArgs forward;
  const void* g;
  uint32_t trainable;
  void* dplanes;
  void* dsign;  // or null
  SumsArgs sums;
};

template <typename C>
REGKERN_HD C magnitude_term(C x, int bit) {
  return bit_of(x) * static_cast<C>(1 << bit);
}

enum class Surrogate : int { hardtanh, tanh };

// y = sgn x. The gradient is dx = g σ(x) with
//
//     hardtanh  σ = 1[|x| ≤ 1]
//     tanh      σ = β (1 − tanh² βx) = 4 β e / (1 + e)²,  e = exp(−2 |βx|)
struct SignArgs {
  Dtype dtype;
  int64_t numel;
  const void* x;
  void* y;
};
struct SignGradientArgs {
  Dtype dtype;
  int64_t numel;
  Surrogate surrogate;
  double beta;
  const void* g;
  const void* x;
  void* dx;
};

template <typename C>
REGKERN_HD C sign_gradient(C g, C x, Surrogate surrogate, double beta) {
  if (surrogate == Surrogate::hardtanh) return x < C(-1) || x > C(1) ? C(0) : g;
  const double t = beta * static_cast<double>(x);
  const double e = regkern::exp(-2.0 * (t < 0.0 ? -t : t));
  const double slope = 4.0 * beta * e / ((1.0 + e) * (1.0 + e));
  return g * static_cast<C>(slope);
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(bitwise_weights, quantize::BitwiseArgs)
REGKERN_DECLARE_KERNEL(bitwise_gradient, quantize::BitwiseGradientArgs)
REGKERN_DECLARE_KERNEL(unpack_bits, quantize::UnpackBitsArgs)
REGKERN_DECLARE_KERNEL(sign_ste, quantize::SignArgs)
REGKERN_DECLARE_KERNEL(sign_gradient, quantize::SignGradientArgs)
}  // namespace regkern
