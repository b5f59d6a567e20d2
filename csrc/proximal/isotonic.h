#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"
#include "proximal/lines.h"

// Isotonic regression by pooling adjacent violators.

namespace regkern::proximal {

// Pools of neighbours that violate the order: sums of a slice's pools so far, a stack in scratch.
struct IsotonicArgs {
  Dtype dtype;
  const void* x;
  const void*
      weights;  // as x: weights, or the logarithms of weights in entropic regression; or null
  bool increasing, entropic;
  Slices slices;
  void* y;
  int8_t* jump;
  double* scratch;  // 3 numbers per element; null on the CPU, which has its own
};

REGKERN_HD double log_add(double a, double b) {
  const double high = a > b ? a : b, low = a > b ? b : a;
  const double d = low - high;
  return d > -700.0 ? high + regkern::log(1.0 + regkern::exp(d)) : high;
}

// Non-decreasing y nearest to x: pools merge from the left while their values fall. A pool has the
// value sum / weight, or in entropic regression log Σ eˣ − log Σ w.
template <typename T>
REGKERN_HD void isotonic_line(const Line<const T>& x, const Line<const T>& w, int64_t n,
                              bool increasing, bool entropic, const Line<T>& y,
                              const Line<int8_t>& jump, double* sums, double* weights,
                              double* ends) {
  const double sign = increasing ? 1.0 : -1.0;
  bool finite = true;
  int64_t pools = 0;
  const auto value_of = [&](int64_t p) {
    return entropic ? sums[p] - weights[p] : sums[p] / weights[p];
  };
  for (int64_t i = 0; i < n; ++i) {
    const double xi = static_cast<double>(widen(x[i]));
    const double given = w.data != nullptr ? static_cast<double>(widen(w[i])) : 1.0;
    const double wi = w.data == nullptr && entropic ? 0.0 : given;
    // A weight of zero has the logarithm -inf.
    finite = finite && xi - xi == 0.0 && (wi - wi == 0.0 || (entropic && wi < 0.0));
    sums[pools] = entropic ? xi : wi * xi;
    weights[pools] = wi;
    ends[pools] = static_cast<double>(i);
    ++pools;
    while (pools > 1 && sign * value_of(pools - 2) > sign * value_of(pools - 1)) {
      --pools;
      if (entropic) {
        sums[pools - 1] = log_add(sums[pools - 1], sums[pools]);
        weights[pools - 1] = log_add(weights[pools - 1], weights[pools]);
      } else {
        sums[pools - 1] += sums[pools];
        weights[pools - 1] += weights[pools];
      }
      ends[pools - 1] = ends[pools];
    }
  }
  if (!finite) {
    const double nan = bit_cast<double>(int64_t{0x7FF8000000000000});
    return close_segment(y, jump, 0, n - 1, nan, kLevel);
  }
  int64_t first = 0;
  for (int64_t p = 0; p < pools; ++p) {
    const auto last = static_cast<int64_t>(ends[p]);
    close_segment(y, jump, first, last, value_of(p),
                  p + 1 == pools ? kLevel : (increasing ? kUp : kDown));
    first = last + 1;
  }
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(isotonic, proximal::IsotonicArgs)
}
