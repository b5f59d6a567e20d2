#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"

// Transport on the line. x and y are sorted, and element i of x has the mass between cumulated
// weights A_{i−1} and A_i, which goes to the elements of y that have the same quantiles:
//
//     cost_i = Σ_j |[A_{i−1}, A_i] ∩ [B_{j−1}, B_j]| |x_i − y_j|^p
//
// Its slope is the derivative in x_i, and its cut that of the total in A_i: mass between x_i and
// x_{i+1} changes hands at y_j. Where y changes there as well, x goes first: `after` says that y is
// the one that asks. So the cuts are differences of dual potentials, at ties too.

namespace regkern::transport {

struct QuantileCostArgs {
  int64_t rows, n, m;
  double p;
  bool after;
  const double *x, *y, *a, *b;  // sorted values and cumulated weights
  double *cost, *slope, *cut;   // (rows, n)
};

// |d|^q, with 0⁰ = 1.
REGKERN_HD double power_of(double d, double q) {
  const double size = regkern::fabs(d);
  if (q == 0.0) return size == size ? 1.0 : size;
  if (q == 1.0) return size;
  if (q == 2.0) return size * size;
  const bool plain = size > 0.0 && size < __builtin_inf();
  return plain ? regkern::exp(q * regkern::log(size)) : size;
}

// The first j with b[j] > mass, or ≥ where `equal`; m − 1 where there is none.
REGKERN_HD int64_t quantile_place(const double* b, int64_t m, double mass, bool equal) {
  int64_t low = 0, high = m - 1;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const bool found = equal ? b[middle] >= mass : b[middle] > mass;
    if (found)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

REGKERN_HD void quantile_element(const QuantileCostArgs& args, int64_t row, int64_t i) {
  const int64_t n = args.n, m = args.m;
  const double *x = args.x + row * n, *y = args.y + row * m;
  const double *a = args.a + row * n, *b = args.b + row * m;
  const double end = a[i], here = x[i];
  double at = i > 0 ? a[i - 1] : 0.0, cost = 0.0, slope = 0.0;
  if (end > at) {
    for (int64_t j = quantile_place(b, m, at, false); at < end; ++j) {
      const double stop = j == m - 1 || b[j] > end ? end : b[j];
      const double d = here - y[j], mass = stop - at;
      if (mass > 0.0) {
        cost += mass * power_of(d, args.p);
        const double steep = mass * args.p * power_of(d, args.p - 1.0);
        slope += d > 0.0 ? steep : (d < 0.0 ? -steep : 0.0);
      }
      at = stop;
    }
  } else if (!(end <= at)) {
    cost = slope = __builtin_nan("");
  }
  double cut = 0.5 * power_of(here - y[m - 1], args.p);
  if (i + 1 < n) {
    const double other = y[quantile_place(b, m, end, !args.after)];
    cut = power_of(here - other, args.p) - power_of(x[i + 1] - other, args.p);
  }
  args.cost[row * n + i] = cost;
  args.slope[row * n + i] = slope;
  args.cut[row * n + i] = cut;
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(quantile_cost, transport::QuantileCostArgs)
}
