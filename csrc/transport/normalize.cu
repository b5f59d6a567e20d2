#include "transport/normalize.h"
#include "transport/normalize_log.cuh"
#include "transport/normalize_square.cuh"
#include "transport/normalize_team.cuh"

namespace regkern::cuda {
namespace {

using namespace transport;

// The matrix of a problem, and how its elements come from x.
template <typename C, bool kShort>
struct MatrixOf {
  using T = Team<kShort>;
  const ElementsOf<C>& x;
  const VectorsOf<C>& w;
  C* k;
  int ld;

  __device__ __forceinline__ C& at(int i, int j) const { return k[i * ld + j]; }
  __device__ __forceinline__ bool guarded() const { return x.args.eps > 0.0; }
  __device__ __forceinline__ bool softmax() const { return begins_with_softmax(x.args); }
  __device__ __forceinline__ C shifted(int i, int j) const { return x.value(i, j) - w.top[i]; }
  // What the softmax has at a place, without ε.
  __device__ __forceinline__ C probability(int i, int j) const {
    return x.args.a != nullptr && x.a(i) == C(0) ? C(0) : exp_or_zero(shifted(i, j)) / w.mass[i];
  }

  __device__ void load() const {
    const int n = x.shape.n, m = x.shape.m;
    T::elements(n, m, [&](int i, int j) { at(i, j) = x.value(i, j); });
    if (!x.args.logits) return;
    T::template row_maxima<C>(
        n, m, [&](int i, int j) { return at(i, j); }, [&](int i, C most) { w.top[i] = most; });
    T::elements(n, m, [&](int i, int j) { at(i, j) = exp_or_zero(at(i, j) - w.top[i]); });
    if (!softmax()) return;
    T::template rows<C>(
        n, m, [&](int i, int j) { return at(i, j); }, [&](int i, C sum) { w.mass[i] = sum; });
    const C eps = static_cast<C>(x.args.eps);
    T::elements(n, m, [&](int i, int j) {
      at(i, j) = x.excluded(i, j) ? C(0) : at(i, j) / w.mass[i] + eps;
    });
  }

  // All steps; those of a history that is not null are kept.
  __device__ void iterate(const HistoryOf<C>& kept) const {
    const NormalizeArgs& args = x.args;
    const int n = x.shape.n, m = x.shape.m;
    const C eps = static_cast<C>(args.eps);
    const bool keep = kept.u != nullptr, guard = guarded(), given = softmax();
    T::each(n, [&](int i) {
      w.u[i] = x.a(i) == C(0) ? C(0) : C(1);
      if (keep) kept.u[i] = w.u[i];
    });
    T::each(m, [&](int j) {
      w.v[j] = x.b(j) == C(0) ? C(0) : C(1);
      if (keep) kept.v[j] = w.v[j];
    });
    for (int t = 1; t <= args.n_iter; ++t) {
      const int64_t step_u = static_cast<int64_t>(t) * n, step_v = static_cast<int64_t>(t) * m;
      T::template rows<C>(
          n, m, [&](int i, int j) { return at(i, j) * w.v[j]; },
          [&](int i, C sum) {
            if (t > 1 || !given) w.u[i] = next_scaling(x.a(i), w.u[i], sum, eps, guard);
            if (keep) kept.u[step_u + i] = w.u[i];
          });
      T::columns(
          n, m, w.parts, [&](int i, int j) { return at(i, j) * w.u[i]; },
          [&](int j, C sum) {
            w.v[j] = next_scaling(x.b(j), w.v[j], sum, eps, guard);
            if (keep) kept.v[step_v + j] = w.v[j];
          });
    }
  }

  __device__ void mark(bool live) const {
    const C infinity = -no_logit<C>();
    if (T::thread() != 0 || !live) return;
    C most_u = C(0), most_v = C(0);
    for (int i = 0; i < x.shape.n; ++i) most_u = larger_scaling(most_u, w.u[i], infinity);
    for (int j = 0; j < x.shape.m; ++j) most_v = larger_scaling(most_v, w.v[j], infinity);
    x.args.redo[x.problem] = !guarded() && left_range<C>(most_u, most_v);
  }

  __device__ void store(bool live) const {
    const NormalizeArgs& args = x.args;
    const bool from_k = !args.logits || guarded();
    T::elements(x.shape.n, x.shape.m, [&](int i, int j) {
      if (!live) return;
      const C u = w.u[i], v = w.v[j];
      const C y =
          args.log_output
              ? log_or_none(u) + (from_k ? log_or_none(at(i, j)) : shifted(i, j)) + log_or_none(v)
              : u * at(i, j) * v;
      write_element(args.dtype, y, args.y, x.result(i, j));
    });
  }

