#include "core/square_sum.cuh"
#include "core/tensor_list.cuh"
#include "proximal/adam_metric.h"
#include "proximal/fused_step.h"
#include "proximal/group_lanes.cuh"

namespace regkern::cuda {
namespace {

using namespace proximal;

// ---- the scalars of AdamW: one thread a tensor counts its step and does the double arithmetic
// ----

struct Counters {
  static constexpr int kMost = 256;
  float* at[kMost];
};

template <typename C>
__global__ void __launch_bounds__(64)
    prox_scalars_kernel(const __grid_constant__ ProxAdamWArgs args,
                        const __grid_constant__ Counters steps, int count, int64_t first_row) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  const float t = *steps.at[i] + 1.0f;
  *steps.at[i] = t;
  static_cast<AdamWScalars<C>*>(args.scalars)[first_row + i] =
      adamw_scalars<C>(args, static_cast<double>(t));
}

template <typename C>
void launch_scalars(const ProxAdamWArgs& args, cudaStream_t stream) {
  for (int64_t begin = 0; begin < args.count; begin += Counters::kMost) {
    Counters steps{};
    const int64_t left = args.count - begin;
    const int count = left < Counters::kMost ? static_cast<int>(left) : Counters::kMost;
    for (int i = 0; i < count; ++i) steps.at[i] = args.steps[begin + i];
    RK_LAUNCH((prox_scalars_kernel<C>), ceil_div(count, 64), 64, 0, stream, args, steps, count,
              begin);
  }
}

template <typename C, bool kAmsgrad>
__device__ __forceinline__ AdamWRule<C, kAmsgrad> rule_of(const ProxAdamWArgs& args, int64_t row,
                                                          AdamWRule<C, kAmsgrad>*) {
  return AdamWRule<C, kAmsgrad>(args, static_cast<const AdamWScalars<C>*>(args.scalars)[row]);
}
template <typename C, bool kMomentum>
__device__ __forceinline__ SgdRule<C, kMomentum> rule_of(const ProxSgdArgs& args, int64_t,
                                                         SgdRule<C, kMomentum>*) {
  return SgdRule<C, kMomentum>(args);
}

// ---- a step, and what follows element by element ----

// The step of N neighbours; p, g and the states are in registers.
template <typename C, int N, typename Rule>
__device__ __forceinline__ void step_lanes(const Rule& rule, bool held, C (&p)[N], const C (&g)[N],
                                           C (&s)[kMostStates][N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    C state[kMostStates] = {};
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) state[k] = s[k][i];
    const C before = p[i];
    const C after = rule(before, g[i], state[0], state[1], state[2]);
    p[i] = held & (before == C(0)) ? before : after;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) s[k][i] = state[k];
  }
}

template <typename C>
__device__ __forceinline__ C* target(const ProxRow& row) {
  return static_cast<C*>(row.out != nullptr ? row.out : row.param);
}

// t · λ of a row in Adam's metric.
template <typename C>
__device__ __forceinline__ C metric_threshold(const Prox& prox, double weight) {
  return static_cast<C>(static_cast<double>(load_number<C>(prox.step)) * weight *
                        static_cast<double>(load_number<C>(prox.lam)));
}

template <typename C, typename Rule, bool kSoftOnly, typename Args>
__global__ void __launch_bounds__(kListThreads, sizeof(C) == 8 ? 1 : 2)
    prox_step_kernel(const __grid_constant__ Args args,
                     const __grid_constant__ ListChunk<ProxRow> chunk, int64_t first_row,
                     int tiles) {
  const Prox& prox = args.prox;
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const ProxRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    C p[kListLanes], g[kListLanes], s[kMostStates][kListLanes];
    const auto load = [&](const void* data, C* out) {
      load_lanes(static_cast<const C*>(data) + e, left, aligned_for_vectors(data), out);
    };
    const auto store = [&](const C* in, void* data) {
      store_lanes(in, left, aligned_for_vectors(data), static_cast<C*>(data) + e);
    };
    load(row.param, p);
    load(row.grad, g);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) load(row.states[k], s[k]);
    const Rule rule = rule_of(args, first_row + place.row, static_cast<Rule*>(nullptr));
    step_lanes<C, kListLanes>(rule, prox.held, p, g, s);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) store(s[k], row.states[k]);
    if (row.out != nullptr) store(p, row.param);
    if (prox.after == After::elements) {
      const Point<C> point = point_of<C>(prox, row.weight);
      if constexpr (kSoftOnly) {
#pragma unroll
        for (int i = 0; i < kListLanes; ++i)
          p[i] = shrunk_element<Law::soft>(point, p[i], point.t, point.shape);
      } else {
        dispatch_law(prox.law, [&](auto law) {
#pragma unroll
          for (int i = 0; i < kListLanes; ++i)
            p[i] = shrunk_element<decltype(law)::value>(point, p[i], point.t, point.shape);
        });
      }
    } else if (prox.after == After::metric && row.run == 1) {
      if constexpr (Rule::kMetric) {
        const C threshold = metric_threshold<C>(prox, row.weight);
#pragma unroll
        for (int i = 0; i < kListLanes; ++i)
          p[i] = metric_element(p[i], threshold, rule.denominator(s[Rule::kStates - 1][i]));
      }
    }
    store(p, target<C>(row));
  }
}

