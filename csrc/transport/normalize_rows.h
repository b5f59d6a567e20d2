#pragma once

#include <utility>

#include "transport/normalize_lanes.h"

// Problems of more than 16 rows or columns on the CPU, and all that are done in the log domain: one
// at a time. A pass over the matrix multiplies a row, and adds it to the columns while it is in L1.

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

// Rows are padded with zeros, or −∞ of logarithms, to whole sums.
inline int64_t padded_columns(int64_t m) {
  return (m + kNormalizeLanes - 1) / kNormalizeLanes * kNormalizeLanes;
}

// Space for so many numbers, all of it in vectors.
template <typename C>
class RowSpace {
 public:
  explicit RowSpace(int64_t n) : lanes_(n / kLanesOf<C> + 1) {}
  C* take(int64_t n) {
    return reinterpret_cast<C*>(lanes_.take((n + kLanesOf<C> - 1) / kLanesOf<C>));
  }

 private:
  LaneSpace<C> lanes_;
};

// The sum of W lanes, or of N vectors of them, in halves. Recursions and not loops: with an index
// that is not constant the sums would live in memory.
template <int W, typename V, int... kLow>
inline auto fold_vector(const V& x, std::integer_sequence<int, kLow...>) {
  if constexpr (W == 2) {
    return x[0] + x[1];
  } else {
    const auto half =
        __builtin_shufflevector(x, x, kLow...) + __builtin_shufflevector(x, x, (kLow + W / 2)...);
    return fold_vector<W / 2>(half, std::make_integer_sequence<int, W / 4>{});
  }
}
template <typename C, int N>
inline C fold_lanes(const Lanes<C> (&lanes)[N]) {
  if constexpr (N == 1) {
    constexpr int kL = kLanesOf<C>;
    return fold_vector<kL>(lanes[0], std::make_integer_sequence<int, kL / 2>{});
  } else {
    Lanes<C> half[N / 2];
#pragma GCC unroll 8
    for (int v = 0; v < N / 2; ++v) half[v] = lanes[v] + lanes[v + N / 2];
    return fold_lanes<C>(half);
  }
}

template <typename C>
inline Lanes<C>& lanes_at(C* data) {
  return *reinterpret_cast<Lanes<C>*>(data);
}
template <typename C>
inline const Lanes<C>& lanes_at(const C* data) {
  return *reinterpret_cast<const Lanes<C>*>(data);
}

template <typename C>
constexpr int kSumVectors = kNormalizeLanes / kLanesOf<C>;  // of the lanes of a sum
template <typename C>
constexpr int kRowsAtOnce = kSumVectors<C> >= 8 ? 1 : 8 / kSumVectors<C>;

// Σ_j k_rj x_j of R rows.
template <int R, typename C>
inline void dot_rows(const C* k, int64_t ld, const C* x, C* sums) {
  constexpr int kV = kSumVectors<C>, kL = kLanesOf<C>;
  Lanes<C> lanes[R][kV] = {};
  for (int64_t j = 0; j < ld; j += kNormalizeLanes)
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      const Lanes<C> factor = lanes_at(x + j + v * kL);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        lanes[r][v] = lanes[r][v] + lanes_at(k + r * ld + j + v * kL) * factor;
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sums[r] = fold_lanes<C>(lanes[r]);
}

