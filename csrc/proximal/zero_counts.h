#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"

// How many elements, rows (dim 0) and columns (dim 1) of every tensor of a list are zero.

namespace regkern::proximal {

struct ZeroRow {
  Dtype dtype;
  const void* data;
  int64_t numel, first;
  int64_t rows, columns, inner;
  int64_t row_flags, column_flags;  // where its flags begin: 1 where something is not zero
};

struct ZeroCountsArgs {
  const ZeroRow* rows;
  int64_t count;
  int64_t flags;  // in all
  int32_t* seen;  // scratch: a flag for every row and column
  int64_t* out;   // (count, 3): zeros, zero rows, zero columns
};

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(zero_counts, proximal::ZeroCountsArgs)
}  // namespace regkern
