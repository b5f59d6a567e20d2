#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/math.h"

// The prox of the l2 norm of a group in a diagonal metric D = diag(d), d > 0:
//
//     argmin_x ½ Σ dᵢ (xᵢ − zᵢ)² + t ‖x‖₂
//
// It is 0 iff ‖D z‖ ≤ t. Otherwise xᵢ = zᵢ θ / (θ + t/dᵢ) where θ = ‖x‖ is the root of
//
//     ‖u(θ)‖ = 1,    uᵢ(θ) = zᵢ / (θ + t/dᵢ).
//
// 1/‖u‖ is concave and grows with θ, so that Newton's steps from below,
//
//     θ ← θ + (‖u‖ − 1) ‖u‖² / Σ uᵢ² / (θ + t/dᵢ),
//
// rise to the root and never pass it. (‖D z‖ − t) / max d is below.

namespace regkern::proximal {

// More than any group needs: the steps grow until they are quadratic.
constexpr int kMetricSteps = 50;

template <typename C>
constexpr C kMetricTolerance = C(2e-7);
template <>
constexpr double kMetricTolerance<double> = 1e-15;

// The next θ from the two sums, Σ u² and Σ u² / (θ + t/d).
template <typename C>
REGKERN_HD C metric_newton(C theta, C squares, C cubes) {
  const C norm = regkern::sqrt(squares);
  return theta + (norm - C(1)) * squares / cubes;
}

// Whether Newton has arrived; so it has where rounding turns it back, and where nothing is a
// number.
template <typename C>
REGKERN_HD bool metric_arrived(C theta, C next) {
  return !(next > theta + kMetricTolerance<C> * theta);
}

// t/d, where d may be 0: nothing holds that element against the penalty.
template <typename C>
REGKERN_HD C metric_shift(C t, C d) {
  return t / d;
}

template <typename C>
REGKERN_HD C metric_ratio(C z, C theta, C shift) {
  return z / (theta + shift);
}

// The soft threshold t/d of one element.
template <typename C>
REGKERN_HD C metric_element(C z, C t, C d) {
  const C shift = t / d, magnitude = fabs(z);
  const C shrunk = magnitude <= shift ? C(0) : copysign(magnitude - shift, z);
  return t == C(0) ? z : shrunk;
}

}  // namespace regkern::proximal
