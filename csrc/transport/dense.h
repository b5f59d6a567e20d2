#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"
#include "transport/loop.h"

// Soft c-transforms of B dense costs (n, m), and their plans.
//
//     power   e_ij = e^((s_i − C_ij + t_j)/ε)
//
// Sums are shifted by the potentials before, s and t, and not by a maximum: Σ_j b_j e_ij is 1 where
// the iteration has converged, and the new potential is s_i − ε ln Σ. So a row's sum and, with the
// same powers, the columns' sums of the new f take one read of C. Powers are cut at ±kCut: a
// sum that is not within [kLeast, kMost], to which what was cut could matter, is computed again,
// shifted by its largest term. C = ∞ is a power that is cut.
//
// The powers may be kept, in a kernel of the size of C: then iterations read it instead of C, and
// compute no powers. What potentials have moved since is in the weights of the sums,
//
//     f_i = s_i − ε ln Σ_j (b_j e^((g_j − t_j)/ε)) e_ij
//
// with s and t of when the kernel was made. A row whose sum or whose weight leaves the range is
// made again by itself, and all rows where a column has moved by more than kFarShift, or ε has
// changed.
//
// Orders: a row is cut into tiles of kTile columns, in which lane j mod kRowLanes adds column j;
// lanes are folded by halves, tiles are added in double. A column is cut into chunks of
// chunk_rows(n) rows, which are added one after the other; chunks are added in double.

