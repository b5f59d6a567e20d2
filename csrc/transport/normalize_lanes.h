#pragma once

#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"
#include "transport/lane_transpose.h"
#include "transport/normalize.h"

// Problems of at most 16 rows and columns on the CPU: one in each lane of a vector. What a lane
// computes does not depend on how many there are.

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

template <typename C>
inline Lanes<C> all_lanes(C x) {
  return Lanes<C>{} + x;
}

// Space for so many vectors.
template <typename C>
class LaneSpace {
 public:
  explicit LaneSpace(int64_t n) : scratch_(n * kRegisterBytes + 64) {
    const auto at = reinterpret_cast<uintptr_t>(scratch_.data());
    next_ = reinterpret_cast<Lanes<C>*>((at + 63) / 64 * 64);
  }
  Lanes<C>* take(int64_t n) {
    Lanes<C>* const first = next_;
    next_ += n;
    return first;
  }

 private:
  Scratch<char> scratch_;
  Lanes<C>* next_;
};

template <typename C>
struct LaneProblem {
  int n, m, n_iter;
  bool guarded, softmax;
  Lanes<C> eps;
  Lanes<C>* k;        // (n, m)
  Lanes<C>* shifted;  // (n, m): logarithms of k, or the softmax without ε
  Lanes<C>*a, *b;     // (n), (m)
  Lanes<C>*u, *v;     // (n), (m), or (n_iter + 1) times as many
  Lanes<C>* seen;     // what pairs of sums say about the range
};

// Whether matrices are read and written a vector of neighbours at a time: those without gaps, row
// by row or column by column, that fill vectors.
template <typename C>
inline bool is_whole(int64_t numel, int n, int m, int64_t row, int64_t column) {
  const bool dense = (column == 1 && row == m) || (row == 1 && column == n);
  return dense && numel == n * m && numel % kLanesOf<C> == 0;
}
// Where element e of such a matrix is among its lanes, whose rows are `stride` apart.
inline int lane_place(int e, int row, int column, int stride) {
  if (column == 1 && stride == row) return e;
  return column == 1 ? e / row * stride + e % row : e % column * stride + e / column;
}

// Matrices of live problems from memory, and back. Each has `numel` elements, of which (i, j) lies
// at i row + j column. Lanes without a problem repeat the last.
template <typename T, typename C>
void load_lanes(const void* data, int64_t first, int live, int64_t numel, int n, int m, int64_t row,
                int64_t column, int stride, C* buffer, Lanes<C>* out) {
  constexpr int kL = kLanesOf<C>;
  const T* x = static_cast<const T*>(data) + first * numel;
  const C* from = buffer;
  if constexpr (sizeof(T) == sizeof(C))
    from = x;
  else
    load_elements(x, live * numel, buffer);
  const C* problems[kL];
  for (int l = 0; l < kL; ++l) problems[l] = from + (l < live ? l : live - 1) * numel;
  if (is_whole<C>(numel, n, m, row, column)) {
    const int by_row = static_cast<int>(row), by_column = static_cast<int>(column);
    for (int e = 0; e < n * m; e += kL) {
      Lanes<C> block[kL];
#pragma GCC unroll 16
      for (int l = 0; l < kL; ++l) block[l] = load_vector(problems[l] + e);
      transpose_lanes<C>(block);
#pragma GCC unroll 16
      for (int l = 0; l < kL; ++l) out[lane_place(e + l, by_row, by_column, stride)] = block[l];
    }
    return;
  }
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < m; ++j) {
      const int64_t at = i * row + j * column;
      Lanes<C> values;
#pragma GCC unroll 16
      for (int l = 0; l < kL; ++l) values[l] = problems[l][at];
      out[i * stride + j] = values;
    }
}

