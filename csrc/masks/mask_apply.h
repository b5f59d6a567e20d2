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

// I is as wide as the number of elements asks for: a GPU divides 32 bits much faster than 64.
template <typename I>
REGKERN_HD I mask_bit(const MaskIndex& index, I e) {
  const I width = static_cast<I>(index.width), run = static_cast<I>(index.run);
  const I u = width == 1 ? e : e / width;
  return u / (static_cast<I>(index.repeat) * run) * run + u % run;
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
  int64_t per_scale;     // elements per entry of scale
  const void* residual;  // null: none
  bool relu;
  const uint32_t* active;  // null, or bits in memory order: the result is 0 where a bit is 0
  uint32_t* active_out;    // null, or the bits of y > 0 in memory order
  double noise;            // standard deviation of the fill of dropped elements
  const int64_t* seed;     // with noise
  int64_t channels;        // with noise, channels last: the number of channels, else 1
  int64_t plane;           // with noise, channels last: elements of a plane
};

// Noise is drawn by logical (row-major) element, whatever the memory layout.
template <typename I>
REGKERN_HD I logical_index(const MaskApplyArgs& a, I e) {
  const I channels = static_cast<I>(a.channels), plane = static_cast<I>(a.plane);
  if (channels == 1) return e;
  const I c = e % channels, u = e / channels;
  return (u / plane * channels + c) * plane + u % plane;
}

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(mask_apply, masks::MaskApplyArgs)
}  // namespace regkern
