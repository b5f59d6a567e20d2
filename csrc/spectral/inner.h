#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/list_sums.h"

// ⟨x, y⟩ of every pair of a list, in double, in the order of core/list_sums.h.

namespace regkern::spectral {

struct InnerRow {
  const void *x, *y;
  int64_t numel, first, span;
};

struct InnerArgs {
  Dtype dtype;
  const InnerRow* rows;
  int64_t count;
  double* spans;  // scratch: a number for each span
  double* out;    // (count)
};

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(inner, spectral::InnerArgs)
}
