#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/math.h"

// Transport between clouds of points, whose n x m costs are never stored. With q = 1 / eps,
//
//     c(x, y) = r(x) + s(y) − κ <x, y>   or   κ |x − y|   or   r(x) + s(y) + κ |x − y|²
//
// the exponent of an entry, in powers of two, is a number of its column and one of the pair:
//
//     t_ij = (log2 e) (log b_j + q (g_j − s_j)) + k_ij,   k_ij = (log2 e) q κ <x_i, y_j>, say
//
//     softmin    f_i = −eps log Σ_j b_j exp(q (g_j − c_ij)) = r_i − eps (ln 2) log2 Σ_j 2^t_ij
//     plan       P_ij = 2^(t_ij + (log2 e)(log a_i + q (f_i − r_i)))
//
// Points come as rows (n, d), and as panels (m / kPointPanel, d, kPointPanel): kPointPanel points
// side by side.
//
// The order of sums is the same everywhere:
//
// - <x, y> and |x − y|² are added over the dimensions in order.
// - Column j belongs to lane j mod kPointLanes. A lane has the maximum of its exponents so far, and
// the
//   sum of 2^(t − maximum). A panel moves the maximum, scales the sum, and then adds its
//   kPointGroups powers of the lane, in pairs. In the end the lanes are folded in halves.
// - Products of the plan with values are added by lanes over kPointStretch panels, folded in
// halves,
//   and the stretches are added in order.

