#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "proximal/lines.h"

// The proximal operator of 1-d total variation, exactly, by Condat's direct algorithm: it walks
// along the line with the least and the largest value that the running segment may take, and closes
// the segment where no value will do any more.

namespace regkern::proximal {

struct TotalVariationArgs {
  Dtype dtype;
  const void* x;
  const double* lam;   // per slice, or one for all of them
  int64_t lam_stride;  // 1 or 0
  Slices slices;
  void* y;
  int8_t* jump;  // as x: Jump behind each element
};

template <typename T>
REGKERN_HD void total_variation_line(const Line<const T>& x, int64_t n, double lam,
                                     const Line<T>& y, const Line<int8_t>& jump) {
  const auto at = [&](int64_t i) { return static_cast<double>(widen(x[i])); };
  if (lam == 0.0) {
    for (int64_t i = 0; i < n; ++i) {
      const double step = i + 1 < n ? at(i + 1) - at(i) : 0.0;
      jump[i] = i + 1 == n ? kLevel : step > 0.0 ? kUp : step < 0.0 ? kDown : kCut;
      y[i] = x[i];
    }
    return;
  }
  double most = 0.0;
  bool finite = lam > 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double a = at(i) < 0.0 ? -at(i) : at(i);
    finite = finite && a - a == 0.0;
    most = a > most ? a : most;
  }
  if (!finite) {
    const double nan = bit_cast<double>(int64_t{0x7FF8000000000000});
    return close_segment(y, jump, 0, n - 1, nan, kLevel);
  }
  // From here on the line is its mean.
  const double enough = 2.0 * static_cast<double>(n) * most + 1.0;
  if (lam > enough) lam = enough;

  int64_t k = 0, first = 0, low_end = 0, high_end = 0;  // the extremes are reached up to these
  double low = at(0) - lam, high = at(0) + lam;         // of the running segment
  double low_slack = lam, high_slack = -lam;            // of the dual variable at either extreme
  for (;;) {
    if (k == n - 1) {
      // The dual variable ends at zero.
      if (low_slack < 0.0) {
        low_end = low_end > first ? low_end : first;
        close_segment(y, jump, first, low_end, low, kDown);
        first = k = low_end = low_end + 1;
        low = at(k);
        low_slack = lam;
        high_slack = low + low_slack - high;
      } else if (high_slack > 0.0) {
        high_end = high_end > first ? high_end : first;
        close_segment(y, jump, first, high_end, high, kUp);
        first = k = high_end = high_end + 1;
        high = at(k);
        high_slack = -lam;
        low_slack = high + high_slack - low;
      } else {
        low += low_slack / static_cast<double>(k - first + 1);
        return close_segment(y, jump, first, k, low, kLevel);
      }
      continue;
    }
    const double next = at(k + 1);
    low_slack += next - low;
    if (low_slack < -lam) {
      low_end = low_end > first ? low_end : first;
      close_segment(y, jump, first, low_end, low, kDown);
      first = k = low_end = high_end = low_end + 1;
      low = at(k);
      high = low + 2.0 * lam;
      low_slack = lam;
      high_slack = -lam;
      continue;
    }
    high_slack += next - high;
    if (high_slack > lam) {
      high_end = high_end > first ? high_end : first;
      close_segment(y, jump, first, high_end, high, kUp);
      first = k = low_end = high_end = high_end + 1;
      high = at(k);
      low = high - 2.0 * lam;
      low_slack = lam;
      high_slack = -lam;
      continue;
    }
    ++k;
    if (low_slack >= lam) {
      low += (low_slack - lam) / static_cast<double>(k - first + 1);
      low_end = k;
      low_slack = lam;
    }
    if (high_slack <= -lam) {
      high += (high_slack + lam) / static_cast<double>(k - first + 1);
      high_end = k;
      high_slack = -lam;
    }
  }
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(total_variation, proximal::TotalVariationArgs)
}
