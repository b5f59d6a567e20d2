#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/list_sums.h"
#include "core/square_sum.h"

// ⟨x, y⟩ of every pair of a list. A segment's products are added in the compute type in the order
// of core/square_sum.h, and again in double where that left the range of float; segments are added
// in double in the order of core/list_sums.h.

namespace regkern::spectral {

struct InnerRow {
  const void *x, *y;
  int64_t numel;
  int64_t segment;  // the number of its first segment in the list
};

REGKERN_HD int64_t segment_count(int64_t numel) { return (numel + kSegment - 1) / kSegment; }

struct InnerArgs {
  Dtype dtype;
  const InnerRow* rows;
  int64_t count;
  double* segments;  // scratch: a number for each
  double* out;       // (count)
};

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(inner, spectral::InnerArgs)
}
