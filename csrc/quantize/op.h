#pragma once

// What the torch-facing files of the family share.

#include "core/op.h"
#include "quantize/blocks.h"

namespace regkern::quantize {

inline Blocks parse_blocks(const Checks& check, const std::vector<int64_t>& b, int64_t numel) {
  check.that(b.size() == 6,
             "`blocks` of 6 numbers (outer, rows, cols, block_rows, block_cols, shared)",
             std::to_string(b.size()));
  check.that(b[0] >= 0 && b[1] >= 0 && b[2] >= 0 && b[0] * b[1] * b[2] == numel,
             "`blocks` of " + std::to_string(numel) + " elements, outer * rows * cols",
             std::to_string(b[0]) + " * " + std::to_string(b[1]) + " * " + std::to_string(b[2]));
  check.that(b[3] >= 1 && b[4] >= 1, "`blocks` with block_rows and block_cols of at least 1",
             std::to_string(b[3]) + " and " + std::to_string(b[4]));
  check.that(b[5] == 0 || b[5] == 1, "the last of `blocks` to be 0 or 1", std::to_string(b[5]));
  // A block beyond the tensor is one of the whole axis; sizes of blocks are multiplied later.
  const int64_t rows = b[1] > 1 ? b[1] : 1, cols = b[2] > 1 ? b[2] : 1;
  return {b[0], b[1], b[2], b[3] < rows ? b[3] : rows, b[4] < cols ? b[4] : cols, b[5] == 1};
}

}  // namespace regkern::quantize