// total ← Σ_i w_i k_i with w_i = weigh(i, Σ_j k_ij x_j).
template <typename C, typename F>
inline void pass_rows(const C* k, int n, int64_t ld, const C* x, C* chunk, C* total, F&& weigh) {
  constexpr int kGroup = 4;
  for (int64_t j = 0; j < ld; ++j) total[j] = C(0);
  for (int begin = 0; begin < n; begin += kNormalizeRows) {
    const int end = begin + kNormalizeRows < n ? begin + kNormalizeRows : n;
    for (int64_t j = 0; j < ld; ++j) chunk[j] = C(0);
    for (int i = begin; i < end; i += kGroup) {
      const int rows = end - i < kGroup ? end - i : kGroup;
      const C* const from = k + i * ld;
      C w[kGroup];
      int r = 0;
      for (; r + kRowsAtOnce<C> <= rows; r += kRowsAtOnce<C>)
        dot_rows<kRowsAtOnce<C>>(from + r * ld, ld, x, w + r);
      for (; r < rows; ++r) dot_rows<1>(from + r * ld, ld, x, w + r);
      for (r = 0; r < rows; ++r) w[r] = weigh(i + r, w[r]);
      if (rows == kGroup) {
        const C w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
        const C *k0 = from, *k1 = from + ld, *k2 = k1 + ld, *k3 = k2 + ld;
#pragma omp simd
        for (int64_t j = 0; j < ld; ++j)
          chunk[j] = (((chunk[j] + w0 * k0[j]) + w1 * k1[j]) + w2 * k2[j]) + w3 * k3[j];
      } else {
        for (r = 0; r < rows; ++r) {
          const C* const row = from + r * ld;
          const C factor = w[r];
#pragma omp simd
          for (int64_t j = 0; j < ld; ++j) chunk[j] = chunk[j] + factor * row[j];
        }
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < ld; ++j) total[j] = total[j] + chunk[j];
  }
}

// Σ_j x_j of one row, and total ← Σ_i x_i where `row(i)` gives x_i.
template <typename C>
inline C sum_row(const C* x, int64_t ld) {
  constexpr int kV = kSumVectors<C>;
  Lanes<C> lanes[kV] = {};
  for (int64_t j = 0; j < ld; j += kNormalizeLanes)
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) lanes[v] = lanes[v] + lanes_at(x + j + v * kLanesOf<C>);
  return fold_lanes<C>(lanes);
}
template <typename C, typename F>
inline void sum_rows(int n, int64_t ld, C* chunk, C* total, F&& row) {
  for (int64_t j = 0; j < ld; ++j) total[j] = C(0);
  for (int begin = 0; begin < n; begin += kNormalizeRows) {
    const int end = begin + kNormalizeRows < n ? begin + kNormalizeRows : n;
    for (int64_t j = 0; j < ld; ++j) chunk[j] = C(0);
    for (int i = begin; i < end; ++i) {
      const C* const x = row(i);
#pragma omp simd
      for (int64_t j = 0; j < ld; ++j) chunk[j] = chunk[j] + x[j];
    }
#pragma omp simd
    for (int64_t j = 0; j < ld; ++j) total[j] = total[j] + chunk[j];
  }
}

template <typename C>
struct RowProblem {
  int n, m, n_iter;
  int64_t ld;
  bool guarded, softmax;
  C eps, scale;
  C *k, *shifted;          // (n, ld): k, and logarithms of it or the softmax
  C *a, *b;                // (n), (ld)
  C *u, *v;                // (n_iter + 1, n), (n_iter + 1, ld), or one of each
  C *chunk, *total, *row;  // (ld)
};

template <typename C>
RowProblem<C> row_problem(const NormalizeArgs& args, const NormalizeShape& shape, bool keep,
                          RowSpace<C>& space) {
  RowProblem<C> p{};
  p.n = shape.n;
  p.m = shape.m;
  p.n_iter = args.n_iter;
  p.ld = padded_columns(shape.m);
  p.guarded = args.eps > 0.0;
  p.softmax = begins_with_softmax(args);
  p.eps = static_cast<C>(args.eps);
  const int64_t kept = keep ? args.n_iter + 1 : 1;
  p.k = space.take(p.n * p.ld);
  p.shifted = space.take(p.n * p.ld);
  p.a = space.take(p.n);
  p.b = space.take(p.ld);
  p.u = space.take(kept * p.n);
  p.v = space.take(kept * p.ld);
  p.chunk = space.take(p.ld);
  p.total = space.take(p.ld);
  p.row = space.take(p.ld);
  return p;
}
// With some to spare for each array's last vector.
inline int64_t row_problem_size(const NormalizeShape& shape, int64_t kept) {
  const int64_t ld = padded_columns(shape.m);
  return 2 * shape.n * ld + (kept + 1) * (shape.n + ld) + 3 * ld + 16 * 16;
}

// Calls f(i, j) for all elements of a matrix whose columns lie `column` apart. Of a transposed one,
// in strips of 16 rows: what is next to each other in memory is done at once.
template <typename F>
inline void for_each_element(int n, int m, int64_t column, F&& f) {
  constexpr int kStrip = 16;
  if (column == 1) {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < m; ++j) f(i, j);
    return;
  }
  for (int begin = 0; begin < n; begin += kStrip) {
    const int end = begin + kStrip < n ? begin + kStrip : n;
    for (int j = 0; j < m; ++j)
      for (int i = begin; i < end; ++i) f(i, j);
  }
}

