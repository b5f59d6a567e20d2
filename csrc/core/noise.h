#pragma once

#include "core/math.h"
#include "core/philox.h"

namespace regkern {

// The standard normal of one element: word pair (e mod 4) / 2 of counter e / 4, its cosine half if
// e is even. vec.h makes the same numbers by the block.
REGKERN_HD float normal_of(Seed seed, uint64_t element) {
  const Words words = philox(seed, Stream::noise, element / 4);
  float c, s;
  if (element & 2)
    normal_pair(words.w[2], words.w[3], &c, &s);
  else
    normal_pair(words.w[0], words.w[1], &c, &s);
  return element & 1 ? s : c;
}

}  // namespace regkern
