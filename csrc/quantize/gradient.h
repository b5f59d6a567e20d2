#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "quantize/blocks.h"
#include "quantize/scale.h"

// Gradients of y = (clamp(round(x / s) + z) - z) s with the rounding straight through (Esser et
// al., "Learned step size quantization", 2020; Bhalgat et al., "LSQ+", 2020), q before the clamp:
//
//     dx = g inside, 0 outside
//     ds = Σ g ((q - z) - x / s) inside, g (low - z) or g (high - z) outside
//     dz = Σ -s g outside
//
// The sums are trees that the code fixes: a segment is up to kSegment neighbours in a row of a
// block, or up to kSegment rows of a column where blocks are narrow. Its element i goes to lane i
// mod 32, 32 elements at most, in the compute type; the lanes are added in halves, in double; and
// the sums of the segments of a block are summed likewise, in double, until one is left.

namespace regkern::quantize {

constexpr int kSegment = 1024;
constexpr int kLanes = 32;

struct GradientArgs {
  Dtype dtype;  // of g, x and dx
  const void* g;
  const void* x;
  void* dx;
  Blocks blocks;
  Rounder rounder;
  ScaleOptions scale;  // given
  const int64_t* seed;
  void* inverse;  // scratch, one per block in the compute type
  // Twice (sums of scales, then those of zero points), each (block, segment).
  double* partial;
  void* dscale;  // in the compute type
  void* dzero;   // null: not wanted
};

// Narrow blocks are summed down their columns.
REGKERN_HD bool by_columns(const Blocks& b) { return b.block_cols < 16 && b.block_rows > 1; }

// Segments of a row (a column) of a block.
REGKERN_HD int64_t segments_along(const Blocks& b) {
  const int64_t length = by_columns(b) ? b.block_rows : b.block_cols;
  return (length + kSegment - 1) / kSegment;
}
// Segments of a block; those past a short block's end are zero.
REGKERN_HD int64_t partial_count(const Blocks& b) {
  return (b.shared ? b.outer : 1) * (by_columns(b) ? b.block_cols : b.block_rows) *
         segments_along(b);
}

template <typename C>
struct Gradients {
  C dx, dscale, dzero;
};

template <typename C>
REGKERN_HD Gradients<C> gradients(C g, C x, const Scale<C>& s, const Rounder& r, Rounding rounding,
                                  C threshold) {
  const Grid& grid = r.grid;
  const C t = x * s.inverse;
  if (grid.kind == Kind::integer) {
    const C low = static_cast<C>(grid.low), high = static_cast<C>(grid.high);
    const C q = round_integer(t, s.zero_point, rounding, threshold);
    const bool outside = q < low || q > high;
    const C clipped = clamped(q, low, high) - s.zero_point;
    return {g * (outside ? C(0) : C(1)), g * (outside ? clipped : clipped - t),
            outside ? -(g * s.scale) : C(0)};
  }
  const C max = static_cast<C>(grid.max);
  const bool outside = t > max || t < -max;
  const C v = round_floating(t, grid, rounding, r.saturate, threshold);
  return {g * (outside ? C(0) : C(1)), g * (outside ? v : v - t), C(0)};
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(quantize_gradient, quantize::GradientArgs)
}
