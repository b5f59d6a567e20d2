#pragma once

#include <cstdint>

#include "core/macros.h"

// What shares a scale. The tensor is seen as (outer, rows, cols) in memory order and cut into
// blocks of block_rows x block_cols; the last block of an axis may be shorter. That covers
//
//   a tensor            (1, 1, n)              block (1, n)
//   channel of axis a   (before, n_a, after)   block (1, after), shared by the outer ones
//   channel, last axis  (1, rows, n)           block (rows, 1)
//   token               (1, rows, n)           block (1, n)
//   group of g, last    (1, rows, n)           block (1, g)
//   group of g, axis a  (before, n_a, after)   block (g, 1)
//   2-d                 (outer, rows, cols)    block (r, c)

namespace regkern::quantize {

struct Blocks {
  int64_t outer, rows, cols;
  int64_t block_rows, block_cols;
  bool shared;  // one set of blocks for all the outer ones
};

REGKERN_HD int64_t blocks_down(const Blocks& b) {
  return (b.rows + b.block_rows - 1) / b.block_rows;
}
REGKERN_HD int64_t blocks_across(const Blocks& b) {
  return (b.cols + b.block_cols - 1) / b.block_cols;
}
REGKERN_HD int64_t block_count(const Blocks& b) {
  return (b.shared ? 1 : b.outer) * blocks_down(b) * blocks_across(b);
}

// The block of the element at (o, r, c); blocks are numbered in row-major order.
REGKERN_HD int64_t block_of(const Blocks& b, int64_t o, int64_t r, int64_t c) {
  return ((b.shared ? 0 : o) * blocks_down(b) + r / b.block_rows) * blocks_across(b) +
         c / b.block_cols;
}

}  // namespace regkern::quantize
