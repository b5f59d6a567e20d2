#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"

// The entries of a pattern, written into a dense matrix:
//
//     W_rc ← v_e + b_e        at entry e = (r, c), with b_e = 0 where there is no base
//
// The sum is taken in the compute type, and rounded once.

namespace regkern::sparse {

struct EntryWriteArgs {
  Dtype dtype;  // of the matrix
  int64_t rows, columns, nnz;
  const int64_t* offsets;  // (rows + 1)
  const int32_t* index;    // (nnz)
  const void* values;      // (nnz) in the compute type
  const void* base;        // as values, or null
  void* weight;            // (rows, columns)
};

}  // namespace regkern::sparse

namespace regkern {
REGKERN_DECLARE_KERNEL(sparse_write, sparse::EntryWriteArgs)
}  // namespace regkern