  // The gradient by the matrix, at each place of k.
  __device__ void descend(const void* g, const HistoryOf<C>& kept) const {
    const NormalizeArgs& args = x.args;
    const int n = x.shape.n, m = x.shape.m;
    const C eps = static_cast<C>(args.eps);
    const bool guard = guarded(), log_output = args.log_output;
    const auto given = [&](int i, int j) {
      return log_output && x.excluded(i, j) ? C(0) : x.gradient(g, i, j);
    };
    const auto along = [&](int i, int j) {
      return log_output ? given(i, j) : given(i, j) * w.u[i] * w.v[j] * at(i, j);
    };
    T::template rows<C>(n, m, along, [&](int i, C sum) {
      w.phi[i] = sum;
      w.da[i] = C(0);
    });
    T::columns(n, m, w.parts, along, [&](int j, C sum) {
      w.gamma[j] = sum;
      w.db[j] = C(0);
    });
    for (int t = args.n_iter; t > 0; --t) {
      const C *u = kept.u + static_cast<int64_t>(t) * n, *v = kept.v + static_cast<int64_t>(t) * m;
      C *s = kept.s + static_cast<int64_t>(t) * m, *r = kept.r + static_cast<int64_t>(t) * n;
      T::each(m, [&](int j) {
        const C by_b = w.gamma[j] * inverse_weight(x.b(j), C(1));
        w.db[j] = w.db[j] + by_b;
        s[j] = w.s[j] = by_b * v[j];
        w.gamma[j] = guard ? carried(w.s[j], eps, v[j - m]) : C(0);
      });
      const bool rows = !(t == 1 && softmax());
      T::template rows<C>(
          n, m, [&](int i, int j) { return at(i, j) * w.s[j]; },
          [&](int i, C sum) {
            const C phi = w.phi[i] - u[i] * sum;
            const C by_a = rows ? phi * inverse_weight(x.a(i), C(1)) : C(0);
            w.da[i] = w.da[i] + by_a;
            r[i] = w.r[i] = by_a * u[i];
            w.phi[i] = guard ? carried(w.r[i], eps, u[i - n]) : C(0);
          });
      T::columns(
          n, m, w.parts, [&](int i, int j) { return at(i, j) * w.r[i]; },
          [&](int j, C sum) { w.gamma[j] = w.gamma[j] - v[j - m] * sum; });
    }
    T::elements(n, m, [&](int i, int j) {
      C slope = log_output ? C(0) : given(i, j) * w.u[i] * w.v[j];
      for (int t = args.n_iter; t > 0; --t) {
        const int64_t at_u = static_cast<int64_t>(t) * n + i,
                      at_v = static_cast<int64_t>(t) * m + j;
        slope = (slope - kept.u[at_u] * kept.s[at_v]) - kept.r[at_u] * kept.v[at_v - m];
      }
      C& here = at(i, j);
      if (args.logits && !guard)
        here = log_output ? given(i, j) + here * slope : here * slope;
      else
        here = log_output ? (here == C(0) ? C(0) : given(i, j) / here) + slope : slope;
    });
    if (!softmax()) return;
    T::template rows<C>(
        n, m, [&](int i, int j) { return at(i, j) * probability(i, j); },
        [&](int i, C sum) { w.r[i] = sum; });
    T::elements(n, m, [&](int i, int j) { at(i, j) = probability(i, j) * (at(i, j) - w.r[i]); });
  }
};

// What a team of this block works in.
template <typename C, bool kShort>
struct TeamPlace {
  int64_t slot;
  C *history, *matrix, *vectors;
};
template <typename C, bool kShort>
__device__ __forceinline__ TeamPlace<C, kShort> team_place(const NormalizeArgs& args,
                                                           const NormalizeShape& shape,
                                                           bool backward, C* shared) {
  const int64_t matrix = shape.n * normalize_stride(shape);
  const int team = kShort ? static_cast<int>(threadIdx.x) / kTeamThreads : 0;
  TeamPlace<C, kShort> place{};
  place.slot = static_cast<int64_t>(blockIdx.x) * (kShort ? kTeamsOfBlock : 1) + team;
  C* const own =
      static_cast<C*>(args.space) + place.slot * normalize_team_space(args, shape, backward);
  place.history = own;
  C* const behind = own + (backward ? normalize_history(args, shape) : 0);
  place.matrix = fits_shared(args, shape) ? shared + team * normalize_memory(shape) : behind;
  place.vectors = place.matrix + matrix;
  return place;
}

template <typename C, bool kShort>
__global__ void __launch_bounds__(kShort ? kTeamThreads * kTeamsOfBlock : kLongThreads, 2)
    normalize_kernel(NormalizeArgs args) {
  RK_DYNAMIC_SHARED(C, shared);
  const NormalizeShape shape = normalize_shape(args);
  const TeamPlace<C, kShort> place = team_place<C, kShort>(args, shape, false, shared);
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kShort ? kTeamsOfBlock : 1);
  const int64_t behind = place.slot - (kShort ? threadIdx.x / kTeamThreads : 0);
  for (int64_t base = 0; behind + base < args.count; base += step) {
    const bool live = place.slot + base < args.count;
    const ElementsOf<C> x(args, shape, live ? place.slot + base : args.count - 1);
    const VectorsOf<C> w = vectors_at(place.vectors, shape);
    const MatrixOf<C, kShort> matrix{x, w, place.matrix, static_cast<int>(normalize_stride(shape))};
    matrix.load();
    matrix.iterate(HistoryOf<C>{});
    matrix.mark(live);
    matrix.store(live);
  }
}

template <typename C, bool kShort>
__global__ void __launch_bounds__(kShort ? kTeamThreads * kTeamsOfBlock : kLongThreads, 1)
    normalize_backward_kernel(NormalizeBackwardArgs all) {
  RK_DYNAMIC_SHARED(C, shared);
  const NormalizeArgs& args = all.forward;
  const NormalizeShape shape = normalize_shape(args);
  const TeamPlace<C, kShort> place = team_place<C, kShort>(args, shape, true, shared);
  const HistoryOf<C> kept = history_at(place.history, args, shape);
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kShort ? kTeamsOfBlock : 1);
  const int64_t behind = place.slot - (kShort ? threadIdx.x / kTeamThreads : 0);
  for (int64_t base = 0; behind + base < args.count; base += step) {
    const bool live = place.slot + base < args.count;
    const ElementsOf<C> x(args, shape, live ? place.slot + base : args.count - 1);
    const VectorsOf<C> w = vectors_at(place.vectors, shape);
    const MatrixOf<C, kShort> matrix{x, w, place.matrix, static_cast<int>(normalize_stride(shape))};
    matrix.load();
    matrix.iterate(kept);
    matrix.mark(live);
    matrix.descend(all.g, kept);
    write_gradient<kShort>(all, x, w, live, [&](int i, int j) {
      return args.scale == nullptr ? matrix.at(i, j) : matrix.at(i, j) * x.scale;
    });
    __syncthreads();
  }
}

