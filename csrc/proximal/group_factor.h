#pragma once

#include "core/square_sum.h"

// What a group prox multiplies a group by, from the group's norm s and its threshold
// t = step · λ · weight, in double: x_g ← x_g · r(s) / s.

namespace regkern::proximal {

// argmin_z ½‖z − x‖² + t ‖z‖₂: r(s) / s = (1 − t / s)₊. Threshold 0 is the identity whatever s is,
// a zero group stays zero, and a NaN norm makes the group NaN.
REGKERN_HD double l2_factor(double s, double t) {
  const double shrunk = s <= t ? 0.0 : 1.0 - t / s;
  return t == 0.0 ? 1.0 : shrunk;
}

// factor · x in the compute type; a factor of 0 gives +0, also of what is not finite.
template <typename C>
REGKERN_HD C scaled_by(C factor, C x) {
  return factor == C(0) ? C(0) : factor * x;
}

}  // namespace regkern::proximal
