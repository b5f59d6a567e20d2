#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"

// Rows of a batch by a list of places, and what its derivatives need. With N rows of x and M ids,
//
//     y_j = x_{id_j}  for 0 ≤ id_j < N,   fill  for id_j ≥ N,   0  for id_j < 0
//
// Where no id is there twice, dx is the same map with the inverse list: every row is written once,
// and nothing is added up. The gradient of the fill is the sum of the rows that took it.

namespace regkern::masks {

struct PatchCopyArgs {
  const void* x;
  int64_t x_sample, x_row;  // strides in bytes; a row is `bytes` in a piece
  int64_t batch, count;     // samples; rows of x in each
  int64_t rows, bytes;      // rows of y, and their length
  const int64_t* ids;       // (batch, rows)
  const void* fill;         // null, or a row
  void* y;                  // (batch, rows, bytes)
};

// inverse[id_j] ← j, and −1 where no id points.
struct PatchInverseArgs {
  const int64_t* ids;  // (batch, rows); those outside of [0, count) are not looked at
  int64_t batch, rows, count;
  int64_t* inverse;  // (batch, count)
};

// Chunks of kFillRows rows are added up in order, in the compute type, and these in order, in
// double.
constexpr int64_t kFillRows = 256;

struct PatchFillSumArgs {
  Dtype dtype;
  const void* g;  // (rows, columns)
  int64_t rows, columns;
  const int64_t* ids;  // (rows); a row counts if its id is `count` at least
  int64_t count;
  double* chunks;  // scratch: (⌈rows / kFillRows⌉, columns)
  void* sum;       // (columns)
};

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(patch_copy, masks::PatchCopyArgs)
REGKERN_DECLARE_KERNEL(patch_inverse, masks::PatchInverseArgs)
REGKERN_DECLARE_KERNEL(patch_fill_sum, masks::PatchFillSumArgs)
}  // namespace regkern