template <typename C, bool kShort>
SharedBytes team_bytes(const NormalizeArgs& args, const NormalizeShape& shape) {
  if (!fits_shared(args, shape)) return SharedBytes(0, true);
  const int64_t numbers = normalize_memory(shape) * (kShort ? kTeamsOfBlock : 1);
  return large_shared(static_cast<std::size_t>(numbers) * sizeof(C));
}

template <typename C, bool kShort>
int64_t team_blocks(const NormalizeArgs& args, const NormalizeShape& shape) {
  return normalize_teams(args.count, shape) / (kShort ? kTeamsOfBlock : 1);
}
template <bool kShort>
constexpr int kThreadsOf = kShort ? kTeamThreads * kTeamsOfBlock : kLongThreads;

template <typename F>
void dispatch_teams(const NormalizeArgs& args, const NormalizeShape& shape, F&& f) {
  const bool narrow_sides = has_short_sides(shape);
  if (args.dtype == Dtype::float64) {
    if (narrow_sides) return f(double{}, std::true_type{});
    return f(double{}, std::false_type{});
  }
  if (narrow_sides) return f(float{}, std::true_type{});
  f(float{}, std::false_type{});
}

}  // namespace

void sinkhorn_normalize(const NormalizeArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const NormalizeShape shape = normalize_shape(args);
  dispatch_teams(args, shape, [&](auto zero, auto narrow_sides) {
    using C = decltype(zero);
    constexpr bool kShort = decltype(narrow_sides)::value;
    if (is_square(args, shape))
      launch_square(args, shape, stream);
    else
      RK_LAUNCH((normalize_kernel<C, kShort>), (team_blocks<C, kShort>(args, shape)),
                kThreadsOf<kShort>, (team_bytes<C, kShort>(args, shape)), stream, args);
    if (args.eps == 0.0) launch_logarithms<C>(args, shape, stream);
  });
}

void sinkhorn_normalize_backward(const NormalizeBackwardArgs& all, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const NormalizeArgs& args = all.forward;
  const NormalizeShape shape = normalize_shape(args);
  dispatch_teams(args, shape, [&](auto zero, auto narrow_sides) {
    using C = decltype(zero);
    constexpr bool kShort = decltype(narrow_sides)::value;
    if (is_square(args, shape))
      launch_square_backward(all, shape, stream);
    else
      RK_LAUNCH((normalize_backward_kernel<C, kShort>), (team_blocks<C, kShort>(args, shape)),
                kThreadsOf<kShort>, (team_bytes<C, kShort>(args, shape)), stream, all);
    if (args.eps == 0.0) launch_logarithms_backward<C>(all, shape, stream);
  });
}

}  // namespace regkern::cuda
