#pragma once

#include <cstdint>

#include "core/macros.h"

namespace regkern::quantize {

// The random bits of an element of a list: `which` tells apart what is rounded of it, the weight
// and the states of its optimizer. An element takes 16 bits.
constexpr uint64_t kElementsApart = uint64_t{1} << 50;

REGKERN_HD uint64_t rounded_element(int which, int64_t element) {
  return static_cast<uint64_t>(which) * kElementsApart + static_cast<uint64_t>(element);
}

}  // namespace regkern::quantize
