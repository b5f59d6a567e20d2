#pragma once

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"

// T steps of Sinkhorn's normalisation of batches of matrices. In the scaling form
//
//     K = e^(logits − row maximum), or the positive matrix that is given
//     u_t = a / (K v_{t−1}),   v_t = b / (Kᵀ u_t),   P = u_T K v_T
//
// and with ε > 0, as the authors of manifold-constrained hyper-connections have it, with K =
// softmax
// + ε in place of the first step on rows,
//
//     u_t = a u_{t−1} / (u_{t−1} (K v_{t−1}) + ε),   and v_t likewise
//
// The exact gradient of the T steps needs 2T products with K and one product of rank 2T. With φ and
// γ the gradients by ln u and ln v, for t = T … 1
//
//     s = γ v_t / b,   φ −= u_t (K s),   γ' = γ ε v_t / (b v_{t−1})
//     r = φ u_t / a,   γ = γ' − v_{t−1} (Kᵀ r),   φ = φ ε u_t / (a u_{t−1})
//     ∂/∂K −= u_t sᵀ + r v_{t−1}ᵀ,   ∂/∂b += γ / b,   ∂/∂a += φ / a
//
// The iterates are computed again in the backward: that is cheaper than writing them to memory.
//
// The scaling form is exact while u v K stays above what K rounds to zero. A problem that leaves
// that range is done over in the log domain, where the same recursions hold of the logarithms.
//
// The order of sums is the same everywhere. Of problems of at most kNormalizeSide rows and columns
// all sums go by index. Of others, a row is added in kNormalizeLanes lanes, folded in halves, and a
// column over chunks of kNormalizeRows rows, and over the chunks. Problems in the log domain are
// added like those.