// ---- a step, and what follows group by group ----
//
// A group is stepped and its squares summed in one sweep; the second sweep, which scales, finds in
// the cache what the same threads have written.

template <typename C, int V>
__device__ __forceinline__ void load_some(const C* data, int64_t left, bool aligned, C (&out)[V]) {
  if (aligned && left >= V) {
    const Vector<C, V> x = load_vector<C, V>(data);
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = x.v[v];
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = v < left ? data[v] : C(0);
}
template <typename C, int V>
__device__ __forceinline__ void store_some(const C (&in)[V], int64_t left, bool aligned, C* data) {
  if (aligned && left >= V) {
    Vector<C, V> x;
#pragma unroll
    for (int v = 0; v < V; ++v) x.v[v] = in[v];
    store_vector<C, V>(x, data);
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (v < left) data[v] = in[v];
}

template <typename C>
__device__ __forceinline__ bool runs_aligned(const void* data, int64_t run) {
  return aligned_for_vectors(data) && run % kLanesOf<C> == 0;
}

// The step of V neighbours of a group, `left` to its end, and what comes before the norm is taken.
template <typename C, typename Rule>
__device__ __forceinline__ void step_some(const Rule& rule, const Prox& prox, const ProxRow& row,
                                          int64_t e, int64_t left, C (&p)[kLanesOf<C>]) {
  constexpr int V = kLanesOf<C>;
  C g[V], s[kMostStates][V];
  const auto load = [&](const void* data, C(&out)[V]) {
    load_some<C, V>(static_cast<const C*>(data) + e, left, runs_aligned<C>(data, row.run), out);
  };
  const auto store = [&](const C(&in)[V], void* data) {
    store_some<C, V>(in, left, runs_aligned<C>(data, row.run), static_cast<C*>(data) + e);
  };
  load(row.param, p);
  load(row.grad, g);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) load(row.states[k], s[k]);
  step_lanes<C, V>(rule, prox.held, p, g, s);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) store(s[k], row.states[k]);
  if (row.out != nullptr) store(p, row.param);
  if (prox.soft != nullptr) {
    const C soft = load_number<C>(prox.soft);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      p[v] = soft_threshold(p[v], soft);
      p[v] = prox.positive ? positive_part(p[v]) : p[v];
    }
  } else if (prox.positive) {
#pragma unroll
    for (int v = 0; v < V; ++v) p[v] = positive_part(p[v]);
  }
  store(p, target<C>(row));
  // Lanes beyond the group's end hold 0, whatever a step makes of that.
#pragma unroll
  for (int v = 0; v < V; ++v) p[v] = v < left ? p[v] : C(0);
}

template <typename C>
__device__ __forceinline__ C group_factor(const Prox& prox, double weight, double squares) {
  const double t = static_cast<double>(load_number<C>(prox.step)) * weight;
  const auto lam = static_cast<double>(load_number<C>(prox.lam));
  C factor = C(1);
  dispatch_law(prox.law, [&](auto law) {
    factor = static_cast<C>(
        shrink_group<decltype(law)::value>(regkern::sqrt(squares), t, lam, prox.shape).factor);
  });
  return factor;
}

template <typename C>
__device__ __forceinline__ void scale_some(const ProxRow& row, C factor, int64_t e, int64_t left) {
  constexpr int V = kLanesOf<C>;
  C* const x = target<C>(row);
  const bool aligned = runs_aligned<C>(x, row.run);
  C p[V];
  load_some<C, V>(x + e, left, aligned, p);
#pragma unroll
  for (int v = 0; v < V; ++v) p[v] = scaled_by(factor, p[v]);
  store_some<C, V>(p, left, aligned, x + e);
}

