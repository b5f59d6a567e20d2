#pragma once

#include "transport/normalize_team.cuh"

// The problems that left the range of the scaling form, in the log domain. A block has a problem
// and reads x again in every pass: few problems come here.

namespace regkern::cuda {
namespace {

using namespace transport;

// Calls f(problem) for what is marked. Marks are looked at many at once: mostly there are none.
template <typename F>
__device__ __forceinline__ void for_each_marked(const NormalizeArgs& args, int span, const F& f) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * span;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * span; begin < args.count; begin += step) {
    const int64_t mine = begin + threadIdx.x;
    const bool marked =
        static_cast<int>(threadIdx.x) < span && mine < args.count && args.redo[mine] != 0;
    if (__syncthreads_or(marked) == 0) continue;
    for (int64_t problem = begin; problem < begin + span && problem < args.count; ++problem)
      if (args.redo[problem] != 0) f(problem);
  }
}

template <typename C>
struct LogarithmsOf {
  using T = Team<false>;
  const ElementsOf<C>& x;
  const VectorsOf<C>& w;  // u is f, v is g

  __device__ __forceinline__ C plan(int i, int j, C f, C g) const {
    return exp_or_zero(x.logarithm(i, j) + f + g);
  }

  __device__ void iterate(const HistoryOf<C>& kept) const {
    const int n = x.shape.n, m = x.shape.m;
    const C none = no_logit<C>();
    const bool keep = kept.u != nullptr;
    T::each(n, [&](int i) {
      w.u[i] = x.a(i) == C(0) ? none : C(0);
      if (keep) kept.u[i] = w.u[i];
    });
    T::each(m, [&](int j) {
      w.v[j] = x.b(j) == C(0) ? none : C(0);
      if (keep) kept.v[j] = w.v[j];
    });
    for (int t = 1; t <= x.args.n_iter; ++t) {
      const int64_t step_u = static_cast<int64_t>(t) * n, step_v = static_cast<int64_t>(t) * m;
      T::template row_maxima<C>(
          n, m, [&](int i, int j) { return x.logarithm(i, j) + w.v[j]; },
          [&](int i, C most) { w.top[i] = most; });
      T::template rows<C>(
          n, m, [&](int i, int j) { return exp_or_zero(x.logarithm(i, j) + w.v[j] - w.top[i]); },
          [&](int i, C sum) {
            const C a = x.a(i);
            w.u[i] = a == C(0) ? none : log_or_none(a) - (w.top[i] + log_or_none(sum));
            if (keep) kept.u[step_u + i] = w.u[i];
          });
      T::each(m, [&](int j) {
        C most = none;
        for (int i = 0; i < n; ++i) {
          const C y = x.logarithm(i, j) + w.u[i];
          most = y > most ? y : most;
        }
        w.s[j] = most == none ? C(0) : most;
      });
      T::columns(
          n, m, w.parts,
          [&](int i, int j) { return exp_or_zero(x.logarithm(i, j) + w.u[i] - w.s[j]); },
          [&](int j, C sum) {
            const C b = x.b(j);
            w.v[j] = b == C(0) ? none : log_or_none(b) - (w.s[j] + log_or_none(sum));
            if (keep) kept.v[step_v + j] = w.v[j];
          });
    }
  }

  __device__ __forceinline__ C given(const void* g, int i, int j) const {
    return x.a(i) == C(0) || x.b(j) == C(0) ? C(0) : x.gradient(g, i, j);
  }

  __device__ void descend(const void* g, const HistoryOf<C>& kept) const {
    const int n = x.shape.n, m = x.shape.m;
    const bool log_output = x.args.log_output;
    const auto along = [&](int i, int j) {
      return log_output ? given(g, i, j) : given(g, i, j) * plan(i, j, w.u[i], w.v[j]);
    };
    T::template rows<C>(n, m, along, [&](int i, C sum) {
      w.phi[i] = sum;
      w.da[i] = C(0);
    });
    T::columns(n, m, w.parts, along, [&](int j, C sum) {
      w.gamma[j] = sum;
      w.db[j] = C(0);
    });
    for (int t = x.args.n_iter; t > 0; --t) {
      const C *f = kept.u + static_cast<int64_t>(t) * n, *v = kept.v + static_cast<int64_t>(t) * m;
      C *s = kept.s + static_cast<int64_t>(t) * m, *r = kept.r + static_cast<int64_t>(t) * n;
      T::each(m, [&](int j) {
        s[j] = w.s[j] = w.gamma[j] * inverse_weight(x.b(j), C(1));
        w.db[j] = w.db[j] + w.s[j];
      });
      T::template rows<C>(
          n, m, [&](int i, int j) { return plan(i, j, f[i], v[j]) * w.s[j]; },
          [&](int i, C sum) {
            r[i] = w.r[i] = (w.phi[i] - sum) * inverse_weight(x.a(i), C(1));
            w.da[i] = w.da[i] + w.r[i];
            w.phi[i] = C(0);
          });
      T::columns(
          n, m, w.parts, [&](int i, int j) { return plan(i, j, f[i], v[j - m]) * w.r[i]; },
          [&](int j, C sum) { w.gamma[j] = C(0) - sum; });
    }
  }

