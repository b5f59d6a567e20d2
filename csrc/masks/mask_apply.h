#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"

// y = act(x ⊙ M · scale + noise ⊙ (1 − M) + residual), M a packed bit mask.
//
// The product is a product: a NaN stays NaN under a zero of the mask, as in the reference formula.

namespace regkern::masks {

// The element at memory position e reads bit a · run + s, where u = e / width, a = u / (repeat ·
// run) and s = u mod run. That covers a mask per element (run = all), one shared by `repeat`
// channels, and, channels last, one shared by `width` neighbours.
struct MaskIndex {
  int64_t width;
  int64_t repeat;
  int64_t run;
};

REGKERN_HD int64_t mask_bit(const MaskIndex& index, int64_t e) {
  const int64_t u = index.width == 1 ? e : e / index.width;
  return u / (index.repeat * index.run) * index.run + u % index.run;
}

struct MaskApplyArgs {
  Dtype dtype;
  const void* x;
  void* y;  // may be x
  int64_t numel;
  MaskIndex index;
  const uint32_t* mask;
  int64_t mask_words;
  const double* scale;
  int64_t per_scale;          // elements per entry of scale
  const void* residual;       // null: none
  bool relu;
  const uint32_t* active;     // null, or bits in memory order: the result is 0 where a bit is 0
  uint32_t* active_out;       // null, or the bits of y > 0 in memory order
  double noise;               // standard deviation of the fill of dropped elements
  const int64_t* seed;        // with noise
  int64_t channels;           // with noise, channels last: the number of channels, else 1
  int64_t plane;              // with noise, channels last: elements of a plane
};

// Noise is drawn by logical (row-major) element, whatever the memory layout.
REGKERN_HD int64_t logical_index(const MaskApplyArgs& a, int64_t e) {
  if (a.channels == 1) return e;
  const int64_t c = e % a.channels, u = e / a.channels;
  return (u / a.plane * a.channels + c) * a.plane + u % a.plane;
}

// Packed (batch, rows, cols) to (batch, cols, rows): a mask between channels-first and -last order.
struct BitTransposeArgs {
  const uint32_t* in;
  uint32_t* out;
  int64_t batch, rows, cols;
};

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(mask_apply, masks::MaskApplyArgs)
REGKERN_DECLARE_KERNEL(bit_transpose, masks::BitTransposeArgs)
}