template <typename T, typename C>
void load_rows(const T* x, int n, int m, int64_t row, int64_t column, int64_t ld, C* out) {
  for_each_element(n, m, column,
                   [=](int i, int j) { out[i * ld + j] = widen(x[i * row + j * column]); });
}

// Of the logits with all that is excluded −∞, or of the positive matrix with zeros there, in k.
template <typename C>
void load_values(const NormalizeArgs& args, const NormalizeShape& shape, int64_t problem,
                 RowProblem<C>* p) {
  const int n = p->n, m = p->m;
  const int64_t ld = p->ld;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<compute_t<T>, C>)
      load_rows(static_cast<const T*>(args.x) + problem * shape.x_of, shape.inner_n, shape.inner_m,
                shape.x_row, shape.x_column, ld, p->k);
  });
  for (int i = 0; i < n; ++i) p->a[i] = row_weight<C>(args, shape, problem, i);
  for (int j = 0; j < m; ++j) p->b[j] = column_weight<C>(args, shape, problem, j);
  for (int64_t j = m; j < ld; ++j) p->b[j] = C(0);
  if (args.has_slack) {
    const C z = number_of(args.slack, args.slack_stride, problem, C(0));
    for (int i = 0; i < n; ++i) p->k[i * ld + m - 1] = z;
    for (int j = 0; j < m; ++j) p->k[(n - 1) * ld + j] = z;
  }
  p->scale = number_of(args.scale, args.scale_stride, problem, C(1));
  const C scale = p->scale, none = args.logits ? no_logit<C>() : C(0);
  const C nan = static_cast<C>(__builtin_nan(""));
  const bool logits = args.logits;
  for (int i = 0; i < n; ++i) {
    C* const k = p->k + i * ld;
    const C* const b = p->b;
    const bool excluded = p->a[i] == C(0);
    for (int64_t j = m; j < ld; ++j) k[j] = none;
#pragma omp simd
    for (int64_t j = 0; j < ld; ++j) {
      const C x = choose(excluded || b[j] == C(0), none, k[j] * scale);
      k[j] = choose(!logits && x < C(0), nan, x);
    }
  }
}

template <typename C>
inline C largest(const C* x, int64_t n) {
  C most = no_logit<C>();
#pragma omp simd reduction(max : most)
  for (int64_t j = 0; j < n; ++j) most = x[j] > most ? x[j] : most;
  return most == no_logit<C>() ? C(0) : most;
}

template <typename C>
void load_problem(const NormalizeArgs& args, const NormalizeShape& shape, int64_t problem,
                  RowProblem<C>* p) {
  load_values(args, shape, problem, p);
  if (!args.logits) return;
  const int64_t ld = p->ld;
  for (int i = 0; i < p->n; ++i) {
    C* const k = p->k + i * ld;
    C* const shifted = p->shifted + i * ld;
    const C most = largest(k, ld);
#pragma omp simd
    for (int64_t j = 0; j < ld; ++j) {
      shifted[j] = k[j] - most;
      k[j] = exp_or_zero(shifted[j]);
    }
    if (!p->softmax) continue;
    const C sum = sum_row(k, ld), eps = p->eps;
    const bool excluded = p->a[i] == C(0);
    const C* const b = p->b;
#pragma omp simd
    for (int64_t j = 0; j < ld; ++j) {
      shifted[j] = choose(excluded, C(0), k[j] / sum);
      k[j] = choose(excluded || b[j] == C(0), C(0), shifted[j] + eps);
    }
  }
}