template <typename T, typename C>
void store_lanes(const Lanes<C>* in, int64_t first, int live, int64_t numel, int n, int m,
                 int64_t row, int64_t column, int stride, C* buffer, void* data) {
  constexpr int kL = kLanesOf<C>;
  T* y = static_cast<T*>(data) + first * numel;
  C* to = buffer;
  if constexpr (sizeof(T) == sizeof(C)) to = y;
  if (is_whole<C>(numel, n, m, row, column)) {
    const int by_row = static_cast<int>(row), by_column = static_cast<int>(column);
    for (int e = 0; e < n * m; e += kL) {
      Lanes<C> block[kL];
#pragma GCC unroll 16
      for (int l = 0; l < kL; ++l) block[l] = in[lane_place(e + l, by_row, by_column, stride)];
      transpose_lanes<C>(block);
      if (live == kL) {
#pragma GCC unroll 16
        for (int l = 0; l < kL; ++l) store_vector(block[l], to + l * numel + e);
      } else {
        for (int l = 0; l < live; ++l) store_vector(block[l], to + l * numel + e);
      }
    }
  } else {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < m; ++j) {
        const Lanes<C> values = in[i * stride + j];
        C* const at = to + i * row + j * column;
        for (int l = 0; l < live; ++l) at[l * numel] = values[l];
      }
  }
  if constexpr (sizeof(T) != sizeof(C)) store_elements(buffer, live * numel, y);
}

template <typename C>
inline void load_weights(const NormalizeArgs& args, const NormalizeShape& shape, int64_t first,
                         int live, const LaneProblem<C>& p) {
  const auto lane = [=](int l) { return first + (l < live ? l : live - 1); };
  for (int i = 0; i < p.n; ++i) {
    if (args.a == nullptr || args.a_stride == 0)
      p.a[i] = all_lanes(row_weight<C>(args, shape, 0, i));
    else
      for (int l = 0; l < kLanesOf<C>; ++l) p.a[i][l] = row_weight<C>(args, shape, lane(l), i);
  }
  for (int j = 0; j < p.m; ++j) {
    if (args.b == nullptr || args.b_stride == 0)
      p.b[j] = all_lanes(column_weight<C>(args, shape, 0, j));
    else
      for (int l = 0; l < kLanesOf<C>; ++l) p.b[j][l] = column_weight<C>(args, shape, lane(l), j);
  }
}

// k, and what else `shifted` is.
template <typename C>
void load_problem(const NormalizeArgs& args, const NormalizeShape& shape, int64_t first, int live,
                  C* buffer, const LaneProblem<C>& p) {
  using V = Lanes<C>;
  const int n = p.n, m = p.m;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<compute_t<T>, C>)
      load_lanes<T>(args.x, first, live, shape.x_of, shape.inner_n, shape.inner_m, shape.x_row,
                    shape.x_column, m, buffer, p.k);
  });
  load_weights(args, shape, first, live, p);
  if (args.has_slack) {
    V z;
    for (int l = 0; l < kLanesOf<C>; ++l)
      z[l] = number_of(args.slack, args.slack_stride, first + (l < live ? l : live - 1), C(0));
    for (int i = 0; i < n; ++i) p.k[i * m + m - 1] = z;
    for (int j = 0; j < m; ++j) p.k[(n - 1) * m + j] = z;
  }
  if (args.scale != nullptr) {
    V scale;
    for (int l = 0; l < kLanesOf<C>; ++l)
      scale[l] = number_of(args.scale, args.scale_stride, first + (l < live ? l : live - 1), C(1));
    for (int e = 0; e < n * m; ++e) p.k[e] = p.k[e] * scale;
  }
  const V none = all_lanes(args.logits ? no_logit<C>() : C(0));
  if (args.a != nullptr || args.b != nullptr)
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < m; ++j) {
        V& k = p.k[i * m + j];
        k = p.a[i] == V{} ? none : k;
        k = p.b[j] == V{} ? none : k;
      }
  if (!args.logits) {
    const V nan = all_lanes(static_cast<C>(__builtin_nan("")));
    for (int e = 0; e < n * m; ++e) p.k[e] = p.k[e] < V{} ? nan : p.k[e];
    return;
  }
  const V low = all_lanes(no_logit<C>());
  for (int i = 0; i < n; ++i) {
    V most = low;
    for (int j = 0; j < m; ++j) most = p.k[i * m + j] > most ? p.k[i * m + j] : most;
    most = most == low ? V{} : most;
    for (int j = 0; j < m; ++j) p.shifted[i * m + j] = p.k[i * m + j] - most;
  }
  const C* const from = reinterpret_cast<const C*>(p.shifted);
  C* const to = reinterpret_cast<C*>(p.k);
