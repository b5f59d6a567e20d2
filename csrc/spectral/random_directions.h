#pragma once

#include "core/dtype.h"
#include "core/isa.h"
#include "core/noise.h"
#include "core/tensor_list.h"

// y = x + s n, or s n, for a list of tensors; n is standard normal, or ±1 with equal chances. Draws
// are numbered by the element of the list.

namespace regkern::spectral {

enum class Distribution { normal, rademacher };

struct DirectionRow {
  const void* x;  // null: zeros
  void* y;
  int64_t numel, first;
};

struct RandomDirectionsArgs {
  Dtype dtype;
  Distribution kind;
  const DirectionRow* rows;
  int64_t count;
  const double* scale;
  const int64_t* seed;
};

constexpr int64_t kSigns = 128;  // of a counter
static_assert(kSigns == kListAlign);

// ±1 of one element: bit e mod 32 of word e / 32 mod 4 of counter e / 128.
REGKERN_HD float sign_of(const Words& words, int i) {
  const int w = i / 32;
  const uint32_t word = w == 0   ? words.w[0]
                        : w == 1 ? words.w[1]
                        : w == 2 ? words.w[2]
                                 : words.w[3];
  return (word >> (i % 32)) & 1u ? -1.0f : 1.0f;
}

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(random_directions, spectral::RandomDirectionsArgs)
}
