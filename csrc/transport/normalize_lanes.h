#pragma once

#include <type_traits>

#include "core/parallel.h"
#include "core/registers.h"
#include "core/vec.h"
#include "transport/normalize.h"

// Problems of at most 16 rows and columns on the CPU: one in each lane of a vector. What a lane
// computes does not depend on how many there are.

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

template <typename C>
struct LanesOf {
  typedef C type __attribute__((vector_size(kRegisterBytes)));
};
template <typename C>
using Lanes = typename LanesOf<C>::type;
template <typename C>
constexpr int kLanesOf = kRegisterBytes / static_cast<int>(sizeof(C));

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
};

// Matrices of live problems from memory, and back. Each has `numel` elements, of which (i, j) lies
// at i row + j column. Lanes without a problem repeat the last.
template <typename T, typename C>
void load_lanes(const void* data, int64_t first, int live, int64_t numel, int n, int m, int64_t row,
                int64_t column, int stride, C* buffer, Lanes<C>* out) {
  const T* x = static_cast<const T*>(data) + first * numel;
  const C* from = buffer;
  if constexpr (sizeof(T) == sizeof(C))
    from = x;
  else
    load_elements(x, live * numel, buffer);
  const C* problems[kLanesOf<C>];
  for (int l = 0; l < kLanesOf<C>; ++l) problems[l] = from + (l < live ? l : live - 1) * numel;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < m; ++j) {
      const int64_t at = i * row + j * column;
      Lanes<C> values;
#pragma GCC unroll 16
      for (int l = 0; l < kLanesOf<C>; ++l) values[l] = problems[l][at];
      out[i * stride + j] = values;
    }
}

template <typename T, typename C>
void store_lanes(const Lanes<C>* in, int64_t first, int live, int64_t numel, int n, int m,
                 int64_t row, int64_t column, int stride, C* buffer, void* data) {
  T* y = static_cast<T*>(data) + first * numel;
  C* to = buffer;
  if constexpr (sizeof(T) == sizeof(C)) to = y;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < m; ++j) {
      const Lanes<C> values = in[i * stride + j];
      C* const at = to + i * row + j * column;
      if (live == kLanesOf<C>) {
#pragma GCC unroll 16
        for (int l = 0; l < kLanesOf<C>; ++l) at[l * numel] = values[l];
      } else {
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

// The same for N x N problems whose weights are all 1, in registers as far as they go.
template <int N, typename C>
void iterate_square(const LaneProblem<C>& p, bool keep) {
  using V = Lanes<C>;
  const V one = all_lanes(C(1));
  V u[N], v[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) u[j] = v[j] = one;
  V *to_u = p.u, *to_v = p.v;
  const auto store = [&] {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) to_u[j] = u[j];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) to_v[j] = v[j];
  };
  if (keep) store();
  for (int t = 1; t <= p.n_iter; ++t) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) u[i] = one / row_product<N>(p, v, i);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) v[j] = one / column_product<N>(p, u, j);
    if (!keep) continue;
    to_u += N;
    to_v += N;
    store();
  }
  if (!keep) store();
}

// Whether iterate_square and descend_square do it.
template <typename C>
bool is_square(const NormalizeArgs& args, const LaneProblem<C>& p, int n) {
  return sizeof(C) == sizeof(float) && p.n == n && p.m == n && !p.guarded && args.a == nullptr &&
         args.b == nullptr && !args.has_slack;
}

template <typename C>
void iterate_lanes(const NormalizeArgs& args, const LaneProblem<C>& p, bool keep) {
  if (p.guarded) return iterate_lanes<0, true>(p, keep);
  if constexpr (sizeof(C) == sizeof(float)) {
    if (is_square(args, p, 4)) return iterate_square<4>(p, keep);
    if (is_square(args, p, 8)) return iterate_square<8>(p, keep);
  }
  iterate_lanes<0, false>(p, keep);
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
  return p;
}
inline int64_t lane_problem_size(const NormalizeShape& shape, int64_t kept) {
  return 2 * shape.n * shape.m + (kept + 1) * (shape.n + shape.m);
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
    args.redo[first + l] = !p.guarded && left_range<C>(most_u[l], most_v[l]);
}

template <typename C>
inline void lane_logarithms(Lanes<C>* data, int64_t n) {
  C* const x = reinterpret_cast<C*>(data);
#pragma omp simd
  for (int64_t e = 0; e < n * kLanesOf<C>; ++e) x[e] = log_or_none(x[e]);
}