#pragma omp simd
  for (int e = 0; e < n * m * kLanesOf<C>; ++e) to[e] = exp_or_zero(from[e]);
  if (!p.softmax) return;
  for (int i = 0; i < n; ++i) {
    V sum = p.k[i * m];
    for (int j = 1; j < m; ++j) sum = sum + p.k[i * m + j];
    for (int j = 0; j < m; ++j) {
      const V probability = p.a[i] == V{} ? V{} : p.k[i * m + j] / sum;
      p.shifted[i * m + j] = probability;
      p.k[i * m + j] = (p.a[i] == V{} || p.b[j] == V{}) ? V{} : probability + p.eps;
    }
  }
}

// Σ_j k_ij v_j and Σ_i k_ij u_i.
template <int N, typename C>
inline Lanes<C> row_product(const LaneProblem<C>& p, const Lanes<C>* v, int i) {
  const int m = N > 0 ? N : p.m;
  const Lanes<C>* const k = p.k + i * m;
  Lanes<C> sum = k[0] * v[0];
#pragma GCC unroll 8
  for (int j = 1; j < m; ++j) sum = sum + k[j] * v[j];
  return sum;
}
template <int N, typename C>
inline Lanes<C> column_product(const LaneProblem<C>& p, const Lanes<C>* u, int j) {
  const int n = N > 0 ? N : p.n, m = N > 0 ? N : p.m;
  const Lanes<C>* const k = p.k + j;
  Lanes<C> sum = k[0] * u[0];
#pragma GCC unroll 8
  for (int i = 1; i < n; ++i) sum = sum + k[i * m] * u[i];
  return sum;
}

// All steps; iterate t is kept at t times n and m where `keep`.
template <int N, bool kGuarded, typename C>
void iterate_lanes(const LaneProblem<C>& p, bool keep) {
  using V = Lanes<C>;
  const int n = N > 0 ? N : p.n, m = N > 0 ? N : p.m;
  const V one = all_lanes(C(1)), eps = p.eps;
  V *u = p.u, *v = p.v;
  for (int i = 0; i < n; ++i) u[i] = p.a[i] == V{} ? V{} : one;
  for (int j = 0; j < m; ++j) v[j] = p.b[j] == V{} ? V{} : one;
  for (int t = 1; t <= p.n_iter; ++t) {
    V* const next_u = keep ? u + n : u;
    V* const next_v = keep ? v + m : v;
    if (kGuarded && t == 1 && p.softmax) {
      for (int i = 0; i < n; ++i) next_u[i] = u[i];
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i)
        next_u[i] = next_scaling(p.a[i], u[i], row_product<N>(p, v, i), eps, kGuarded);
    }
#pragma GCC unroll 8
    for (int j = 0; j < m; ++j)
      next_v[j] = next_scaling(p.b[j], v[j], column_product<N>(p, next_u, j), eps, kGuarded);
    u = next_u;
    v = next_v;
  }
}

// Problems that are iterated together: those of one vector wait for their own divisions and sums.
constexpr int kLaneGroups = 2;