template <typename C>
void iterate_rows(const RowProblem<C>& p, bool keep) {
  const int n = p.n;
  const int64_t ld = p.ld;
  C *u = p.u, *v = p.v;
  for (int i = 0; i < n; ++i) u[i] = p.a[i] == C(0) ? C(0) : C(1);
  for (int64_t j = 0; j < ld; ++j) v[j] = p.b[j] == C(0) ? C(0) : C(1);
  for (int t = 1; t <= p.n_iter; ++t) {
    C* const next_u = keep ? u + n : u;
    C* const next_v = keep ? v + ld : v;
    const bool given = t == 1 && p.softmax;
    pass_rows(p.k, n, ld, v, p.chunk, p.total, [&](int i, C sum) {
      next_u[i] = given ? u[i] : next_scaling(p.a[i], u[i], sum, p.eps, p.guarded);
      return next_u[i];
    });
    const C *b = p.b, *total = p.total;
    const C eps = p.eps;
    if (p.guarded) {
      for (int64_t j = 0; j < ld; ++j) next_v[j] = next_scaling(b[j], v[j], total[j], eps, true);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < ld; ++j) next_v[j] = choose(b[j] == C(0), C(0), b[j] / total[j]);
    }
    u = next_u;
    v = next_v;
  }
}

template <typename C>
bool left_rows(const RowProblem<C>& p, const C* u, const C* v) {
  C most_u = C(0), most_v = C(0);
  for (int i = 0; i < p.n; ++i) most_u = larger_scaling(most_u, u[i], -no_logit<C>());
  for (int j = 0; j < p.m; ++j) most_v = larger_scaling(most_v, v[j], -no_logit<C>());
  return !p.guarded && left_range<C>(most_u, most_v);
}

// Rows of (n, ld) as T to where they belong.
template <typename C>
void store_rows(Dtype dtype, const C* in, int n, int m, int64_t ld, int64_t row, int64_t column,
                int64_t first, void* data) {
  dispatch_floating(dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<compute_t<T>, C>) {
      T* const to = static_cast<T*>(data) + first;
      for_each_element(n, m, column,
                       [=](int i, int j) { narrow(in[i * ld + j], to + i * row + j * column); });
    }
  });
}

template <typename C>
void store_result(const NormalizeArgs& args, const NormalizeShape& shape, const RowProblem<C>& p,
                  int64_t problem) {
  store_rows(args.dtype, p.k, p.n, p.m, p.ld, shape.y_row, shape.y_column, problem * shape.y_of,
             args.y);
}

template <typename C>
void normalize_rows(const NormalizeArgs& args, const NormalizeShape& shape) {
  parallel_for(args.count, 1, [&](int64_t begin, int64_t end) {
    RowSpace<C> space(row_problem_size(shape, 1));
    RowProblem<C> p = row_problem(args, shape, false, space);
    const int64_t ld = p.ld;
    for (int64_t problem = begin; problem < end; ++problem) {
      load_problem(args, shape, problem, &p);
      iterate_rows(p, false);
      args.redo[problem] = left_rows(p, p.u, p.v);
      const bool from_k = !args.logits || p.guarded;
      for (int i = 0; i < p.n; ++i) {
        C* const k = p.k + i * ld;
        const C *shifted = p.shifted + i * ld, *v = p.v;
        const C u = p.u[i];
        if (args.log_output) {
          const C log_u = log_or_none(u);
#pragma omp simd
          for (int64_t j = 0; j < ld; ++j)
            k[j] = log_u + (from_k ? log_or_none(k[j]) : shifted[j]) + log_or_none(v[j]);
        } else {
#pragma omp simd
          for (int64_t j = 0; j < ld; ++j) k[j] = u * k[j] * v[j];
        }
      }
      store_result(args, shape, p, problem);
    }
  });
}

template <typename C>
struct RowGradient {
  C* slope;                  // (n, ld)
  C *inverse_a, *inverse_b;  // (n), (ld)
  C *phi, *gamma;            // (n), (ld)
  C *s, *r;                  // (n_iter + 1, ld), (n_iter + 1, n)
  C *da, *db;                // (n), (ld)
};

template <typename C>
RowGradient<C> row_gradient(const RowProblem<C>& p, RowSpace<C>& space) {
  RowGradient<C> d{};
  d.slope = space.take(p.n * p.ld);
  d.inverse_a = space.take(p.n);
  d.inverse_b = space.take(p.ld);
  d.phi = space.take(p.n);
  d.gamma = space.take(p.ld);
  d.s = space.take((p.n_iter + 1) * p.ld);
  d.r = space.take((p.n_iter + 1) * p.n);
  d.da = space.take(p.n);
  d.db = space.take(p.ld);
  return d;
}
inline int64_t row_gradient_size(const NormalizeShape& shape, int64_t n_iter) {
  const int64_t ld = padded_columns(shape.m);
  return shape.n * ld + (n_iter + 4) * (shape.n + ld) + 16 * 16;
}