// Groups of at most kTeamMost elements, one for a team of threads of a warp, which keeps it.
template <typename C, typename Rule>
__device__ __forceinline__ void team_groups(const Rule& rule, const Prox& prox, const ProxRow& row,
                                            int64_t begin, int64_t end) {
  constexpr int V = kLanesOf<C>, K = kTeamStripes<C>;
  const int run = static_cast<int>(row.run), team = team_of<C>(run);
  const int mine = static_cast<int>(threadIdx.x) % team;
  const int64_t teams = static_cast<int64_t>(blockDim.x) / team;
  C* const out = target<C>(row);
  const bool aligned = runs_aligned<C>(out, run);
  for (int64_t at = begin; at < end; at += teams) {
    const int64_t group = at + static_cast<int>(threadIdx.x) / team;
    const bool there = group < end;
    const int64_t first = group * run;
    C x[K][V] = {};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int i = (k * team + mine) * V;
      if (there && i < run) step_some(rule, prox, row, first + i, run - i, x[k]);
    }
    const double squares = team_square_sum<C, K, V>(team, x);
    if (!there) continue;
    const C factor = group_factor<C>(prox, row.weight, squares);
    if (factor == C(1)) continue;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int i = (k * team + mine) * V;
#pragma unroll
      for (int v = 0; v < V; ++v) x[k][v] = scaled_by(factor, x[k][v]);
      if (i < run) store_some<C, V>(x[k], run - i, aligned, out + first + i);
    }
  }
}

// Longer groups, one for the block.
template <typename C, typename Rule>
__device__ __forceinline__ void block_groups(const Rule& rule, const Prox& prox, const ProxRow& row,
                                             int64_t begin, int64_t end, double* shared) {
  constexpr int V = kLanesOf<C>;
  const int mine = static_cast<int>(threadIdx.x) * V;
  const int run = static_cast<int>(row.run);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * run;
    C lanes[V] = {};
    for (int i = mine; i < run; i += kLanes) {
      C p[V];
      step_some(rule, prox, row, first + i, run - i, p);
#pragma unroll
      for (int v = 0; v < V; ++v) lanes[v] += p[v] * p[v];
    }
    const C sum = fold_block<C, V>(lanes, reinterpret_cast<C*>(shared));
    double squares = static_cast<double>(sum);
    if (!square_sum_holds(sum)) {
      double wide[V] = {};
      const C* const x = target<C>(row);
      for (int i = mine; i < run; i += kLanes) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const double value = i + v < run ? static_cast<double>(x[first + i + v]) : 0.0;
          wide[v] += value * value;
        }
      }
      squares = fold_block<double, V>(wide, shared);
    }
    const C factor = group_factor<C>(prox, row.weight, squares);
    if (factor == C(1)) continue;
    for (int i = mine; i < run; i += kLanes) scale_some(row, factor, first + i, run - i);
  }
}

template <typename C, typename Rule, typename Args>
__global__ void __launch_bounds__(kLaneThreads<kLanesOf<C>>)
    prox_groups_kernel(const __grid_constant__ Args args,
                       const __grid_constant__ ListChunk<ProxRow> chunk, int64_t first_row,
                       int tiles) {
  RK_SHARED(double, shared, kLanes);
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const ProxRow& row = chunk.rows[place.row];
    // A group belongs to the tile that it begins in.
    const int64_t from = place.tile * kListTile, to = from + kListTile;
    const int64_t begin = ceil_div(from, row.run);
    const int64_t end = ceil_div(to < row.numel ? to : row.numel, row.run);
    if (begin >= end) continue;
    const Rule rule = rule_of(args, first_row + place.row, static_cast<Rule*>(nullptr));
    if (row.run <= kTeamMost<C>)
      team_groups<C>(rule, args.prox, row, begin, end);
    else
      block_groups<C>(rule, args.prox, row, begin, end, shared);
  }
}

// ---- groups in Adam's metric: after the step, from its denominators ----

// Σ term(i) over the elements of a group, in every thread.
template <typename A, typename Term>
__device__ __forceinline__ A metric_sum(int run, double* shared, const Term& term) {
  constexpr int V = kLanesOf<float>;
  A lanes[V] = {};
  for (int i = static_cast<int>(threadIdx.x) * V; i < run; i += kLanes) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (i + v < run) lanes[v] += term(i + v);
  }
  return fold_block<A, V>(lanes, reinterpret_cast<A*>(shared));
}

