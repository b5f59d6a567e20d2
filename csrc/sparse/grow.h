#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"

// Where a sparse matrix may grow: of some rows of scores, the places without an entry whose
// magnitude is above a threshold,
//
//     { (r, c) : not |s_rc| ≤ t, (r, c) is no entry },
//
// appended to a list in the order of their places. NaN is above everything. Rows are counted before
// anything is written, so that each knows where its places go.

namespace regkern::sparse {

struct GrowScanArgs {
  bool wide;  // float64
  int64_t rows, columns, nnz;
  int64_t first;           // the row of the matrix that the first of these is
  const int64_t* offsets;  // (rows + 1), of these rows
  const int32_t* index;    // (nnz), of all
  const void* scores;      // (rows, columns)
  const void* threshold;   // of one element; negative: everything is above
  // Scratch.
  uint64_t* bits;  // (rows, grow_words(columns)) on a GPU
  int64_t* ends;   // (rows)
  // The list. What it has no room for is counted and not written.
  int64_t capacity;
  int64_t* places;
  void* magnitudes;
  int64_t* found;  // how many there are, before and after
};

REGKERN_HD int64_t grow_words(int64_t columns) { return (columns + 63) / 64; }

}  // namespace regkern::sparse

namespace regkern {
REGKERN_DECLARE_KERNEL(sparse_grow_scan, sparse::GrowScanArgs)
}  // namespace regkern