template <typename C>
void begin_gradient(const RowProblem<C>& p, const RowGradient<C>& d) {
  for (int i = 0; i < p.n; ++i) {
    d.inverse_a[i] = inverse_weight(p.a[i], C(1));
    d.da[i] = C(0);
  }
  for (int64_t j = 0; j < p.ld; ++j) {
    d.inverse_b[j] = inverse_weight(p.b[j], C(1));
    d.db[j] = C(0);
  }
}

// slope −= Σ_t u_t sᵀ + r v_{t−1}ᵀ, t from the last to the first.
template <typename C>
void subtract_products(const RowProblem<C>& p, const RowGradient<C>& d) {
  constexpr int kL = kLanesOf<C>, kR = 4;
  const int64_t ld = p.ld;
  const auto block = [&](int i, int64_t j, auto rows) {
    constexpr int kRows = decltype(rows)::value;
    Lanes<C> x[kRows][2];
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < 2; ++v) x[r][v] = lanes_at(d.slope + (i + r) * ld + j + v * kL);
    for (int t = p.n_iter; t > 0; --t) {
      const C *u = p.u + t * p.n + i, *weight = d.r + t * p.n + i;
      const C *s = d.s + t * ld + j, *before = p.v + (t - 1) * ld + j;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v)
          x[r][v] = (x[r][v] - u[r] * lanes_at(s + v * kL)) - weight[r] * lanes_at(before + v * kL);
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < 2; ++v) lanes_at(d.slope + (i + r) * ld + j + v * kL) = x[r][v];
  };
  for (int64_t j = 0; j < ld; j += 2 * kL) {
    int i = 0;
    for (; i + kR <= p.n; i += kR) block(i, j, std::integral_constant<int, kR>{});
    for (; i < p.n; ++i) block(i, j, std::integral_constant<int, 1>{});
  }
}

template <typename C>
void descend_rows(const RowProblem<C>& p, const RowGradient<C>& d) {
  const int n = p.n;
  const int64_t ld = p.ld;
  for (int t = p.n_iter; t > 0; --t) {
    const C *u = p.u + t * n, *v = p.v + t * ld, *before_u = u - n, *before_v = v - ld;
    C* const s = d.s + t * ld;
    C* const r = d.r + t * n;
    for (int64_t j = 0; j < ld; ++j) {
      const C by_b = d.gamma[j] * d.inverse_b[j];
      d.db[j] = d.db[j] + by_b;
      s[j] = by_b * v[j];
      d.gamma[j] = p.guarded ? carried(s[j], p.eps, before_v[j]) : C(0);
    }
    const bool rows = !(t == 1 && p.softmax);
    pass_rows(p.k, n, ld, s, p.chunk, p.total, [&](int i, C sum) {
      const C phi = d.phi[i] - u[i] * sum;
      const C by_a = rows ? phi * d.inverse_a[i] : C(0);
      d.da[i] = d.da[i] + by_a;
      r[i] = by_a * u[i];
      d.phi[i] = p.guarded ? carried(r[i], p.eps, before_u[i]) : C(0);
      return r[i];
    });
    const C* const total = p.total;
    C* const gamma = d.gamma;
#pragma omp simd
    for (int64_t j = 0; j < ld; ++j) gamma[j] = gamma[j] - before_v[j] * total[j];
  }
}

template <typename C>
void finish_rows(const NormalizeArgs& args, const RowProblem<C>& p, const RowGradient<C>& d,
                 const C* g) {
  const int64_t ld = p.ld;
  const bool log_output = args.log_output;
  for (int i = 0; i < p.n; ++i) {
    C* const slope = d.slope + i * ld;
    const C *k = p.k + i * ld, *given = g + i * ld, *probability = p.shifted + i * ld;
    if (args.logits && !p.guarded) {
#pragma omp simd
      for (int64_t j = 0; j < ld; ++j) {
        const C along = k[j] * slope[j];
        slope[j] = log_output ? given[j] + along : along;
      }
      continue;
    }
    if (log_output)
      for (int64_t j = 0; j < ld; ++j)
        slope[j] = (k[j] == C(0) ? C(0) : given[j] / k[j]) + slope[j];
    if (!p.softmax) continue;
    for (int64_t j = 0; j < ld; ++j) p.row[j] = slope[j] * probability[j];
    const C mean = sum_row(p.row, ld);
    for (int64_t j = 0; j < ld; ++j) slope[j] = probability[j] * (slope[j] - mean);
  }
}