template <typename C, typename Rule>
__device__ __forceinline__ void metric_group(const Rule& rule, C t, C* x, const C* most, int run,
                                             double* shared) {
  const auto weighted = [=](int i) { return rule.denominator(most[i]) * x[i]; };
  const C sum = metric_sum<C>(run, shared, [=](int i) {
    const C y = weighted(i);
    return y * y;
  });
  double squares = static_cast<double>(sum);
  if (!square_sum_holds(sum))
    squares = metric_sum<double>(run, shared, [=](int i) {
      const auto y = static_cast<double>(weighted(i));
      return y * y;
    });
  const double norm = regkern::sqrt(squares);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  if (norm <= static_cast<double>(t)) {
    for (int i = thread; i < run; i += threads) x[i] = C(0);
    return;
  }
  C largest = C(0);
  for (int i = thread; i < run; i += threads) {
    const C d = rule.denominator(most[i]);
    largest = d > largest ? d : largest;
  }
  C* const maxima = reinterpret_cast<C*>(shared);
  maxima[thread] = largest;
  __syncthreads();
  for (int i = 0; i < threads; ++i) largest = maxima[i] > largest ? maxima[i] : largest;
  __syncthreads();
  C theta = static_cast<C>((norm - static_cast<double>(t)) / static_cast<double>(largest));
  const auto shift = [=](int i) { return metric_shift(t, rule.denominator(most[i])); };
  for (int step = 0; step < kMetricSteps; ++step) {
    const C at = theta;
    const C squared = metric_sum<C>(run, shared, [=](int i) {
      const C u = metric_ratio(x[i], at, shift(i));
      return u * u;
    });
    const C cubes = metric_sum<C>(run, shared, [=](int i) {
      const C shifted = shift(i), u = metric_ratio(x[i], at, shifted);
      return metric_ratio(u * u, at, shifted);
    });
    const C next = metric_newton(theta, squared, cubes);
    if (metric_arrived(theta, next)) break;  // for all threads alike
    theta = next;
  }
  for (int i = thread; i < run; i += threads) x[i] = theta * metric_ratio(x[i], theta, shift(i));
}

template <typename C, typename Rule, typename Args>
__global__ void __launch_bounds__(kLaneThreads<kLanesOf<float>>, 2)
    adam_metric_kernel(const __grid_constant__ Args args,
                       const __grid_constant__ ListChunk<ProxRow> chunk, int64_t first_row,
                       int tiles) {
  RK_SHARED(double, shared, kLanes);
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const ProxRow& row = chunk.rows[place.row];
    const C t = metric_threshold<C>(args.prox, row.weight);
    if (row.run == 1 || t == C(0)) continue;
    const int64_t from = place.tile * kListTile, to = from + kListTile;
    const int64_t begin = ceil_div(from, row.run);
    const int64_t end = ceil_div(to < row.numel ? to : row.numel, row.run);
    const Rule rule = rule_of(args, first_row + place.row, static_cast<Rule*>(nullptr));
    const C* const most = static_cast<const C*>(row.states[Rule::kStates - 1]);
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * row.run;
      metric_group(rule, t, target<C>(row) + first, most + first, static_cast<int>(row.run),
                   shared);
      __syncthreads();
    }
  }
}

// ---- launches ----

template <typename C, typename Rule, typename Args>
void launch_steps(const Args& args, cudaStream_t stream) {
  static_assert(sizeof(ListChunk<ProxRow>) + sizeof(Args) + 2 * sizeof(int64_t) <= 4096);
  const bool soft = args.prox.after != After::elements || args.prox.law == Law::soft;
  for_each_chunk(
      args.rows, args.count, [&](const ListChunk<ProxRow>& chunk, int64_t first, int64_t tiles) {
        const int count = static_cast<int>(tiles);
        if (args.prox.after == After::groups) {
          RK_LAUNCH((prox_groups_kernel<C, Rule, Args>), grid_blocks(tiles, 8),
                    kLaneThreads<kLanesOf<C>>, 0, stream, args, chunk, first, count);
          return;
        }
        if (soft)
          RK_LAUNCH((prox_step_kernel<C, Rule, true, Args>), grid_blocks(tiles, 8), kListThreads, 0,
                    stream, args, chunk, first, count);
        else
          RK_LAUNCH((prox_step_kernel<C, Rule, false, Args>), grid_blocks(tiles, 8), kListThreads,
                    0, stream, args, chunk, first, count);
        if constexpr (Rule::kMetric) {
          if (args.prox.after == After::metric)
            RK_LAUNCH((adam_metric_kernel<C, Rule, Args>), grid_blocks(tiles, 8),
                      kLaneThreads<kLanesOf<float>>, 0, stream, args, chunk, first, count);
        }
      });
}

}  // namespace

void prox_adamw(const ProxAdamWArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_step_type(args.dtype, [&](auto zero) {
    using C = decltype(zero);
    launch_scalars<C>(args, stream);
    if (args.amsgrad)
      launch_steps<C, AdamWRule<C, true>>(args, stream);
    else
      launch_steps<C, AdamWRule<C, false>>(args, stream);
  });
}

void prox_sgd(const ProxSgdArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_step_type(args.dtype, [&](auto zero) {
    using C = decltype(zero);
    if (args.has_momentum)
      launch_steps<C, SgdRule<C, true>>(args, stream);
    else
      launch_steps<C, SgdRule<C, false>>(args, stream);
  });
}

}  // namespace regkern::cuda
