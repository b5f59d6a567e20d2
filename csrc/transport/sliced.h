#pragma once

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"

// Optimal transport on lines: of each slice two sorted runs of numbers with weights, and the cost of
// the monotone plan,
//
//     Σ_ij m_ij |x_(i) − y_(j)|^p,
//
// where m_ij is how much of the quantiles of x_(i) and of those of y_(j) is the same. Its gradient
// goes back to where the numbers stood before they were sorted.
//
// Everything is computed in double. Element i of a slice is for lane i mod kSliceLanes; a lane adds
// in order, and lanes are added by halves.

namespace regkern::transport {

struct SlicedArgs {
  Dtype dtype;  // float32 or float64
  int64_t slices, rows, columns;
  double power;          // p ≥ 1
  const void* x;         // (slices, rows), sorted
  const void* y;         // (slices, columns), sorted
  const double* a;       // (slices, rows): weights up to and with this one, or null: all the same
  const double* b;       // (slices, columns), or null; both or none
  void* cost;            // (slices)
};

struct SlicedSlopesArgs {
  SlicedArgs lines;
  const void* g;         // (slices)
  const int64_t* order_x;  // (slices, rows): where the sorted numbers stood
  const int64_t* order_y;
  void* dx;
  void* dy;
};

constexpr int kSliceLanes = 256;

// One of the two runs of a slice. Without weights element i has the quantiles [i, i + 1) · other, in
// units of 1 / (count · other), which is exact.
struct Quantiles {
  const double* ends;  // or null
  int64_t count, other;
};

REGKERN_HD double quantile_end(const Quantiles& q, int64_t i) {
  return q.ends == nullptr ? static_cast<double>((i + 1) * q.other) : q.ends[i];
}
REGKERN_HD double quantile_begin(const Quantiles& q, int64_t i) {
  return i == 0 ? 0.0 : quantile_end(q, i - 1);
}

// The first element whose quantiles end beyond those before element i of the other run.
REGKERN_HD int64_t first_beyond(const Quantiles& q, int64_t i, double quantile) {
  if (q.ends == nullptr) return i * q.count / q.other;
  int64_t low = 0;
  for (int64_t high = q.count; low < high;) {
    const int64_t middle = low + (high - low) / 2;
    if (q.ends[middle] > quantile)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// What sums are multiplied with: masses are in units of quantiles, or of elements where every
// element has one of the other run for itself.
REGKERN_HD double mass_unit(const SlicedArgs& args) {
  if (args.a != nullptr) return 1.0;
  const double rows = static_cast<double>(args.rows);
  return args.rows == args.columns ? 1.0 / rows
                                   : 1.0 / (rows * static_cast<double>(args.columns));
}

// Σ_j m_ij term(j) for element i of one run.
REGKERN_CALLS_ARGUMENT
template <typename Term>
REGKERN_HD double sum_over_quantiles(const Quantiles& own, const Quantiles& other, int64_t i,
                                     const Term& term) {
  if (own.ends == nullptr && own.count == other.count) return term(i);
  const double begin = quantile_begin(own, i), end = quantile_end(own, i);
  double sum = 0.0;
  for (int64_t j = first_beyond(other, i, begin); j < other.count; ++j) {
    const double there = quantile_begin(other, j), to = quantile_end(other, j);
    if (there >= end) break;
    const double mass = (to < end ? to : end) - (there > begin ? there : begin);
    if (mass > 0.0) sum += mass * term(j);
  }
  return sum;
}

// |d|^p, and p |d|^(p − 1) sgn d. The logarithm is one of finite numbers.
REGKERN_HD double power_of(double d, double p) {
  const double a = fabs(d);
  if (p == 1.0) return a;
  if (p == 2.0) return a * a;
  const double power = regkern::exp(p * regkern::log(choose(a > 0.0, a, 1.0)));
  return choose(a == 0.0, 0.0, choose(a < __builtin_inf(), power, a));
}
REGKERN_HD double slope_of(double d, double p) {
  if (p == 2.0) return 2.0 * d;
  const double sign = d > 0.0 ? 1.0 : d < 0.0 ? -1.0 : d - d;
  if (p == 1.0) return sign;
  return p * power_of(d, p - 1.0) * sign;
}

template <typename T>
REGKERN_HD double slice_term(const SlicedArgs& args, int64_t slice, int64_t i) {
  const Quantiles a{args.a == nullptr ? nullptr : args.a + slice * args.rows, args.rows,
                    args.columns};
  const Quantiles b{args.b == nullptr ? nullptr : args.b + slice * args.columns, args.columns,
                    args.rows};
  const T* const x = static_cast<const T*>(args.x) + slice * args.rows;
  const T* const y = static_cast<const T*>(args.y) + slice * args.columns;
  const double here = static_cast<double>(x[i]);
  return sum_over_quantiles(
      a, b, i, [=](int64_t j) { return power_of(here - static_cast<double>(y[j]), args.power); });
}

// The slope of a slice's cost by element i of x, or of y.
template <bool kOfX, typename T>
REGKERN_HD double slice_slope(const SlicedArgs& args, int64_t slice, int64_t i) {
  const Quantiles a{args.a == nullptr ? nullptr : args.a + slice * args.rows, args.rows,
                    args.columns};
  const Quantiles b{args.b == nullptr ? nullptr : args.b + slice * args.columns, args.columns,
                    args.rows};
  const T* const x = static_cast<const T*>(args.x) + slice * args.rows;
  const T* const y = static_cast<const T*>(args.y) + slice * args.columns;
  const double here = static_cast<double>(kOfX ? x[i] : y[i]);
  const T* const there = kOfX ? y : x;
  return sum_over_quantiles(kOfX ? a : b, kOfX ? b : a, i, [=](int64_t j) {
    return slope_of(here - static_cast<double>(there[j]), args.power);
  });
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(sliced_cost, transport::SlicedArgs)
REGKERN_DECLARE_KERNEL(sliced_slopes, transport::SlicedSlopesArgs)
}  // namespace regkern