namespace regkern::transport {

constexpr int kPointLanes = 32, kPointGroups = 4, kPointPanel = kPointLanes * kPointGroups,
              kPointStretch = 8;

// What is made of two points. The sum of squares costs a subtraction more than a product, and has
// no terms that cancel.
enum class PointKernel { product, distance, square };

// A side of the plan as the other side sees it: n rows, m columns, d dimensions. What there is of
// each point is in double.
struct PointPairs {
  bool wide;  // coordinates and values are double, else float
  PointKernel kernel;
  double factor;  // κ
  int64_t batch, n, m, d;
  const void* rows;            // (batch, n, d)
  const void* panels;          // (batch, ⌈m / kPointPanel⌉, d, kPointPanel), zeros behind the last
  const double* row_terms;     // r (batch, n) or null
  const double* column_terms;  // s (batch, m) or null
  const double* weights;       // b (batch, m)
  const double* potential;     // g (batch, m)
  const double* eps;           // (batch)
  void* bias;                  // (batch, ⌈m / kPointPanel⌉ kPointPanel), scratch
};

struct PointSoftminArgs {
  PointPairs pairs;
  const uint8_t* done;    // (batch) or null: problems whose results are left alone
  const uint8_t* wanted;  // (batch, n) or null: rows that are computed
  double* out;            // (batch, n)
};

struct PointArgmaxArgs {
  PointPairs pairs;
  int64_t* place;  // (batch, n): the first column of the largest entry
};

struct PointApplyArgs {
  PointPairs pairs;
  const double* row_potential;  // f (batch, n)
  const double* row_weights;    // a (batch, n)
  const void* values;           // (batch, ⌈m / kPointPanel⌉, width, kPointPanel), likewise
  int64_t width;
  int power;     // entries are multiplied by |x − y|^power: −1, 0 or 1
  double* sums;  // (batch, n): Σ_j P_ij
  void* out;     // (batch, n, width): Σ_j P_ij V_j
};

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

REGKERN_HD int64_t point_panels(int64_t m) { return (m + kPointPanel - 1) / kPointPanel; }

// 2ˣ of −127 ≤ x ≤ 128, or of −1023 ≤ x ≤ 1024 in double, within 2 ulp: 0 at the lower end and
// below the normal numbers, infinity at the upper end. Adding 1.5 · 2²³ + 127 rounds to the nearest
// integer, whose low bits are then those of the exponent; |r| ≤ ½. For numbers and vectors of them.
template <typename V, typename Bits>
REGKERN_HD V power_of_two_float(V x) {
  const V shifted = x + 12583039.0f;
  const V r = x - (shifted - 12583039.0f);
  V series = 1.32647272e-3f * r + 9.67151264e-3f;
  series = series * r + 5.55073374e-2f;
  series = series * r + 2.40222421e-1f;
  series = series * r + 6.93146978e-1f;
  series = series * r + 1.0f;
  return series * bit_cast<V>(bit_cast<Bits>(shifted) << 23);
}
template <typename V, typename Bits>
REGKERN_HD V power_of_two_double(V x) {
  const V shifted = x + 6755399441056767.0;  // 1.5 · 2⁵² + 1023
  const V r = (x - (shifted - 6755399441056767.0)) * kLn2;
  V series = 1.0 / 6227020800.0 * r + 1.0 / 479001600.0;
  series = series * r + 1.0 / 39916800.0;
  series = series * r + 1.0 / 3628800.0;
  series = series * r + 1.0 / 362880.0;
  series = series * r + 1.0 / 40320.0;
  series = series * r + 1.0 / 5040.0;
  series = series * r + 1.0 / 720.0;
  series = series * r + 1.0 / 120.0;
  series = series * r + 1.0 / 24.0;
  series = series * r + 1.0 / 6.0;
  series = series * r + 0.5;
  series = series * r + 1.0;
  series = series * r + 1.0;
  return series * bit_cast<V>(bit_cast<Bits>(shifted) << 52);
}

// 2ˣ of any x. NaN passes both comparisons.
REGKERN_HD float power_of_two_at(float x) {
  x = x < -127.0f ? -127.0f : x;
  return power_of_two_float<float, uint32_t>(x > 128.0f ? 128.0f : x);
}
REGKERN_HD double power_of_two_at(double x) {
  x = x < -1023.0 ? -1023.0 : x;
  return power_of_two_double<double, uint64_t>(x > 1024.0 ? 1024.0 : x);
}

// A maximum as what is subtracted: of nothing but −∞ that is 0.
template <typename C>
REGKERN_HD C shift_by(C maximum) {
  return choose(maximum == -static_cast<C>(__builtin_inf()), C(0), maximum);
}

// (log2 e) (log weight + (potential − term) / eps). A weight of zero excludes the point, and so
// does a potential of +∞, which a point without partners has.
REGKERN_HD double point_exponent(double weight, double potential, const double* term, double eps) {
  const double infinity = __builtin_inf();
  const double own = (potential - (term == nullptr ? 0.0 : *term)) / eps;
  const double all = kLog2E * (weight > 0.0 ? regkern::log(weight) + own : weight + own);
  return weight == 0.0 || potential == infinity ? -infinity : all;
}

// What t_ij has of its column.
template <typename C>
REGKERN_HD C column_bias(const PointPairs& p, int64_t batch, int64_t j) {
  if (j >= p.m) return -static_cast<C>(__builtin_inf());
  const int64_t at = batch * p.m + j;
  return static_cast<C>(point_exponent(p.weights[at], p.potential[at],
                                       p.column_terms == nullptr ? nullptr : p.column_terms + at,
                                       p.eps[batch]));
}

// What P_ij has of its row besides.
template <typename C>
REGKERN_HD C row_bias(const PointApplyArgs& a, int64_t batch, int64_t i) {
  const PointPairs& p = a.pairs;
  const int64_t at = batch * p.n + i;
  return static_cast<C>(point_exponent(a.row_weights[at], a.row_potential[at],
                                       p.row_terms == nullptr ? nullptr : p.row_terms + at,
                                       p.eps[batch]));
}

// What <x, y> or |x − y| is multiplied by.
template <typename C>
REGKERN_HD C pair_scale(const PointPairs& p, int64_t batch) {
  return static_cast<C>(kLog2E * p.factor / p.eps[batch]);
}

// t_ij of its column's part and Σ over the dimensions, which for products is scaled already.
template <PointKernel kKernel, typename C>
REGKERN_HD C exponent_of(C bias, C sum, C scale) {
  if constexpr (kKernel == PointKernel::product) return bias + sum;
  if constexpr (kKernel == PointKernel::square) return bias - scale * sum;
  return bias - scale * regkern::sqrt(sum);
}
template <PointKernel kKernel, typename C>
REGKERN_HD C add_dimension(C sum, C x, C y) {
  if constexpr (kKernel == PointKernel::product) return sum + x * y;
  const C t = x - y;
  return sum + t * t;
}

// An entry of the plan from its exponent, and what a power of the distance makes of it. Points
// that coincide have no direction, so no gradient.
template <int kPower, typename C>
REGKERN_HD C weighted_entry(C exponent, C square) {
  const C entry = power_of_two_at(exponent);
  if constexpr (kPower == 0) return entry;
  const C distance = regkern::sqrt(square);
  if constexpr (kPower > 0) return choose(entry == C(0), C(0), entry * distance);
  return choose(distance == C(0), C(0), entry / distance);
}

// The softmin of a row from its largest exponent and Σ 2^(t − largest).
template <typename C>
REGKERN_HD double softmin_of(const PointPairs& p, int64_t batch, int64_t i, C most, C sum) {
  const double r = p.row_terms == nullptr ? 0.0 : p.row_terms[batch * p.n + i];
  const double s = static_cast<double>(sum);
  const double log_sum = s > 0.0 && s < __builtin_inf() ? regkern::log(s) : s;
  const double all = static_cast<double>(most) * kLn2 + log_sum;
  return s == 0.0 ? __builtin_inf() : r - p.eps[batch] * all;
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(transport_points_softmin, transport::PointSoftminArgs)
REGKERN_DECLARE_KERNEL(transport_points_argmax, transport::PointArgmaxArgs)
REGKERN_DECLARE_KERNEL(transport_points_apply, transport::PointApplyArgs)
}  // namespace regkern