// The same for N x N problems whose weights are all 1, in registers as far as they go, and of G
// vectors.
template <int N, int G, typename C>
void iterate_square(const LaneProblem<C>* p, bool keep) {
  using V = Lanes<C>;
  const V one = all_lanes(C(1));
  V u[G][N], v[G][N], seen[G];
#pragma GCC unroll 2
  for (int g = 0; g < G; ++g) {
    seen[g] = V{};
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) u[g][j] = v[g][j] = one;
  }
  const int n_iter = p->n_iter;
  for (int t = 0;; ++t) {
    if (keep || t == n_iter) {
      const int at = keep ? t * N : 0;
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) p[g].u[at + j] = u[g][j];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) p[g].v[at + j] = v[g][j];
      }
    }
    if (t == n_iter) break;
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
      for (int i = 0; i < N; i += 2)
        invert_pair(row_product<N>(p[g], v[g], i), row_product<N>(p[g], v[g], i + 1), one, &u[g][i],
                    &u[g][i + 1], &seen[g]);
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
      for (int j = 0; j < N; j += 2)
        invert_pair(column_product<N>(p[g], u[g], j), column_product<N>(p[g], u[g], j + 1), one,
                    &v[g][j], &v[g][j + 1], &seen[g]);
  }
#pragma GCC unroll 2
  for (int g = 0; g < G; ++g) *p[g].seen = seen[g];
}

// Whether iterate_square and descend_square do it.
template <typename C>
bool is_square(const NormalizeArgs& args, const LaneProblem<C>& p, int n) {
  return sizeof(C) == sizeof(float) && p.n == n && p.m == n && !p.guarded && args.a == nullptr &&
         args.b == nullptr && !args.has_slack;
}

// So many of kLaneGroups problems; lanes without one repeat what is there.
template <typename C>
void iterate_lanes(const NormalizeArgs& args, const LaneProblem<C>* p, int held, bool keep) {
  if constexpr (sizeof(C) == sizeof(float)) {
    if (is_square(args, *p, 4)) {
      if (held == kLaneGroups) return iterate_square<4, kLaneGroups>(p, keep);
      return iterate_square<4, 1>(p, keep);
    }
    if (is_square(args, *p, 8)) {
      for (int g = 0; g < held; ++g) iterate_square<8, 1>(p + g, keep);
      return;
    }
  }
  for (int g = 0; g < held; ++g) {
    *p[g].seen = Lanes<C>{};
    if (p->guarded)
      iterate_lanes<0, true>(p[g], keep);
    else
      iterate_lanes<0, false>(p[g], keep);
  }
}

template <typename C>
LaneProblem<C> lane_problem(const NormalizeArgs& args, const NormalizeShape& shape, bool keep,
                            LaneSpace<C>& space) {
  LaneProblem<C> p{};
  p.n = shape.n;
  p.m = shape.m;
  p.n_iter = args.n_iter;
  p.guarded = args.eps > 0.0;
  p.softmax = begins_with_softmax(args);
  p.eps = all_lanes(static_cast<C>(args.eps));
  const int64_t kept = keep ? args.n_iter + 1 : 1;
  p.k = space.take(p.n * p.m);
  p.shifted = space.take(p.n * p.m);
  p.a = space.take(p.n);
  p.b = space.take(p.m);
  p.u = space.take(kept * p.n);
  p.v = space.take(kept * p.m);
  p.seen = space.take(1);
  return p;
}
inline int64_t lane_problem_size(const NormalizeShape& shape, int64_t kept) {
  return 2 * shape.n * shape.m + (kept + 1) * (shape.n + shape.m) + 1;
}

// Which of the problems have left the range of the scaling form.
template <typename C>
void mark_lanes(const NormalizeArgs& args, const LaneProblem<C>& p, const Lanes<C>* u,
                const Lanes<C>* v, int64_t first, int live) {
  using V = Lanes<C>;
  const V infinity = all_lanes(-no_logit<C>());
  V most_u{}, most_v{};
  for (int i = 0; i < p.n; ++i) most_u = larger_scaling(most_u, u[i], infinity);
  for (int j = 0; j < p.m; ++j) most_v = larger_scaling(most_v, v[j], infinity);
  for (int l = 0; l < live; ++l)
    args.redo[first + l] =
        !p.guarded && (left_range<C>(most_u[l], most_v[l]) || pairs_left_range<C>((*p.seen)[l]));
}

