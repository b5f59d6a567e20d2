#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/noise.h"
#include "masks/image.h"

// Random erasing (Zhong et al., AAAI 2020) and Cutout (DeVries and Taylor, 2017):
//
//     y = x outside the boxes, the fill inside.
//
// What is erased is replaced, not multiplied: a NaN in a box is gone.

namespace regkern::masks {

enum class Fill : int {
  value,    // one number, or one per channel
  channel,  // a standard normal per box and channel
  pixel     // a standard normal per element
};

struct RandomErasingArgs {
  Dtype dtype;
  Images images;
  int64_t channels, frames;  // outer = channels · frames, or inner = channels (channels last)
  void* y;                   // written inside the boxes alone
  const int32_t* boxes;      // (batch, boxes_per_sample, 4)
  int64_t boxes_per_sample;
  Fill fill;
  const double* values;  // (1) or (channels), with Fill::value
  int64_t value_count;
  const int64_t* seed;
};

// A place in a sample: its row (outer · height + y) and its column (x · inner + i).
REGKERN_HD int64_t channel_of(const RandomErasingArgs& a, int64_t outer, int64_t inner) {
  return a.images.inner > 1 || a.channels == 1 ? inner : outer / a.frames;
}

REGKERN_HD int64_t element_of(const RandomErasingArgs& a, int64_t b, int64_t outer, int64_t y,
                              int64_t x, int64_t inner) {
  const Images& m = a.images;
  const int64_t c = m.inner > 1 ? inner : outer / a.frames;
  const int64_t t = m.inner > 1 ? outer : outer % a.frames;
  return (((b * a.channels + c) * a.frames + t) * m.height + y) * m.width + x;
}

// The fill of a channel where it does not depend on the element.
REGKERN_HD double channel_fill(const RandomErasingArgs& a, int64_t b, int64_t box, int64_t c) {
  if (a.fill == Fill::value) return a.values[a.value_count > 1 ? c : 0];
  const int64_t item = (b * a.boxes_per_sample + box) * a.channels + c;
  return static_cast<double>(normal_of(load_seed(a.seed), static_cast<uint64_t>(item)));
}

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(random_erasing, masks::RandomErasingArgs)
}
