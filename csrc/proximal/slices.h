#pragma once

#include <cstdint>

#include "core/macros.h"

// Where the slices of a tensor lie that an op works on one at a time: memory in the order (batch,
// outer, count, inner), slice (b, s) having the elements of all o and i.
//
//     along dimension d of a row-major tensor:   (sizes before d, size of d, sizes behind d, 1)
//     one slice per index of dimension d:        (1, sizes before d, size of d, sizes behind d)

namespace regkern::proximal {

struct Slices {
  int64_t batch, outer, count, inner;
};

REGKERN_HD int64_t slice_count(const Slices& s) { return s.batch * s.count; }
REGKERN_HD int64_t slice_size(const Slices& s) { return s.outer * s.inner; }
REGKERN_HD int64_t element_count(const Slices& s) { return slice_count(s) * slice_size(s); }

// The first element of a slice, and element k relative to it.
REGKERN_HD int64_t slice_start(const Slices& s, int64_t slice) {
  const int64_t b = slice / s.count;
  return b * s.outer * s.count * s.inner + (slice - b * s.count) * s.inner;
}
REGKERN_HD int64_t slice_offset(const Slices& s, int64_t k) {
  if (s.outer == 1) return k;
  if (s.inner == 1) return k * s.count;
  const int64_t o = k / s.inner;
  return o * s.count * s.inner + (k - o * s.inner);
}

}  // namespace regkern::proximal