template <typename C>
inline void lane_logarithms(Lanes<C>* data, int64_t n) {
  C* const x = reinterpret_cast<C*>(data);
#pragma omp simd
  for (int64_t e = 0; e < n * kLanesOf<C>; ++e) x[e] = log_or_none(x[e]);
}

// f(first problem, how many live, which of the groups) of all vectors of problems in a piece.
template <typename C, typename F>
inline void for_groups(const NormalizeArgs& args, int64_t block, int held, F f) {
  constexpr int kL = kLanesOf<C>;
  for (int g = 0; g < held; ++g) {
    const int64_t first = (block + g) * kL, left = args.count - first;
    f(first, static_cast<int>(left < kL ? left : kL), g);
  }
}

// u k v, or its logarithm.
template <typename C>
void plans_of(const NormalizeArgs& args, const LaneProblem<C>& p) {
  using V = Lanes<C>;
  const int n = p.n, m = p.m;
  if (!args.log_output) {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < m; ++j) {
        V& k = p.k[i * m + j];
        k = p.u[i] * k * p.v[j];
      }
    return;
  }
  if (!args.logits || p.guarded) {
    for (int e = 0; e < n * m; ++e) p.shifted[e] = p.k[e];
    lane_logarithms<C>(p.shifted, n * m);
  }
  lane_logarithms<C>(p.u, n);
  lane_logarithms<C>(p.v, m);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < m; ++j) p.k[i * m + j] = p.u[i] + p.shifted[i * m + j] + p.v[j];
}

template <typename C>
void normalize_lanes(const NormalizeArgs& args, const NormalizeShape& shape) {
  constexpr int kL = kLanesOf<C>;
  const int n = shape.n, m = shape.m;
  const int64_t blocks = (args.count + kL - 1) / kL;
  const int64_t work = static_cast<int64_t>(n) * m * args.n_iter * kL;
  parallel_for(blocks, 1 + (int64_t{1} << 17) / (work + 1), [&](int64_t begin, int64_t end) {
    LaneSpace<C> space(kLaneGroups * lane_problem_size(shape, 1));
    const Scratch<C> buffer(kL * shape.y_of + kBlock);
    LaneProblem<C> p[kLaneGroups];
    for (LaneProblem<C>& each : p) each = lane_problem(args, shape, false, space);
    for (int64_t block = begin; block < end; block += kLaneGroups) {
      const int held = static_cast<int>(end - block < kLaneGroups ? end - block : kLaneGroups);
      for_groups<C>(args, block, held, [&](int64_t first, int live, int g) {
        load_problem(args, shape, first, live, buffer.data(), p[g]);
      });
      iterate_lanes(args, p, held, false);
      for_groups<C>(args, block, held, [&](int64_t first, int live, int g) {
        mark_lanes(args, p[g], p[g].u, p[g].v, first, live);
        plans_of(args, p[g]);
        dispatch_floating(args.dtype, [&](auto zero) {
          using T = decltype(zero);
          if constexpr (std::is_same_v<compute_t<T>, C>)
            store_lanes<T, C>(p[g].k, first, live, shape.y_of, n, m, shape.y_row, shape.y_column, m,
                              buffer.data(), args.y);
        });
      });
    }
  });
}

// What the gradient needs besides.
template <typename C>
struct LaneGradient {
  Lanes<C>*g, *slope;  // (n, m): of the output, and by k
  Lanes<C>*inverse_a, *inverse_b;
  Lanes<C>*phi, *gamma, *s, *r;  // (n), (m), (m), (n)
  Lanes<C>*da, *db;
};