template <typename C>
void normalize_lanes(const NormalizeArgs& args, const NormalizeShape& shape) {
  using V = Lanes<C>;
  constexpr int kL = kLanesOf<C>;
  const int n = shape.n, m = shape.m;
  const int64_t blocks = (args.count + kL - 1) / kL;
  const int64_t work = static_cast<int64_t>(n) * m * args.n_iter * kL;
  parallel_for(blocks, 1 + (int64_t{1} << 17) / (work + 1), [&](int64_t begin, int64_t end) {
    LaneSpace<C> space(lane_problem_size(shape, 1));
    const Scratch<C> buffer(kL * shape.y_of + kBlock);
    const LaneProblem<C> p = lane_problem(args, shape, false, space);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kL;
      const int live = static_cast<int>(args.count - first < kL ? args.count - first : kL);
      load_problem(args, shape, first, live, buffer.data(), p);
      iterate_lanes(args, p, false);
      mark_lanes(args, p, p.u, p.v, first, live);
      if (args.log_output) {
        if (!args.logits || p.guarded) {
          for (int e = 0; e < n * m; ++e) p.shifted[e] = p.k[e];
          lane_logarithms<C>(p.shifted, n * m);
        }
        lane_logarithms<C>(p.u, n);
        lane_logarithms<C>(p.v, m);
        for (int i = 0; i < n; ++i)
          for (int j = 0; j < m; ++j) p.k[i * m + j] = p.u[i] + p.shifted[i * m + j] + p.v[j];
      } else {
        for (int i = 0; i < n; ++i)
          for (int j = 0; j < m; ++j) {
            V& k = p.k[i * m + j];
            k = p.u[i] * k * p.v[j];
          }
      }
      dispatch_floating(args.dtype, [&](auto zero) {
        using T = decltype(zero);
        if constexpr (std::is_same_v<compute_t<T>, C>)
          store_lanes<T, C>(p.k, first, live, shape.y_of, n, m, shape.y_row, shape.y_column, m,
                            buffer.data(), args.y);
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

// For N x N problems whose weights are all 1. s and r are kept, so that a row of the slopes stays
// in registers while all of their products are taken from it.
template <int N, typename C>
void descend_square(const LaneProblem<C>& p, const LaneGradient<C>& d) {
  using V = Lanes<C>;
  V phi[N], gamma[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    phi[j] = d.phi[j];
    gamma[j] = d.gamma[j];
  }
  for (int t = p.n_iter; t > 0; --t) {
    const V *u = p.u + t * N, *v = p.v + t * N;
    V s[N], r[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) s[j] = gamma[j] * v[j];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      r[i] = (phi[i] - u[i] * row_product<N>(p, s, i)) * u[i];
      phi[i] = V{};
    }
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) gamma[j] = V{} - v[j - N] * column_product<N>(p, r, j);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      d.s[t * N + j] = s[j];
      d.r[t * N + j] = r[j];
    }
  }
  for (int i = 0; i < N; ++i) {
    V slope[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) slope[j] = d.slope[i * N + j];
    for (int t = p.n_iter; t > 0; --t) {
      const V u = p.u[t * N + i], r = d.r[t * N + i];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j)
        slope[j] = (slope[j] - u * d.s[t * N + j]) - r * p.v[(t - 1) * N + j];
    }
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) d.slope[i * N + j] = slope[j];
  }
}

template <typename C>
void descend_lanes(const NormalizeArgs& args, const LaneProblem<C>& p, const LaneGradient<C>& d) {
  if (p.guarded) return descend_lanes<0, true>(p, d);
  if constexpr (sizeof(C) == sizeof(float)) {
    if (is_square(args, p, 4)) return descend_square<4>(p, d);
    if (is_square(args, p, 8)) return descend_square<8>(p, d);
  }
  descend_lanes<0, false>(p, d);
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

template <typename C>
void normalize_lanes_backward(const NormalizeBackwardArgs& all, const NormalizeShape& shape) {
  using V = Lanes<C>;
  constexpr int kL = kLanesOf<C>;
  const NormalizeArgs& args = all.forward;
  const int n = shape.n, m = shape.m;
  const int64_t blocks = (args.count + kL - 1) / kL;
  const int64_t work = static_cast<int64_t>(n) * m * args.n_iter * kL * 4;
  parallel_for(blocks, 1 + (int64_t{1} << 17) / (work + 1), [&](int64_t begin, int64_t end) {
    LaneSpace<C> space(lane_problem_size(shape, args.n_iter + 1) + 2 * n * m +
                       (args.n_iter + 4) * (n + m));
    const Scratch<C> buffer(kL * shape.y_of + kBlock);
    const LaneProblem<C> p = lane_problem(args, shape, true, space);
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
    const V *u = p.u + args.n_iter * n, *v = p.v + args.n_iter * m;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kL;
      const int live = static_cast<int>(args.count - first < kL ? args.count - first : kL);
      load_problem(args, shape, first, live, buffer.data(), p);
      iterate_lanes(args, p, true);
      mark_lanes(args, p, u, v, first, live);
      dispatch_floating(args.dtype, [&](auto zero) {
        using T = decltype(zero);
        if constexpr (std::is_same_v<compute_t<T>, C>)
          load_lanes<T>(all.g, first, live, shape.y_of, n, m, shape.y_row, shape.y_column, m,
                        buffer.data(), d.g);
      });
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
      descend_lanes(args, p, d);
      finish_lanes(args, p, d);
      if (args.scale != nullptr)
        for (int l = 0; l < live; ++l) {
          const C scale = number_of(args.scale, args.scale_stride, first + l, C(1));
          for (int e = 0; e < n * m; ++e) d.slope[e][l] = d.slope[e][l] * scale;
        }
      dispatch_floating(args.dtype, [&](auto zero) {
        using T = decltype(zero);
        if constexpr (std::is_same_v<compute_t<T>, C>)
          store_lanes<T, C>(d.slope, first, live, shape.x_of, shape.inner_n, shape.inner_m,
                            shape.x_row, shape.x_column, m, buffer.data(), all.dx);
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
  });
}

}  // namespace
}  // namespace regkern::REGKERN_ISA
