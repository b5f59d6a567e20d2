#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"

// Counts of the elements in bins of equal width:
//
//     bin of x = ⌊(x − low) · bins / (high − low)⌋,   the last one including `high`
//
// in double whatever the dtype, so that all of them agree where an edge lies. What is below, above
// or NaN is counted apart. A range that is no range (reversed, infinite, NaN) has no bins: all of x
// counts as NaN.

namespace regkern::quantize {

constexpr int kOutside = 3;  // below, above, NaN

struct HistogramArgs {
  Dtype dtype;
  const void* x;
  int64_t numel;
  const double* low;
  const double* high;
  int64_t bins;
  bool magnitude;    // of |x|
  bool clip;         // count what is below and above in the end bins too
  int64_t* counts;   // (bins)
  int64_t* outside;  // (kOutside)
};

struct Bins {
  double low, high, scale;
  int32_t bins;
  bool valid;
};

REGKERN_HD Bins load_bins(const HistogramArgs& args) {
  const double low = *args.low, high = *args.high, width = high - low;
  const bool valid = width >= 0.0 && width < __builtin_inf();
  const double scale = width > 0.0 ? static_cast<double>(args.bins) / width : 0.0;
  return {low, high, scale, static_cast<int32_t>(args.bins), valid};
}

// The bin of x; `bins` and the two after it for what is outside.
REGKERN_HD int32_t slot_of(const Bins& b, double x) {
  // Compared first: a conversion of what does not fit is undefined.
  const double t = (x - b.low) * b.scale, last = static_cast<double>(b.bins - 1);
  const bool inside = x >= b.low && x <= b.high && b.valid;
  const double place = inside ? (t < last ? t : last) : 0.0;
  const int32_t other = x < b.low && b.valid ? 0 : x > b.high && b.valid ? 1 : 2;
  return inside ? static_cast<int32_t>(place) : b.bins + other;
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(histogram, quantize::HistogramArgs)
}
