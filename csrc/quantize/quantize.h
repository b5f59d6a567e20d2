#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "quantize/blocks.h"
#include "quantize/scale.h"

// y = round(x / s + z) s − z s, element by element, s and z per block: every rounding of the
// library goes through this kernel. One read of x, one write of y.

namespace regkern::quantize {

// What is written: the rounded number, or its code.
enum class Store : int {
  float32,
  float64,
  bfloat16,
  float16,
  code8,   // one code a byte
  code4,   // two codes a byte, the first in the low half
  code16,  // integers alone
};

struct QuantizeArgs {
  Dtype dtype;  // of x
  const void* x;
  Store store;
  void* y;  // may be x where they have one dtype
  int64_t numel;
  Blocks blocks;
  Rounder rounder;
  ScaleOptions scale;
  // The range of every block, in the compute type, where it was found by another kernel; null where
  // this kernel looks for it. Scratch afterwards.
  void* minimum;
  void* maximum;
  void* scale_out;       // null, or the scales, in the compute type
  void* zero_point_out;  // null, or the zero points, likewise
  uint8_t* scale_code;   // null, or the scales as E8M0 (mx) or E4M3 (nvfp4)
  uint32_t* inside;      // null, or a bit per element: not clamped
  const int64_t* seed;   // with stochastic rounding and noise
};

// Columns of a tile: what a CPU thread, or a block of GPU threads, looks at as a whole.
constexpr int64_t kTile = 1024;
// Rows of a block whose range is found together with its rounding.
constexpr int64_t kTileRows = 128;

// Whether the kernel finds the ranges of (flattened) blocks by itself: a CPU's tile holds them, or
// a GPU's warp does, eight elements a thread.
constexpr int kQuantizeLanes = 8;
inline bool finds_ranges(const Blocks& b, bool gpu) {
  if (!gpu)
    return !b.shared && b.block_cols <= kTile && (b.block_rows <= kTileRows || b.rows <= kTileRows);
  const int64_t width = b.block_cols;
  return b.outer == 1 && b.rows == 1 && b.cols % width == 0 && width >= kQuantizeLanes &&
         width <= 32 * kQuantizeLanes && (width & (width - 1)) == 0;
}

REGKERN_HD bool is_computed(ScaleRule rule) {
  return rule != ScaleRule::none && rule != ScaleRule::given;
}

// The code of a computed scale: E8M0, or E4M3 of what stands before the tensor's scale.
template <typename C>
REGKERN_HD uint32_t scale_code(const QuantizeArgs& args, C scale, C tensor_scale) {
  const ScaleOptions& o = args.scale;
  if (o.rule == ScaleRule::mx) {
    // 2^-127 is a subnormal float: its exponent field is 0, as its code. Integers have their point
    // after the first bit, which OCP counts to the element.
    const int32_t point = args.rounder.grid.kind == Kind::integer ? o.emax : 0;
    const int32_t code = (bit_cast<int32_t>(static_cast<float>(scale)) >> 23) + point;
    const int32_t least = code < 254 ? code : 254;
    return static_cast<uint32_t>(scale != scale ? 0xFF : least);
  }
  const Grid e4m3 = e4m3_grid();
  // The quotient is within an ulp of the e4m3 number that the product was made of.
  const C block = round_floating(scale / tensor_scale, e4m3, Rounding::nearest_even, true, C(0));
  return encode(static_cast<float>(block), e4m3);
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(quantize, quantize::QuantizeArgs)
}
