#pragma once

#include "core/vector.cuh"
#include "transport/normalize.h"

// What the kernels of the normalisation share: how threads add rows and columns of a problem, and
// what an element of a problem is.

namespace regkern::cuda {
namespace {

using namespace transport;

constexpr int kWarpLanes = 32;
constexpr int kLongThreads = 256;

template <typename C>
__device__ __forceinline__ C read_element(Dtype dtype, const void* data, int64_t at) {
  if constexpr (sizeof(C) == sizeof(double)) {
    return static_cast<const double*>(data)[at];
  } else {
    if (dtype == Dtype::float32) return static_cast<const float*>(data)[at];
    if (dtype == Dtype::bfloat16) return widen(static_cast<const bfloat16*>(data)[at]);
    return widen(static_cast<const float16*>(data)[at]);
  }
}
template <typename C>
__device__ __forceinline__ void write_element(Dtype dtype, C value, void* data, int64_t at) {
  if constexpr (sizeof(C) == sizeof(double)) {
    static_cast<double*>(data)[at] = value;
  } else {
    if (dtype == Dtype::float32)
      static_cast<float*>(data)[at] = value;
    else if (dtype == Dtype::bfloat16)
      narrow(value, static_cast<bfloat16*>(data) + at);
    else
      narrow(value, static_cast<float16*>(data) + at);
  }
}

// One problem: its numbers, and its elements as the CPU loads them.
template <typename C>
struct ElementsOf {
  const NormalizeArgs& args;
  const NormalizeShape& shape;
  int64_t problem;
  C scale, slack;

  __device__ ElementsOf(const NormalizeArgs& args, const NormalizeShape& shape, int64_t problem)
      : args(args),
        shape(shape),
        problem(problem),
        scale(number_of(args.scale, args.scale_stride, problem, C(1))),
        slack(number_of(args.slack, args.slack_stride, problem, C(0))) {}

  __device__ __forceinline__ C a(int i) const { return row_weight<C>(args, shape, problem, i); }
  __device__ __forceinline__ C b(int j) const { return column_weight<C>(args, shape, problem, j); }
  __device__ __forceinline__ bool excluded(int i, int j) const {
    return (args.a != nullptr && a(i) == C(0)) || (args.b != nullptr && b(j) == C(0));
  }
  __device__ __forceinline__ C given(int i, int j) const {
    return i < shape.inner_n && j < shape.inner_m
               ? read_element<C>(args.dtype, args.x,
                                 problem * shape.x_of + i * shape.x_row + j * shape.x_column)
               : slack;
  }
  // A logit, or a number of at least 0.
  __device__ __forceinline__ C value(int i, int j) const {
    if (excluded(i, j)) return args.logits ? no_logit<C>() : C(0);
    const C x = given(i, j) * scale;
    return !args.logits && x < C(0) ? static_cast<C>(__builtin_nan("")) : x;
  }
  __device__ __forceinline__ C logarithm(int i, int j) const {
    const C x = value(i, j);
    return args.logits ? x : log_or_none(x);
  }
  __device__ __forceinline__ int64_t result(int i, int j) const {
    return problem * shape.y_of + i * shape.y_row + j * shape.y_column;
  }
  __device__ __forceinline__ C gradient(const void* g, int i, int j) const {
    return read_element<C>(args.dtype, g, result(i, j));
  }
};

// The threads of a problem: 16 of a warp, or a block. They meet at __syncthreads, whose number is
// the same for all problems of a call.
template <bool kShort>
struct Team {
  __device__ __forceinline__ static int threads() {
    return kShort ? kTeamThreads : static_cast<int>(blockDim.x);
  }
  __device__ __forceinline__ static int thread() {
    return static_cast<int>(threadIdx.x) % threads();
  }

  // then(i, Σ_j term(i, j)), in the order of the CPU.
  template <typename C, typename Term, typename Then>
  __device__ __forceinline__ static void rows(int n, int m, const Term& term, const Then& then) {
    if constexpr (kShort) {
      for (int i = thread(); i < n; i += kTeamThreads) {
        C sum = term(i, 0);
        for (int j = 1; j < m; ++j) sum = sum + term(i, j);
        then(i, sum);
      }
    } else {
      const int lane = thread() % kWarpLanes;
      for (int i = thread() / kWarpLanes; i < n; i += threads() / kWarpLanes) {
        C sum = C(0);
        for (int j = lane; j < m; j += kWarpLanes) sum = sum + term(i, j);
        for (int half = kWarpLanes / 2; half > 0; half /= 2)
          sum = sum + __shfl_xor_sync(kWholeWarp, sum, half);
        if (lane == 0) then(i, sum);
      }
    }
    __syncthreads();
  }

