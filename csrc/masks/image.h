#pragma once

#include <cstdint>

#include "core/macros.h"

namespace regkern::masks {

// A batch of images in memory order: `inner` is the channel count for channels-last tensors, else
// 1, and `outer` whatever stands between batch and height (channels, frames).
struct Images {
  int64_t batch, outer, height, width, inner;
};

REGKERN_HD int64_t sample_size(const Images& m) { return m.outer * m.height * m.width * m.inner; }

// A half-open box of pixels; empty where begin >= end.
struct Box {
  int32_t y0, y1, x0, x1;
};

REGKERN_HD bool contains(const Box& box, int64_t y, int64_t x) {
  return y >= box.y0 && y < box.y1 && x >= box.x0 && x < box.x1;
}

// What of a box lies inside the image. Boxes on a GPU cannot be checked beforehand.
REGKERN_HD Box clipped(const Box& box, const Images& m) {
  const auto height = static_cast<int32_t>(m.height), width = static_cast<int32_t>(m.width);
  Box b{box.y0 > 0 ? box.y0 : 0, box.y1 < height ? box.y1 : height, box.x0 > 0 ? box.x0 : 0,
        box.x1 < width ? box.x1 : width};
  if (b.y0 >= b.y1 || b.x0 >= b.x1) b = Box{0, 0, 0, 0};
  return b;
}

REGKERN_HD Box load_box(const int32_t* boxes, int64_t i) {
  return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

REGKERN_HD void store_box(const Box& box, int32_t* boxes, int64_t i) {
  boxes[4 * i] = box.y0;
  boxes[4 * i + 1] = box.y1;
  boxes[4 * i + 2] = box.x0;
  boxes[4 * i + 3] = box.x1;
}

}  // namespace regkern::masks