namespace regkern::transport {

constexpr int kTile = 1024, kRowLanes = 32;
constexpr int kPanel = 32;  // columns that are computed again together
constexpr int kMostChunks = 128;

REGKERN_HD int64_t chunk_rows(int64_t n) {
  const int64_t rows = ((n + kMostChunks - 1) / kMostChunks + 7) / 8 * 8;
  return rows < 32 ? 32 : rows;
}
REGKERN_HD int64_t chunk_count(int64_t n) { return (n + chunk_rows(n) - 1) / chunk_rows(n); }

// From row to row of a kernel: rows a power of two apart would fall onto each other in a cache.
REGKERN_HD int64_t kernel_stride(int64_t m) { return m < kTile ? m : (m + 31) / 16 * 16; }

struct DenseArgs {
  Dtype dtype;
  int64_t batch, n, m;
  const void* cost;     // (B, n, m)
  const double *a, *b;  // (B, n), (B, m)
  const double* eps;    // (B)
  const uint8_t* done;  // (B), or null
  // A whole iteration: f, g → f_raw, f_next, g_raw. The rows alone: f (near), g → f_raw, with
  // f_next null. The columns alone: f_next, g (near) → g_raw.
  const double *f, *g;
  double *f_raw, *f_next, *g_raw;
  const double *rho_a, *omega;  // (B)
  // Scratch, of the compute type: shifts and weights of rows and columns, sums of chunks (B,
  // chunk_count(n), m); and which panels are computed again (B, ⌈m / kPanel⌉).
  void *row_shift, *row_weight, *column_shift, *column_weight, *partials;
  int32_t* again;
  // Where powers are kept: (B, n, kernel_stride(m)) of the compute type, or null; with it whole
  // iterations alone, and row_shift and column_shift are what it was made with. ε of then (B), 0
  // before the first, and whether it is made in this iteration (B).
  void* kernel;
  double* kernel_eps;
  int32_t* fresh;
};

struct DensePlanArgs {
  Dtype dtype;
  int64_t batch, n, m;
  const void* cost;
  const double *a, *b;  // (B, n), (B, m)
  const double *f, *g;
  const double *p, *q;  // (B, n), (B, m), or null
  const double* eps;    // (B)
  void* out;            // (B, n, m), of the dtype of the cost
};

// ---- powers ----

template <typename C>
struct Power;

template <>
struct Power<float> {
  static constexpr float kCut = 100.0f, kTop = 126.0f;
  static constexpr double kLeast = 9.094947017729282e-13, kMost = 1.2676506002282294e30;
  static constexpr double kBase = 1.4426950408889634;  // powers of two
};
template <>
struct Power<double> {
  static constexpr double kCut = 690.0, kTop = 700.0;
  static constexpr double kLeast = 1e-250, kMost = 1e250;
  static constexpr double kBase = 1.0;  // powers of e
};

// What differences of potentials are multiplied by.
template <typename C>
REGKERN_HD C unit_of(double eps) {
  return static_cast<C>(Power<C>::kBase / eps);
}

// 2^y for y in [−kCut, kTop], within 2 ulp; outside, the value at the nearer end.
REGKERN_HD float power(float y) {
  y = y < -Power<float>::kCut ? -Power<float>::kCut : y;
  y = y > Power<float>::kTop ? Power<float>::kTop : y;
  const float shifted = y + 12582912.0f;  // 1.5 · 2²³ rounds to an integer
  const float r = y - (shifted - 12582912.0f);
  float series = 1.3276472e-3f;
  series = series * r + 9.6755415e-3f;
  series = series * r + 5.5507133e-2f;
  series = series * r + 2.4022120e-1f;
  series = series * r + 6.9314697e-1f;
  series = series * r + 1.0f;
  const uint32_t exponent = bit_cast<uint32_t>(shifted) - (bit_cast<uint32_t>(12582912.0f) - 127u);
  return series * bit_cast<float>(exponent << 23);
}
// eʸ.
REGKERN_HD double power(double y) {
  y = y < -Power<double>::kCut ? -Power<double>::kCut : y;
  return regkern::exp(y);
}

template <typename C>
REGKERN_HD C exponent(C row, C cost, C column, C unit) {
  return ((row - cost) + column) * unit;
}

template <typename C>
REGKERN_HD bool sum_holds(double sum) {
  return sum >= Power<C>::kLeast && sum <= Power<C>::kMost;
}

// The potential of which a sum was shifted by `shift`.
template <typename C>
REGKERN_HD double potential_of(C shift, double sum, double eps) {
  return static_cast<double>(shift) - eps * regkern::log(sum > 1e-300 ? sum : 1e-300);
}

// A point without partners takes no part, and neither does one without weight.
template <typename C>
REGKERN_HD C shift_of(double potential) {
  const double infinity = static_cast<double>(__builtin_inf());
  return potential == infinity || potential == -infinity ? C(0) : static_cast<C>(potential);
}
template <typename C>
REGKERN_HD C weight_of(double weight, double potential) {
  return potential == static_cast<double>(__builtin_inf()) ? C(0) : static_cast<C>(weight);
}

// How far f_next may be from what a row's powers were shifted by, in ε. What was cut, 2⁻¹⁰⁰, is
// multiplied by e¹² at most and stays below the rounding errors of the least sum that holds.
constexpr double kFarShift = 12.0;

// Whether a column has moved too far from what the kernel was made with.
template <typename C>
REGKERN_HD bool is_stale(C shift, double potential, double eps) {
  const double apart = (static_cast<double>(shift_of<C>(potential)) - shift) / eps;
  return apart > kFarShift || apart < -kFarShift;
}

// A column's weight beside powers that were shifted by `shift`.
template <typename C>
REGKERN_HD C moved_weight(C shift, double weight, double potential, double eps) {
  const double infinity = static_cast<double>(__builtin_inf());
  if (weight == 0.0 || potential == infinity || potential == -infinity)
    return weight_of<C>(weight, potential);
  return static_cast<C>(weight * regkern::exp((potential - static_cast<double>(shift)) / eps));
}

template <typename C>
struct RowUpdate {
  double raw, next;
  C shift, weight;
  bool far;  // powers are wanted again, by this shift
};

// f_next, and as what the row enters the columns' sums: weight · power.
template <typename C>
REGKERN_HD RowUpdate<C> update_row(double old, double raw, C shift, double weight, double eps,
                                   double damping, double omega) {
  const double next = relaxed(old, raw, damping, omega);
  RowUpdate<C> row{raw, next, shift, C(0), false};
  if (next == static_cast<double>(__builtin_inf())) return row;
  double apart = (next - static_cast<double>(shift)) / eps;
  if (apart > kFarShift || apart < -kFarShift) {
    row.shift = static_cast<C>(next);
    row.far = true;
    apart = (next - static_cast<double>(row.shift)) / eps;
  }
  row.weight = static_cast<C>(weight * regkern::exp(apart));
  return row;
}

// One element of a plan, times what it is multiplied by.
template <typename C>
REGKERN_HD C plan_element(C y, C row_weight, C column_weight, C factor) {
  const C mass = (power(y) * row_weight) * column_weight;
  return choose(y < -Power<C>::kCut, C(0), mass) * factor;
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(transport_dense, transport::DenseArgs)
REGKERN_DECLARE_KERNEL(transport_dense_plan, transport::DensePlanArgs)
}  // namespace regkern
