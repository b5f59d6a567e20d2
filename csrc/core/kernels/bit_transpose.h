#pragma once

#include <cstdint>

#include "core/bits.h"
#include "core/isa.h"

namespace regkern {

// Packed (batch, rows, cols) to (batch, cols, rows): a mask between channels-first and -last order.
struct BitTransposeArgs {
  const uint32_t* in;
  uint32_t* out;
  int64_t batch, rows, cols;
};

REGKERN_DECLARE_KERNEL(bit_transpose, BitTransposeArgs)

}  // namespace regkern