template <int N, bool kGuarded, typename C>
void descend_lanes(const LaneProblem<C>& p, const LaneGradient<C>& d) {
  using V = Lanes<C>;
  const int n = N > 0 ? N : p.n, m = N > 0 ? N : p.m;
  const V eps = p.eps;
  for (int t = p.n_iter; t > 0; --t) {
    const V *u = p.u + t * n, *v = p.v + t * m, *before_u = u - n, *before_v = v - m;
#pragma GCC unroll 8
    for (int j = 0; j < m; ++j) {
      const V by_b = d.gamma[j] * d.inverse_b[j];
      d.db[j] = d.db[j] + by_b;
      d.s[j] = by_b * v[j];
      d.gamma[j] = kGuarded ? carried(d.s[j], eps, before_v[j]) : V{};
    }
    const bool rows = !(kGuarded && t == 1 && p.softmax);
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      const V phi = d.phi[i] - u[i] * row_product<N>(p, d.s, i);
      const V by_a = rows ? phi * d.inverse_a[i] : V{};
      d.da[i] = d.da[i] + by_a;
      d.r[i] = by_a * u[i];
      d.phi[i] = kGuarded ? carried(d.r[i], eps, before_u[i]) : V{};
#pragma GCC unroll 8
      for (int j = 0; j < m; ++j) {
        V& slope = d.slope[i * m + j];
        slope = (slope - u[i] * d.s[j]) - d.r[i] * before_v[j];
      }
    }
    if (t > 1) {
#pragma GCC unroll 8
      for (int j = 0; j < m; ++j)
        d.gamma[j] = d.gamma[j] - before_v[j] * column_product<N>(p, d.r, j);
    }
  }
}

// For N x N problems whose weights are all 1, of G vectors. s and r are kept, so that slopes stay
// in registers, two rows of four, while all of their products are taken from them.
template <int N, int G, typename C>
void descend_square(const LaneProblem<C>* p, const LaneGradient<C>* d) {
  using V = Lanes<C>;
  V phi[G][N], gamma[G][N];
#pragma GCC unroll 2
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      phi[g][j] = d[g].phi[j];
      gamma[g][j] = d[g].gamma[j];
    }
  const int n_iter = p->n_iter;
  for (int t = n_iter; t > 0; --t) {
    V r[G][N];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
      V *const u = p[g].u + t * N, *const v = p[g].v + t * N, *const s = d[g].s + t * N;
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) s[j] = gamma[g][j] = gamma[g][j] * v[j];
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        r[g][i] = (phi[g][i] - u[i] * row_product<N>(p[g], gamma[g], i)) * u[i];
        phi[g][i] = V{};
        d[g].r[t * N + i] = r[g][i];
      }
    }
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j)
        gamma[g][j] = V{} - p[g].v[(t - 1) * N + j] * column_product<N>(p[g], r[g], j);
  }
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < N; i += 2)
      for (int j = 0; j < N; j += 4) {
        V first[4], second[4];
        V *const upper = d[g].slope + i * N + j, *const lower = upper + N;
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          first[q] = upper[q];
          second[q] = lower[q];
        }
        for (int t = n_iter; t > 0; --t) {
          const V *u = p[g].u + t * N + i, *r = d[g].r + t * N + i;
          const V *s = d[g].s + t * N + j, *v = p[g].v + (t - 1) * N + j;
          const V u_first = u[0], u_second = u[1], r_first = r[0], r_second = r[1];
#pragma GCC unroll 4
          for (int q = 0; q < 4; ++q) {
            first[q] = (first[q] - u_first * s[q]) - r_first * v[q];
            second[q] = (second[q] - u_second * s[q]) - r_second * v[q];
          }
        }
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          upper[q] = first[q];
          lower[q] = second[q];
        }
      }
}

template <typename C>
void descend_lanes(const NormalizeArgs& args, const LaneProblem<C>* p, const LaneGradient<C>* d,
                   int held) {
  if constexpr (sizeof(C) == sizeof(float)) {
    if (is_square(args, *p, 4)) {
      if (held == kLaneGroups) return descend_square<4, kLaneGroups>(p, d);
      return descend_square<4, 1>(p, d);
    }
    if (is_square(args, *p, 8)) {
      for (int g = 0; g < held; ++g) descend_square<8, 1>(p + g, d + g);
      return;
    }
  }
  for (int g = 0; g < held; ++g) {
    if (p->guarded)
      descend_lanes<0, true>(p[g], d[g]);
    else
      descend_lanes<0, false>(p[g], d[g]);
  }
}

