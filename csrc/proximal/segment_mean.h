#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "proximal/lines.h"

namespace regkern::proximal {

// The mean of each segment between jumps: the derivative of what is constant there.
struct SegmentMeanArgs {
  Dtype dtype;
  const void* x;
  const int8_t* jump;
  Slices slices;
  void* y;
};

template <typename T>
REGKERN_HD void segment_mean_line(const Line<const T>& x, const Line<const int8_t>& jump, int64_t n,
                                  const Line<T>& y) {
  for (int64_t first = 0; first < n;) {
    double sum = 0.0;
    int64_t last = first;
    for (;; ++last) {
      sum += static_cast<double>(widen(x[last]));
      if (last == n - 1 || jump[last] != kLevel) break;
    }
    const T mean =
        narrowed<T>(static_cast<compute_t<T>>(sum / static_cast<double>(last - first + 1)));
    for (; first <= last; ++first) y[first] = mean;
  }
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(segment_mean, proximal::SegmentMeanArgs)
}