  // By x, when `descend` has left s and r.
  __device__ __forceinline__ C slope(const void* g, const HistoryOf<C>& kept, int i, int j) const {
    const NormalizeArgs& args = x.args;
    const int n = x.shape.n, m = x.shape.m;
    C sum = given(g, i, j);
    if (!args.log_output) sum = sum * plan(i, j, w.u[i], w.v[j]);
    for (int t = args.n_iter; t > 0; --t) {
      const int64_t at_u = static_cast<int64_t>(t) * n + i, at_v = static_cast<int64_t>(t) * m + j;
      const C f = kept.u[at_u];
      sum = sum - plan(i, j, f, kept.v[at_v]) * kept.s[at_v];
      sum = sum - plan(i, j, f, kept.v[at_v - m]) * kept.r[at_u];
    }
    if (!args.logits) {
      const C value = x.value(i, j);
      sum = value == C(0) ? C(0) : sum / value;
    }
    return args.scale == nullptr ? sum : sum * x.scale;
  }
};

template <typename C>
__global__ void __launch_bounds__(kLongThreads, 1)
    normalize_log_kernel(NormalizeArgs args, int span) {
  const NormalizeShape shape = normalize_shape(args);
  C* const own = static_cast<C*>(args.space) +
                 static_cast<int64_t>(blockIdx.x) * normalize_team_space(args, shape, false);
  for_each_marked(args, span, [&](int64_t problem) {
    const ElementsOf<C> x(args, shape, problem);
    const VectorsOf<C> w = vectors_at(own, shape);
    const LogarithmsOf<C> steps{x, w};
    steps.iterate(HistoryOf<C>{});
    Team<false>::elements(shape.n, shape.m, [&](int i, int j) {
      const C y =
          args.log_output ? x.logarithm(i, j) + w.u[i] + w.v[j] : steps.plan(i, j, w.u[i], w.v[j]);
      write_element(args.dtype, y, args.y, x.result(i, j));
    });
  });
}

template <typename C>
__global__ void __launch_bounds__(kLongThreads, 1)
    normalize_log_backward_kernel(NormalizeBackwardArgs all, int span) {
  const NormalizeArgs& args = all.forward;
  const NormalizeShape shape = normalize_shape(args);
  C* const own = static_cast<C*>(args.space) +
                 static_cast<int64_t>(blockIdx.x) * normalize_team_space(args, shape, true);
  const HistoryOf<C> kept = history_at(own, args, shape);
  for_each_marked(args, span, [&](int64_t problem) {
    const ElementsOf<C> x(args, shape, problem);
    const VectorsOf<C> w = vectors_at(own + normalize_history(args, shape), shape);
    const LogarithmsOf<C> steps{x, w};
    steps.iterate(kept);
    steps.descend(all.g, kept);
    write_gradient<false>(all, x, w, true,
                          [&](int i, int j) { return steps.slope(all.g, kept, i, j); });
    __syncthreads();
  });
}

struct LogLaunch {
  int64_t blocks;
  int span;
};
inline LogLaunch log_launch(const NormalizeArgs& args) {
  const int64_t blocks = args.count < kLongTeams ? args.count : kLongTeams;
  const int64_t share = ceil_div(args.count, blocks);
  return {blocks, static_cast<int>(share < kLongThreads ? share : kLongThreads)};
}

template <typename C>
void launch_logarithms(const NormalizeArgs& args, const NormalizeShape&, cudaStream_t stream) {
  const LogLaunch launch = log_launch(args);
  RK_LAUNCH((normalize_log_kernel<C>), launch.blocks, kLongThreads, 0, stream, args, launch.span);
}
template <typename C>
void launch_logarithms_backward(const NormalizeBackwardArgs& all, const NormalizeShape&,
                                cudaStream_t stream) {
  const LogLaunch launch = log_launch(all.forward);
  RK_LAUNCH((normalize_log_backward_kernel<C>), launch.blocks, kLongThreads, 0, stream, all,
            launch.span);
}

}  // namespace
}  // namespace regkern::cuda
