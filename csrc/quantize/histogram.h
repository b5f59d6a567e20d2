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
  double low, high, scale, count;
};

REGKERN_HD Bins load_bins(const HistogramArgs& args) {
  const double low = *args.low, high = *args.high, width = high - low;
  const double count = static_cast<double>(args.bins);
  // Nothing is inside of, below or above NaN.
  if (!(width >= 0.0 && width < __builtin_inf()))
    return {__builtin_nan(""), __builtin_nan(""), 0.0, count};
  return {low, high, width > 0.0 ? count / width : 0.0, count};
}

// The bin of x; `bins` and the two after it for what is outside. In double to the end, which
// vectorises; a conversion of what does not fit an int32 would be undefined.
REGKERN_HD int32_t slot_of(const Bins& b, double x) {
  const double t = (x - b.low) * b.scale;
  const double inside = t < b.count - 1.0 ? t : b.count - 1.0;
  const double below = x < b.low ? b.count : b.count + 2.0;
  const double outside = x > b.high ? b.count + 1.0 : below;
  return static_cast<int32_t>((x >= b.low) & (x <= b.high) ? inside : outside);
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(histogram, quantize::HistogramArgs)
}