  // then(j, Σ_i term(i, j)). `parts` has room for the columns of all chunks.
  template <typename C, typename Term, typename Then>
  __device__ __forceinline__ static void columns(int n, int m, C* parts, const Term& term,
                                                 const Then& then) {
    if constexpr (kShort) {
      for (int j = thread(); j < m; j += kTeamThreads) {
        C sum = term(0, j);
        for (int i = 1; i < n; ++i) sum = sum + term(i, j);
        then(j, sum);
      }
    } else {
      const int chunks = (n + kNormalizeRows - 1) / kNormalizeRows;
      for (int item = thread(); item < chunks * m; item += threads()) {
        const int j = item % m, begin = item / m * kNormalizeRows;
        const int end = begin + kNormalizeRows < n ? begin + kNormalizeRows : n;
        C sum = C(0);
        for (int i = begin; i < end; ++i) sum = sum + term(i, j);
        parts[item] = sum;
      }
      __syncthreads();
      for (int j = thread(); j < m; j += threads()) {
        C sum = C(0);
        for (int c = 0; c < chunks; ++c) sum = sum + parts[c * m + j];
        then(j, sum);
      }
    }
    __syncthreads();
  }

  // then(i, max_j term(i, j)), 0 of nothing but −∞.
  template <typename C, typename Term, typename Then>
  __device__ __forceinline__ static void row_maxima(int n, int m, const Term& term,
                                                    const Then& then) {
    const int lane = kShort ? 0 : thread() % kWarpLanes, lanes = kShort ? 1 : kWarpLanes;
    for (int i = kShort ? thread() : thread() / kWarpLanes; i < n; i += threads() / lanes) {
      C most = no_logit<C>();
      for (int j = lane; j < m; j += lanes) {
        const C x = term(i, j);
        most = x > most ? x : most;
      }
      if constexpr (!kShort)
        for (int half = kWarpLanes / 2; half > 0; half /= 2) {
          const C other = __shfl_xor_sync(kWholeWarp, most, half);
          most = other > most ? other : most;
        }
      if (lane == 0) then(i, most == no_logit<C>() ? C(0) : most);
    }
    __syncthreads();
  }

  template <typename F>
  __device__ __forceinline__ static void each(int n, const F& f) {
    for (int i = thread(); i < n; i += threads()) f(i);
    __syncthreads();
  }
  template <typename F>
  __device__ __forceinline__ static void elements(int n, int m, const F& f) {
    for (int e = thread(); e < n * m; e += threads()) f(e / m, e % m);
    __syncthreads();
  }
};

// Where the steps of a problem are kept for its gradient.
template <typename C>
struct HistoryOf {
  C *u, *v, *s, *r;
};
template <typename C>
__device__ __forceinline__ HistoryOf<C> history_at(C* space, const NormalizeArgs& args,
                                                   const NormalizeShape& shape) {
  const int64_t steps = static_cast<int64_t>(args.n_iter) + 1;
  HistoryOf<C> h{};
  h.u = space;
  h.v = h.u + steps * shape.n;
  h.s = h.v + steps * shape.m;
  h.r = h.s + steps * shape.m;
  return h;
}

// Vectors that a team works in.
template <typename C>
struct VectorsOf {
  C *u, *phi, *r, *top, *mass, *da;  // (n)
  C *v, *s, *gamma, *db;             // (m)
  C* parts;
};
template <typename C>
__device__ __forceinline__ VectorsOf<C> vectors_at(C* memory, const NormalizeShape& shape) {
  const int64_t n = shape.n, m = shape.m;
  VectorsOf<C> w{};
  w.u = memory;
  w.phi = w.u + n;
  w.r = w.phi + n;
  w.top = w.r + n;
  w.mass = w.top + n;
  w.da = w.mass + n;
  w.v = w.da + n;
  w.s = w.v + m;
  w.gamma = w.s + m;
  w.db = w.gamma + m;
  w.parts = w.db + m;
  return w;
}

// dx, and what goes to slack and weights; `slope(i, j)` is by x.
template <bool kShort, typename C, typename F>
__device__ __forceinline__ void write_gradient(const NormalizeBackwardArgs& all,
                                               const ElementsOf<C>& x, const VectorsOf<C>& w,
                                               bool live, const F& slope) {
  const NormalizeArgs& args = x.args;
  const NormalizeShape& shape = x.shape;
  const int n = shape.n, m = shape.m;
  Team<kShort>::elements(shape.inner_n, shape.inner_m, [&](int i, int j) {
    if (live)
      write_element(args.dtype, slope(i, j), all.dx,
                    x.problem * shape.x_of + i * shape.x_row + j * shape.x_column);
  });
  if (!live) return;
  if (args.has_slack && Team<kShort>::thread() == 0) {
    C sum = C(0);
    for (int i = 0; i < n - 1; ++i) sum = sum + slope(i, m - 1);
    for (int j = 0; j < m; ++j) sum = sum + slope(n - 1, j);
    static_cast<C*>(all.dslack)[x.problem] = sum;
  }
  for (int i = Team<kShort>::thread(); i < n; i += Team<kShort>::threads())
    if (all.da != nullptr) static_cast<C*>(all.da)[x.problem * n + i] = w.da[i];
  for (int j = Team<kShort>::thread(); j < m; j += Team<kShort>::threads())
    if (all.db != nullptr) static_cast<C*>(all.db)[x.problem * m + j] = w.db[j];
}

}  // namespace
}  // namespace regkern::cuda
