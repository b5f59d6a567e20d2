#pragma once

#include "transport/loop.h"
#include "transport/points.h"

// A whole iteration of Sinkhorn between clouds of points: f, g → f_raw, f_next, g_raw. On the CPU
// the product (or distance) of two points and its power are computed once:
//
//     e_ij = 2^(u_i + v_j + k_ij),   u_i = (log2 e) q (f_i − r_i),   v_j = (log2 e) q (g_j − s_j)
//
//     f_raw_i = r_i + eps (ln 2 u_i − ln Σ_j b_j e_ij)
//     g_raw_j = s_j + eps (ln 2 v_j − ln Σ_i w_i e_ij),   w_i = a_i e^((f_next_i − f_i) / eps)
//
// Powers are shifted by the potentials before and not by a maximum, so a sum is about 1. Below
// 2^−127 a power is 0, from 2^128 on infinite. A row or column whose sum is not within [kLeast,
// kMost], to which a power that was cut could matter, is computed again from its largest exponent
// on. A row that moves far is shifted by where it went before the columns add it up. u and v are
// rounded; of rows that cancels, and columns have the rest in their weights.
//
// Orders: a row adds b_j e_ij by lanes as everywhere in points.h, columns add four rows in pairs
// and these fours one after the other; chunks of rows are added in double.

namespace regkern::transport {

constexpr int kPointBlock = 32;  // rows of which a chunk has a multiple
constexpr int kMostPointChunks = 64;

REGKERN_HD int64_t point_chunk_rows(int64_t n) {
  return ((n + kMostPointChunks - 1) / kMostPointChunks + kPointBlock - 1) / kPointBlock *
         kPointBlock;
}
REGKERN_HD int64_t point_chunks(int64_t n) {
  const int64_t rows = point_chunk_rows(n);
  return rows == 0 ? 0 : (n + rows - 1) / rows;
}

struct PointFullArgs {
  PointPairs rows;         // x as rows and y as columns, with b and g
  PointPairs columns;      // the other way round, with a and f_next
  const uint8_t* done;     // (B)
  const double* f;         // (B, n)
  const double* rho_a;     // (B)
  const double* omega;     // (B)
  double *f_raw, *f_next;  // (B, n)
  double* g_raw;           // (B, m)
  // Scratch of the compute type: u and w (B, n), v and weights (B, ⌈m / kPointPanel⌉ kPointPanel),
  // sums of chunks (B, point_chunks(n), the same); and which rows or
  // columns are computed again (B, max(n, m)).
  void *row_shift, *row_weight, *column_shift, *column_weight, *partials;
  uint8_t* again;
};

template <typename C>
struct PointSum;
template <>
struct PointSum<float> {
  static constexpr double kLeast = 3.552713678800501e-15, kMost = 1.2676506002282294e30;
};
template <>
struct PointSum<double> {
  static constexpr double kLeast = 1e-200, kMost = 1e300;
};

template <typename C>
REGKERN_HD bool point_sum_holds(double sum) {
  return sum >= PointSum<C>::kLeast && sum <= PointSum<C>::kMost;
}

// What is cut, 2⁻¹²⁷, stays below the rounding errors of the least sum that holds when it is
// multiplied by e²⁴ ≈ 2³⁵.
constexpr double kFarPoint = 24.0;

// Where a point without partners is, powers are 0.
REGKERN_HD double point_shift(double potential, const double* term, double eps) {
  const double infinity = __builtin_inf();
  const double own = potential - (term == nullptr ? 0.0 : *term);
  return potential == infinity ? -infinity : kLog2E * own / eps;
}

template <typename C>
struct PointColumn {
  C shift, weight;
};

template <typename C>
REGKERN_HD PointColumn<C> point_column(const PointPairs& p, int64_t batch, int64_t j) {
  const int64_t at = batch * p.m + j;
  const double* const term = p.column_terms == nullptr ? nullptr : p.column_terms + at;
  const double infinity = __builtin_inf(), potential = p.potential[at];
  // A column without partners before may have some now.
  const double exact = potential == infinity ? 0.0 : point_shift(potential, term, p.eps[batch]);
  const C shift = static_cast<C>(exact);
  const double rest = is_finite(exact) ? (exact - static_cast<double>(shift)) * kLn2 : 0.0;
  const double weight = p.weights[at] + p.weights[at] * rest;
  return {shift, potential == infinity ? C(0) : static_cast<C>(weight)};
}

REGKERN_HD const double* row_term(const PointPairs& p, int64_t at) {
  return p.row_terms == nullptr ? nullptr : p.row_terms + at;
}

// u of a row before the iteration.
template <typename C>
REGKERN_HD C shift_before(const PointFullArgs& a, int64_t batch, int64_t i) {
  const int64_t at = batch * a.rows.n + i;
  return static_cast<C>(point_shift(a.f[at], row_term(a.rows, at), a.rows.eps[batch]));
}

template <typename C>
struct PointRow {
  double raw, next;
  C shift, weight;
};

// What becomes of a row whose powers are shifted by `shift`.
template <typename C>
REGKERN_HD PointRow<C> point_row(const PointFullArgs& a, int64_t batch, int64_t i, double raw,
                                 C shift) {
  const double infinity = __builtin_inf(), eps = a.rows.eps[batch];
  const int64_t at = batch * a.rows.n + i;
  const double next = relaxed(a.f[at], raw, damping_of(a.rho_a[batch], eps), a.omega[batch]);
  const double there = point_shift(next, row_term(a.rows, at), eps);
  double apart = (there - static_cast<double>(shift)) * kLn2;
  if (!(apart <= kFarPoint && apart >= -kFarPoint)) {
    shift = static_cast<C>(there);
    apart = next == infinity ? 0.0 : (there - static_cast<double>(shift)) * kLn2;
  }
  const double mass = next == infinity ? 0.0 : a.columns.weights[at];
  return {raw, next, shift, mass == 0.0 ? C(0) : static_cast<C>(mass * regkern::exp(apart))};
}

// The potential of a sum of powers that are shifted by `shift`.
template <typename C>
REGKERN_HD double point_potential(const double* term, C shift, double sum, double eps) {
  return (term == nullptr ? 0.0 : *term) +
         eps * (kLn2 * static_cast<double>(shift) - regkern::log(sum));
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(transport_points_full, transport::PointFullArgs)
}  // namespace regkern