// slope → the gradient by x, still to be multiplied by the scale.
template <typename C>
void finish_lanes(const NormalizeArgs& args, const LaneProblem<C>& p, const LaneGradient<C>& d) {
  using V = Lanes<C>;
  const int n = p.n, m = p.m;
  if (args.logits && !p.guarded) {
    for (int e = 0; e < n * m; ++e) {
      const V along = p.k[e] * d.slope[e];
      d.slope[e] = args.log_output ? d.g[e] + along : along;
    }
    return;
  }
  if (args.log_output)
    for (int e = 0; e < n * m; ++e)
      d.slope[e] = (p.k[e] == V{} ? V{} : d.g[e] / p.k[e]) + d.slope[e];
  if (!p.softmax) return;
  for (int i = 0; i < n; ++i) {
    V mean = d.slope[i * m] * p.shifted[i * m];
    for (int j = 1; j < m; ++j) mean = mean + d.slope[i * m + j] * p.shifted[i * m + j];
    for (int j = 0; j < m; ++j)
      d.slope[i * m + j] = p.shifted[i * m + j] * (d.slope[i * m + j] - mean);
  }
}

// Where the descent begins: the slopes by u, v and k of the plan.
template <int N, typename C>
void begin_descent(const NormalizeArgs& args, const LaneProblem<C>& p, const LaneGradient<C>& d) {
  using V = Lanes<C>;
  const int n = N > 0 ? N : p.n, m = N > 0 ? N : p.m;
  const V *u = p.u + p.n_iter * n, *v = p.v + p.n_iter * m;
  const V one = all_lanes(C(1));
  for (int i = 0; i < n; ++i) {
    d.inverse_a[i] = inverse_weight(p.a[i], one);
    d.da[i] = V{};
  }
  for (int j = 0; j < m; ++j) {
    d.inverse_b[j] = inverse_weight(p.b[j], one);
    d.db[j] = V{};
  }
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < m; ++j) {
      V& g = d.g[i * m + j];
      if (args.log_output) {
        g = (p.a[i] == V{} || p.b[j] == V{}) ? V{} : g;
        d.slope[i * m + j] = V{};
        d.phi[i] = j == 0 ? g : d.phi[i] + g;
        d.gamma[j] = i == 0 ? g : d.gamma[j] + g;
      } else {
        const V slope = g * u[i] * v[j], along = slope * p.k[i * m + j];
        d.slope[i * m + j] = slope;
        d.phi[i] = j == 0 ? along : d.phi[i] + along;
        d.gamma[j] = i == 0 ? along : d.gamma[j] + along;
      }
    }
}

template <typename C>
LaneGradient<C> lane_gradient(const NormalizeArgs& args, const NormalizeShape& shape,
                              LaneSpace<C>& space) {
  const int n = shape.n, m = shape.m;
  LaneGradient<C> d{};
  d.g = space.take(n * m);
  d.slope = space.take(n * m);
  d.inverse_a = space.take(n);
  d.inverse_b = space.take(m);
  d.phi = space.take(n);
  d.gamma = space.take(m);
  d.s = space.take((args.n_iter + 1) * m);
  d.r = space.take((args.n_iter + 1) * n);
  d.da = space.take(n);
  d.db = space.take(m);
  return d;
}
inline int64_t lane_gradient_size(const NormalizeArgs& args, const NormalizeShape& shape) {
  return 2 * shape.n * shape.m + (args.n_iter + 4) * (shape.n + shape.m);
}

