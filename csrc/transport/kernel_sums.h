#pragma once

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"

// Sums of a kernel over all points of a cloud, at every point of another, and the sums of its
// gradients, without the matrix of pairs:
//
//     S_i = Σ_j w_j k(|x_i − y_j|²),        F_i = Σ_j w_j φ(|x_i − y_j|²) (x_i − y_j)
//
// with ∂k/∂x_i = φ (x_i − y_j). k is the sum of one kernel over several scales. Distances are sums
// of squared differences, in the order of the coordinates: equal points have distance 0 and an
// offset of all points changes nothing but their own rounding.
//
// The order of sums: the terms of a span of kSpanColumns columns one after the other, in the
// compute type; spans, and then chunks, in double. F is added a tile of kTileColumns at a time, in
// the compute type.
//
// A column of weight zero is not there, whatever it holds. Where the distance is 0 the gradient of
// a kernel with a kink there is 0.

namespace regkern::transport {

enum class PointKernel { gaussian, laplacian, energy, imq, rational };

struct KernelSumsArgs {
  Dtype dtype;  // float32 or float64, of all that has no other type
  PointKernel kernel;
  bool gradient;       // F instead of S
  bool skip_diagonal;  // leaves out i = j; of S alone
  int64_t batch, rows, columns, size;
  int64_t scales;
  const void* x;         // (batch, rows, size)
  const void* y;         // (batch, columns, size)
  const void* w;         // (batch, columns)
  const double* scale;   // (scales)
  void* out;             // (batch, rows), or (batch, rows, size)
  void* space;           // GPU: of each chunk (batch, rows) doubles, or (batch, size, rows)
};

constexpr int kTileColumns = 8;
constexpr int kSpanColumns = 64;
constexpr int kMostScales = 32;
constexpr int64_t kMostChunks = 8;

// A multiple of a span.
REGKERN_HD int64_t chunk_columns(int64_t columns) {
  const int64_t share = (columns + kMostChunks - 1) / kMostChunks;
  const int64_t spans = (share + kSpanColumns - 1) / kSpanColumns;
  return spans * kSpanColumns > 1024 ? spans * kSpanColumns : 1024;
}
REGKERN_HD int64_t chunk_count(int64_t columns) {
  const int64_t length = chunk_columns(columns);
  return (columns + length - 1) / length;
}

// What a kernel needs of a scale, once for all pairs.
template <typename C>
struct KernelScale {
  C a, b;
};

template <typename C>
REGKERN_HD KernelScale<C> kernel_scale(PointKernel kernel, double s) {
  switch (kernel) {
    case PointKernel::gaussian:
      return {static_cast<C>(-0.5 / (s * s)), static_cast<C>(-1.0 / (s * s))};
    case PointKernel::laplacian:
      return {static_cast<C>(-1.0 / s), C(0)};
    case PointKernel::energy:
      return {C(0), C(0)};
    case PointKernel::imq:
      return {static_cast<C>(s), C(0)};
    default:
      return {static_cast<C>(0.5 / s), static_cast<C>(-s)};
  }
}

REGKERN_HD float exp_or_zero(float x) { return choose(x < -87.0f, 0.0f, regkern::exp(x)); }
REGKERN_HD double exp_or_zero(double x) { return choose(x < -700.0, 0.0, regkern::exp(x)); }

// base^(−α) = (1 + r² / 2α)^(−α). The logarithm is one of finite numbers.
template <typename C>
REGKERN_HD C rational_power(C base, C exponent) {
  const C power = exp_or_zero(exponent * regkern::log(base));
  return choose(base < static_cast<C>(__builtin_inf()), power, C(1) / base);
}

// k, or φ, of a squared distance.
template <PointKernel kKernel, bool kGradient, typename C>
REGKERN_HD C kernel_term(C r2, const KernelScale<C>& s) {
  if constexpr (kKernel == PointKernel::gaussian) {
    // exp(−r² / 2σ²)
    const C k = exp_or_zero(s.a * r2);
    return kGradient ? s.b * k : k;
  } else if constexpr (kKernel == PointKernel::laplacian) {
    // exp(−r / σ)
    const C r = regkern::sqrt(r2), k = exp_or_zero(s.a * r);
    if (!kGradient) return k;
    return choose(r2 == C(0), C(0), s.a * k / choose(r2 == C(0), C(1), r));
  } else if constexpr (kKernel == PointKernel::energy) {
    // −r
    const C r = regkern::sqrt(r2);
    if (!kGradient) return -r;
    return choose(r2 == C(0), C(0), C(-1) / choose(r2 == C(0), C(1), r));
  } else if constexpr (kKernel == PointKernel::imq) {
    // c / (c + r²)
    const C inverse = C(1) / (s.a + r2), k = s.a * inverse;
    return kGradient ? C(-2) * k * inverse : k;
  } else {
    const C base = C(1) + s.a * r2, k = rational_power(base, s.b);
    return kGradient ? -k / base : k;
  }
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(kernel_sums, transport::KernelSumsArgs)
}  // namespace regkern
