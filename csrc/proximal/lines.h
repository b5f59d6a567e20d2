#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/math.h"
#include "proximal/slices.h"

// Slices that are worked on from one end to the other: what decides about an element is what came
// before it. A thread has a slice, on the CPU and on the GPU, and runs the same code.

namespace regkern::proximal {

// Elements of a slice along a dimension (inner = 1), or of a row.
template <typename T>
struct Line {
  T* data;
  int64_t step;

  REGKERN_HD T& operator[](int64_t k) const { return data[k * step]; }
};

template <typename T>
REGKERN_HD Line<T> line_of(T* data, const Slices& s, int64_t slice) {
  return {data + slice_start(s, slice), s.outer == 1 ? 1 : s.count};
}

// Where a piecewise constant line changes, behind an element: not at all, down, up, or, where each
// element is a piece of its own whatever it holds, `cut`.
enum Jump : int8_t { kDown = -1, kLevel = 0, kUp = 1, kCut = 2 };

// The segment [first, last] has a value and a jump behind it.
template <typename T>
REGKERN_HD void close_segment(const Line<T>& y, const Line<int8_t>& jump, int64_t first,
                              int64_t last, double value, Jump behind) {
  const T stored = narrowed<T>(static_cast<compute_t<T>>(value));
  for (int64_t i = first; i <= last; ++i) {
    y[i] = stored;
    jump[i] = i == last ? behind : kLevel;
  }
}

}  // namespace regkern::proximal
