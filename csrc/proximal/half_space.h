#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"

// The half-space projection: a group of an iterate goes to zero where it has left the half-space of
// the iterate before it,
//
//     x_g ← 0   if ⟨x_g, y_g⟩ < ε ‖y_g‖², or y_g = 0.
//
// Products are added in double, in the order of core/square_sum.h.

namespace regkern::proximal {

struct HalfSpaceRow {
  void* x;
  const void* old;
  int64_t run;  // neighbours in a group
  int64_t numel, first;
};

struct HalfSpaceArgs {
  Dtype dtype;
  const HalfSpaceRow* rows;
  int64_t count;
  double eps;
};

// NaN is no reason to forget a group.
REGKERN_HD bool leaves_half_space(double product, double squares, double eps) {
  return squares == 0.0 || product < eps * squares;
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(half_space, proximal::HalfSpaceArgs)
}  // namespace regkern
