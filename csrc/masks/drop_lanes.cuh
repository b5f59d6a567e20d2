#pragma once

#include "core/tensor_list.cuh"
#include "masks/dropout.h"

// Factors of a mask that is drawn, for the neighbours of a thread.

namespace regkern::masks {

// By the bits of eight neighbours from `element` on: `scale` where they are kept, else 0.
template <typename C>
__device__ __forceinline__ void level_factors(Seed seed, uint64_t element,
                                              const uint32_t bits[kListLanes], DropLevel level,
                                              C scale, C factors[kListLanes]) {
  uint32_t ties = 0;
#pragma unroll
  for (int i = 0; i < kListLanes; ++i) {
    factors[i] = bits[i] >= level.upper ? scale : C(0);
    ties |= static_cast<uint32_t>(bits[i] == level.upper) << i;
  }
  // One in 65536: a loop, that the generator's code is there once.
  if (ties == 0 || level.lower == 0) return;
#pragma unroll 1
  for (int i = 0; i < kListLanes; ++i) {
    if ((ties >> i & 1u) == 0) continue;
    const bool kept = keeps_tie(seed, element + static_cast<uint64_t>(i), level);
#pragma unroll
    for (int k = 0; k < kListLanes; ++k) factors[k] = k == i && !kept ? C(0) : factors[k];
  }
}

}  // namespace regkern::masks