// The gradients of a vector of problems.
template <typename C>
void store_gradient(const NormalizeBackwardArgs& all, const NormalizeShape& shape, int64_t first,
                    int live, C* buffer, const LaneGradient<C>& d) {
  using V = Lanes<C>;
  const NormalizeArgs& args = all.forward;
  const int n = shape.n, m = shape.m;
  if (args.scale != nullptr)
    for (int l = 0; l < live; ++l) {
      const C scale = number_of(args.scale, args.scale_stride, first + l, C(1));
      for (int e = 0; e < n * m; ++e) d.slope[e][l] = d.slope[e][l] * scale;
    }
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<compute_t<T>, C>)
      store_lanes<T, C>(d.slope, first, live, shape.x_of, shape.inner_n, shape.inner_m, shape.x_row,
                        shape.x_column, m, buffer, all.dx);
  });
  if (args.has_slack) {
    V sum{};
    for (int i = 0; i < n - 1; ++i) sum = sum + d.slope[i * m + m - 1];
    for (int j = 0; j < m; ++j) sum = sum + d.slope[(n - 1) * m + j];
    for (int l = 0; l < live; ++l) static_cast<C*>(all.dslack)[first + l] = sum[l];
  }
  for (int l = 0; l < live; ++l) {
    if (all.da != nullptr)
      for (int i = 0; i < n; ++i) static_cast<C*>(all.da)[(first + l) * n + i] = d.da[i][l];
    if (all.db != nullptr)
      for (int j = 0; j < m; ++j) static_cast<C*>(all.db)[(first + l) * m + j] = d.db[j][l];
  }
}

template <typename C>
void normalize_lanes_backward(const NormalizeBackwardArgs& all, const NormalizeShape& shape) {
  constexpr int kL = kLanesOf<C>;
  const NormalizeArgs& args = all.forward;
  const int n = shape.n, m = shape.m;
  const int64_t blocks = (args.count + kL - 1) / kL;
  const int64_t work = static_cast<int64_t>(n) * m * args.n_iter * kL * 4;
  parallel_for(blocks, 1 + (int64_t{1} << 17) / (work + 1), [&](int64_t begin, int64_t end) {
    LaneSpace<C> space(kLaneGroups * (lane_problem_size(shape, args.n_iter + 1) +
                                      lane_gradient_size(args, shape)));
    const Scratch<C> buffer(kL * shape.y_of + kBlock);
    LaneProblem<C> p[kLaneGroups];
    LaneGradient<C> d[kLaneGroups];
    for (LaneProblem<C>& each : p) each = lane_problem(args, shape, true, space);
    for (LaneGradient<C>& each : d) each = lane_gradient(args, shape, space);
    for (int64_t block = begin; block < end; block += kLaneGroups) {
      const int held = static_cast<int>(end - block < kLaneGroups ? end - block : kLaneGroups);
      for_groups<C>(args, block, held, [&](int64_t first, int live, int g) {
        load_problem(args, shape, first, live, buffer.data(), p[g]);
      });
      iterate_lanes(args, p, held, true);
      for_groups<C>(args, block, held, [&](int64_t first, int live, int g) {
        const int end_u = args.n_iter * n, end_v = args.n_iter * m;
        mark_lanes(args, p[g], p[g].u + end_u, p[g].v + end_v, first, live);
        dispatch_floating(args.dtype, [&](auto zero) {
          using T = decltype(zero);
          if constexpr (std::is_same_v<compute_t<T>, C>)
            load_lanes<T>(all.g, first, live, shape.y_of, n, m, shape.y_row, shape.y_column, m,
                          buffer.data(), d[g].g);
        });
        if (sizeof(C) == sizeof(float) && n == 4 && m == 4)
          begin_descent<4>(args, p[g], d[g]);
        else
          begin_descent<0>(args, p[g], d[g]);
      });
      descend_lanes(args, p, d, held);
      for_groups<C>(args, block, held, [&](int64_t first, int live, int g) {
        finish_lanes(args, p[g], d[g]);
        store_gradient(all, shape, first, live, buffer.data(), d[g]);
      });
    }
  });
}

}  // namespace
}  // namespace regkern::REGKERN_ISA