template <typename C>
void store_gradient(const NormalizeBackwardArgs& all, const NormalizeShape& shape,
                    const RowProblem<C>& p, const RowGradient<C>& d, int64_t problem) {
  const NormalizeArgs& args = all.forward;
  const int n = p.n, m = p.m;
  const int64_t ld = p.ld;
  if (args.scale != nullptr)
    for (int64_t e = 0; e < n * ld; ++e) d.slope[e] = d.slope[e] * p.scale;
  store_rows(args.dtype, d.slope, shape.inner_n, shape.inner_m, ld, shape.x_row, shape.x_column,
             problem * shape.x_of, all.dx);
  if (args.has_slack) {
    C sum = C(0);
    for (int i = 0; i < n - 1; ++i) sum = sum + d.slope[i * ld + m - 1];
    for (int j = 0; j < m; ++j) sum = sum + d.slope[(n - 1) * ld + j];
    static_cast<C*>(all.dslack)[problem] = sum;
  }
  if (all.da != nullptr)
    for (int i = 0; i < n; ++i) static_cast<C*>(all.da)[problem * n + i] = d.da[i];
  if (all.db != nullptr)
    for (int j = 0; j < m; ++j) static_cast<C*>(all.db)[problem * m + j] = d.db[j];
}

// The gradient of the result, with zeros beside it and where nothing weighs.
template <typename C>
void load_gradient(const NormalizeBackwardArgs& all, const NormalizeShape& shape,
                   const RowProblem<C>& p, int64_t problem, C* g) {
  const NormalizeArgs& args = all.forward;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<compute_t<T>, C>)
      load_rows(static_cast<const T*>(all.g) + problem * shape.y_of, p.n, p.m, shape.y_row,
                shape.y_column, p.ld, g);
  });
  for (int i = 0; i < p.n; ++i)
    for (int64_t j = 0; j < p.ld; ++j)
      if (p.b[j] == C(0) || p.a[i] == C(0)) g[i * p.ld + j] = C(0);
}

template <typename C>
void normalize_rows_backward(const NormalizeBackwardArgs& all, const NormalizeShape& shape) {
  const NormalizeArgs& args = all.forward;
  parallel_for(args.count, 1, [&](int64_t begin, int64_t end) {
    const int64_t ld = padded_columns(shape.m);
    RowSpace<C> space(row_problem_size(shape, args.n_iter + 1) +
                      row_gradient_size(shape, args.n_iter) + shape.n * ld);
    RowProblem<C> p = row_problem(args, shape, true, space);
    const RowGradient<C> d = row_gradient(p, space);
    C* const g = space.take(p.n * ld);
    const C *u = p.u + args.n_iter * p.n, *v = p.v + args.n_iter * ld;
    for (int64_t problem = begin; problem < end; ++problem) {
      load_problem(args, shape, problem, &p);
      iterate_rows(p, true);
      args.redo[problem] = left_rows(p, u, v);
      if (args.redo[problem]) continue;
      load_gradient(all, shape, p, problem, g);
      begin_gradient(p, d);
      sum_rows(p.n, ld, p.chunk, d.gamma, [&](int i) {
        C* const slope = d.slope + i * ld;
        const C *k = p.k + i * ld, *given = g + i * ld;
        C* const row = p.row;
        const C factor = u[i];
        const bool log_output = args.log_output;
#pragma omp simd
        for (int64_t j = 0; j < ld; ++j) {
          slope[j] = log_output ? C(0) : given[j] * factor * v[j];
          row[j] = log_output ? given[j] : slope[j] * k[j];
        }
        d.phi[i] = sum_row(row, ld);
        return row;
      });
      descend_rows(p, d);
      subtract_products(p, d);
      finish_rows(args, p, d, g);
      store_gradient(all, shape, p, d, problem);
    }
  });
}

}  // namespace
}  // namespace regkern::REGKERN_ISA
