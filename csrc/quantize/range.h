#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "quantize/blocks.h"

// The least and the largest element of every block.
//
// Floating-point numbers of one sign are ordered as their bits are, so flipping the magnitude bits
// of the negative ones gives integers in the order
//
//     -NaN < -inf < … < -0 < +0 < … < +inf < +NaN
//
// Minima and maxima of these keys vectorise, are atomic in memory, do not depend on the order, and
// lose no NaN: it is whatever lies beyond an infinity.

namespace regkern::quantize {

struct BlockRangeArgs {
  Dtype dtype;
  const void* x;
  Blocks blocks;
  // One of each per block: float, or double where x is. The kernels keep the keys here until the
  // last one is in.
  void* minimum;
  void* maximum;
};

template <typename C>
struct OrderKey;
template <>
struct OrderKey<float> {
  using type = int32_t;
  static constexpr int32_t kInfinity = 0x7F800000;
};
template <>
struct OrderKey<double> {
  using type = int64_t;
  static constexpr int64_t kInfinity = 0x7FF0000000000000;
};
template <typename C>
using order_key_t = typename OrderKey<C>::type;

// The keys of an empty block: +inf and -inf.
template <typename C>
constexpr order_key_t<C> kLeastKey = OrderKey<C>::kInfinity;
template <typename C>
constexpr order_key_t<C> kLargestKey = ~OrderKey<C>::kInfinity;

// Its own inverse.
REGKERN_HD int32_t order_bits(int32_t bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }
REGKERN_HD int64_t order_bits(int64_t bits) { return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF); }

template <typename C>
REGKERN_HD order_key_t<C> order_key(C x) {
  return order_bits(bit_cast<order_key_t<C>>(x));
}

// The bits of the minimum and of the maximum, where they belong.
template <typename C>
REGKERN_HD void finish_range(order_key_t<C> low, order_key_t<C> high, order_key_t<C>* minimum,
                             order_key_t<C>* maximum) {
  const bool nan = low < kLargestKey<C> || high > kLeastKey<C>;
  constexpr order_key_t<C> kNaN = OrderKey<C>::kInfinity | order_key_t<C>{1}
                                                               << (sizeof(C) == 4 ? 22 : 51);
  *minimum = nan ? kNaN : order_bits(low);
  *maximum = nan ? kNaN : order_bits(high);
}

// Blocks that are neighbours in memory as blocks of one long row.
REGKERN_HD Blocks flattened(const Blocks& b) {
  const bool rows_alone = b.block_rows == 1 && b.cols % b.block_cols == 0;
  const bool whole_rows = b.block_cols >= b.cols && b.rows % b.block_rows == 0;
  if ((b.shared && b.outer != 1) || !(rows_alone || whole_rows)) return b;
  const int64_t width = rows_alone ? b.block_cols : b.block_rows * b.cols;
  return {1, 1, b.outer * b.rows * b.cols, 1, width, false};
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(block_range, quantize::BlockRangeArgs)
}