namespace regkern::transport {

constexpr int kNormalizeSide = 16, kNormalizeLanes = 32, kNormalizeRows = 32;

struct NormalizeArgs {
  Dtype dtype;
  int64_t count;
  int32_t rows, columns;  // of x; with a slack, the problem has one more of both
  int32_t n_iter;
  bool columns_first;  // the problem is the transpose of x
  bool logits;         // or a positive matrix
  bool log_output;
  bool has_slack;
  double eps;
  const void* x;
  // Of the compute type, by problem unless the stride is 0. Null, of stride −1: 1, and as much in
  // columns as in rows. a belongs to the side that is normalised first.
  const void *a, *b;
  int64_t a_stride, b_stride;
  const void* slack;  // null without one
  const void* scale;  // of the logits; null: 1
  int64_t slack_stride, scale_stride;
  void* y;
  uint8_t* redo;  // (count), whether the log domain has to do it
  void* space;    // used on the GPU
};

struct NormalizeBackwardArgs {
  NormalizeArgs forward;  // y is not used
  const void* g;
  void* dx;
  void *da, *db, *dslack;  // by problem, of the compute type; da and db may be null
};

// A problem as the kernels see it: what is normalised first are its rows.
struct NormalizeShape {
  int n, m;                       // with the slack
  int inner_n, inner_m;           // without
  int64_t x_row, x_column, x_of;  // strides of x, and its elements by problem
  int64_t y_row, y_column, y_of;
};

REGKERN_HD NormalizeShape normalize_shape(const NormalizeArgs& args) {
  const int s = args.has_slack ? 1 : 0;
  const int rows = args.rows + s, columns = args.columns + s;
  NormalizeShape shape{};
  shape.n = args.columns_first ? columns : rows;
  shape.m = args.columns_first ? rows : columns;
  shape.inner_n = shape.n - s;
  shape.inner_m = shape.m - s;
  shape.x_row = args.columns_first ? 1 : args.columns;
  shape.x_column = args.columns_first ? args.columns : 1;
  shape.x_of = static_cast<int64_t>(args.rows) * args.columns;
  shape.y_row = args.columns_first ? 1 : columns;
  shape.y_column = args.columns_first ? columns : 1;
  shape.y_of = static_cast<int64_t>(rows) * columns;
  return shape;
}

REGKERN_HD bool has_short_sides(const NormalizeShape& shape) {
  return shape.n <= kNormalizeSide && shape.m <= kNormalizeSide;
}

// The softmax takes the place of the first step on rows.
REGKERN_HD bool begins_with_softmax(const NormalizeArgs& args) {
  return args.logits && args.eps > 0.0;
}

// Weights where none are given: rows weigh 1, columns as much together. The slack takes what all
// of the other side may leave.
template <typename C>
REGKERN_HD C row_weight(const NormalizeArgs& args, const NormalizeShape& shape, int64_t problem,
                        int i) {
  if (args.a != nullptr) return static_cast<const C*>(args.a)[problem * args.a_stride + i];
  if (args.has_slack) return i < shape.inner_n ? C(1) : static_cast<C>(shape.inner_m);
  return args.columns_first ? static_cast<C>(shape.m) / static_cast<C>(shape.n) : C(1);
}
template <typename C>
REGKERN_HD C column_weight(const NormalizeArgs& args, const NormalizeShape& shape, int64_t problem,
                           int j) {
  if (args.b != nullptr) return static_cast<const C*>(args.b)[problem * args.b_stride + j];
  if (args.has_slack) return j < shape.inner_m ? C(1) : static_cast<C>(shape.inner_n);
  return args.columns_first ? C(1) : static_cast<C>(shape.n) / static_cast<C>(shape.m);
}

template <typename C>
REGKERN_HD C number_of(const void* data, int64_t stride, int64_t problem, C otherwise) {
  return data == nullptr ? otherwise : static_cast<const C*>(data)[problem * stride];
}

template <typename C>
REGKERN_HD C no_logit() {
  return -static_cast<C>(__builtin_inf());
}

// e^x, and 0 where that is below the normal numbers.
REGKERN_HD float exp_or_zero(float x) { return choose(x < -87.0f, 0.0f, regkern::exp(x)); }
REGKERN_HD double exp_or_zero(double x) { return choose(x < -700.0, 0.0, regkern::exp(x)); }

// ln x for x ≥ 0 that is normal; −∞ of 0, NaN of negative numbers.
template <typename C>
REGKERN_HD C log_or_none(C x) {
  const bool plain = x > C(0) && x < static_cast<C>(__builtin_inf());
  const C value = regkern::log(choose(plain, x, C(1)));
  const C other =
      choose(x == C(0), no_logit<C>(), choose(x > C(0), x, static_cast<C>(__builtin_nan(""))));
  return choose(plain, value, other);
}

// u and v from the sums of the other side; scalars, or vectors of problems.
template <typename X>
REGKERN_HD X next_scaling(const X& weight, const X& before, const X& sum, const X& eps,
                          bool guarded) {
  if (!guarded) return weight == X{} ? X{} : weight / sum;
  return weight * before / (before * sum + eps);
}

// γ ε v_t / (b v_{t−1}), given s.
template <typename X>
REGKERN_HD X carried(const X& s, const X& eps, const X& before) {
  return before == X{} ? X{} : s * eps / before;
}

// 1 / b, of which γ v_t / b is made; 0 of what weighs nothing.
template <typename X>
REGKERN_HD X inverse_weight(const X& weight, const X& one) {
  return weight == X{} ? X{} : one / weight;
}

// From this product of the largest u and v on, what K rounded to zero may count.
template <typename C>
REGKERN_HD C scaling_limit();
template <>
REGKERN_HD float scaling_limit<float>() {
  return 1e30f;
}
template <>
REGKERN_HD double scaling_limit<double>() {
  return 1e285;
}

// The larger of a maximum and a scaling; what is not finite is infinite.
template <typename X>
REGKERN_HD X larger_scaling(const X& most, const X& scaling, const X& infinity) {
  const X held = scaling < infinity ? scaling : infinity;
  return held > most ? held : most;
}
template <typename C>
REGKERN_HD bool left_range(C u, C v) {
  return !(u * v < scaling_limit<C>());
}

// 1 / s₁ and 1 / s₂ by one division. Their product has to be a normal number, which `seen`, a sum
// over all pairs, tells in the end.
template <typename X>
REGKERN_HD void invert_pair(const X& first, const X& second, const X& one, X* of_first,
                            X* of_second, X* seen) {
  const X product = first * second, inverse = one / product;
  *of_first = inverse * second;
  *of_second = inverse * first;
  *seen = *seen + (product + inverse);
}
template <typename C>
REGKERN_HD bool pairs_left_range(C seen) {
  return !(seen < (sizeof(C) == sizeof(float) ? C(1e36f) : C(1e300)));
}

// ---- what the GPU works in ----

constexpr int64_t kNormalizeShared = int64_t{96} << 10;  // bytes that any GPU grants a block
constexpr int kTeamThreads = 16, kTeamsOfBlock = 8;      // of problems with short sides
constexpr int64_t kShortTeams = 8192, kLongTeams = 384;  // problems at once

REGKERN_HD int64_t normalize_teams(int64_t count, const NormalizeShape& shape) {
  if (!has_short_sides(shape)) return count < kLongTeams ? count : kLongTeams;
  const int64_t teams = count < kShortTeams ? count : kShortTeams;
  return (teams + kTeamsOfBlock - 1) / kTeamsOfBlock * kTeamsOfBlock;
}
// Threads that have rows want these an odd number of elements apart.
REGKERN_HD int64_t normalize_stride(const NormalizeShape& shape) {
  return has_short_sides(shape) ? shape.m | 1 : shape.m;
}
REGKERN_HD int64_t normalize_chunks(const NormalizeShape& shape) {
  return (shape.n + kNormalizeRows - 1) / kNormalizeRows;
}
// Vectors of rows, of columns, and parts of the sums of columns.
REGKERN_HD int64_t normalize_vectors(const NormalizeShape& shape) {
  return 6 * static_cast<int64_t>(shape.n) + (4 + normalize_chunks(shape)) * shape.m;
}
REGKERN_HD int64_t normalize_memory(const NormalizeShape& shape) {
  return shape.n * normalize_stride(shape) + normalize_vectors(shape);
}
// All u, v, s and r.
REGKERN_HD int64_t normalize_history(const NormalizeArgs& args, const NormalizeShape& shape) {
  return (static_cast<int64_t>(args.n_iter) + 1) * 2 * (shape.n + shape.m);
}
REGKERN_HD bool fits_shared(const NormalizeArgs& args, const NormalizeShape& shape) {
  const int64_t size = args.dtype == Dtype::float64 ? 8 : 4;
  return normalize_memory(shape) * size <= kNormalizeShared;
}
// Of a team: its history, and then what it works in, or the vectors for the log domain.
REGKERN_HD int64_t normalize_team_space(const NormalizeArgs& args, const NormalizeShape& shape,
                                        bool backward) {
  return (backward ? normalize_history(args, shape) : 0) +
         (fits_shared(args, shape) ? normalize_vectors(shape) : normalize_memory(shape));
}

// 4 x 4 and 8 x 8 problems whose weights are all 1: a thread has one in its registers.
constexpr int kSquareThreads = 128;
constexpr int64_t kSquareSlots = int64_t{1} << 16;  // problems at once

REGKERN_HD bool is_square(const NormalizeArgs& args, const NormalizeShape& shape) {
  return args.dtype != Dtype::float64 && shape.n == shape.m && (shape.n == 4 || shape.n == 8) &&
         args.a_stride < 0 && args.b_stride < 0 && !args.has_slack;
}
REGKERN_HD int64_t square_slots(int64_t count) {
  const int64_t held = count < kSquareSlots ? count : kSquareSlots;
  return (held + kSquareThreads - 1) / kSquareThreads * kSquareThreads;
}

REGKERN_HD int64_t normalize_space(const NormalizeArgs& args, const NormalizeShape& shape,
                                   bool backward) {
  const int64_t teams =
      normalize_teams(args.count, shape) * normalize_team_space(args, shape, backward);
  if (!backward || !is_square(args, shape)) return teams;
  // All u and v of every thread.
  const int64_t squares =
      square_slots(args.count) * (static_cast<int64_t>(args.n_iter) + 1) * 2 * shape.n;
  return squares > teams ? squares : teams;
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(sinkhorn_normalize, transport::NormalizeArgs)
REGKERN_DECLARE_KERNEL(sinkhorn_normalize_backward, transport::NormalizeBackwardArgs)
}  // namespace regkern
