#include "core/math.h"
#include "core/square_sum.cuh"
#include "proximal/latent_groups.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

constexpr int kStepThreads = 256, kElementThreads = 256;
// Elements of a part that a team of a whole warp holds in registers.
constexpr int kOwn = 4;

// The elements of a part that a thread of a team has: one of each stripe.
struct TeamStripe {
  int lane, team;
  __device__ __forceinline__ int at(int k) const { return k * team + lane; }
};

// A step of each group in [first, last), by teams of threads that hold up to K elements each.
template <typename C, int K>
__global__ void __launch_bounds__(kStepThreads, 3)
    latent_teams_kernel(LatentGroups a, C* steps, int64_t first, int64_t last, int team) {
  const TeamStripe own{static_cast<int>(threadIdx.x) % team, team};
  const int teams = kStepThreads / team;
  const int64_t span = a.outer * a.inner, stride = static_cast<int64_t>(gridDim.x) * teams;
  // Whole warps go round together: the sums are taken by all of their threads.
  for (int64_t base = first + static_cast<int64_t>(blockIdx.x) * teams; base < last;
       base += stride) {
    const int64_t group = base + static_cast<int>(threadIdx.x) / team;
    const bool there = group < last;
    const int64_t begin = there ? a.offsets[group] : 0;
    const int64_t length = there ? (a.offsets[group + 1] - begin) * span : 0;
    double s[K];
    int64_t index[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int e = own.at(k);
      s[k] = 0.0;
      index[k] = 0;
      if (e >= length) continue;
      index[k] = latent_index(a, begin, e);
      s[k] = a.parts[begin * span + e] + a.rest[index[k]];
    }
    const double squares = fold_team<double, K, 1>(team, [&](int k, int) { return s[k] * s[k]; });
    if (!there) continue;
    const double share = latent_share(regkern::sqrt(squares), latent_threshold<C>(a, group));
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int e = own.at(k);
      if (e >= length) continue;
      if (steps != nullptr) steps[begin * span + e] = static_cast<C>(s[k]);
      a.parts[begin * span + e] = share * s[k];
      a.rest[index[k]] = latent_rest(s[k], share);
    }
  }
}

template <typename C, int K>
__global__ void __launch_bounds__(kStepThreads, 3)
    latent_teams_back_kernel(LatentGroups a, const C* steps, double* slopes, int64_t first,
                             int64_t last, int team) {
  const TeamStripe own{static_cast<int>(threadIdx.x) % team, team};
  const int teams = kStepThreads / team;
  const int64_t span = a.outer * a.inner, stride = static_cast<int64_t>(gridDim.x) * teams;
  for (int64_t base = first + static_cast<int64_t>(blockIdx.x) * teams; base < last;
       base += stride) {
    const int64_t group = base + static_cast<int>(threadIdx.x) / team;
    const bool there = group < last;
    const int64_t begin = there ? a.offsets[group] : 0;
    const int64_t length = there ? (a.offsets[group + 1] - begin) * span : 0;
    double s[K], d[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int e = own.at(k);
      s[k] = d[k] = 0.0;
      if (e >= length) continue;
      s[k] = static_cast<double>(steps[begin * span + e]);
      d[k] = a.rest[latent_index(a, begin, e)] - a.parts[begin * span + e];
    }
    const double squares = fold_team<double, K, 1>(team, [&](int k, int) { return s[k] * s[k]; });
    const double along = fold_team<double, K, 1>(team, [&](int k, int) { return s[k] * d[k]; });
    if (!there) continue;
    const double norm = regkern::sqrt(squares), threshold = latent_threshold<C>(a, group);
    if (own.lane == 0) slopes[group] += latent_slope(norm, threshold, along);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int e = own.at(k);
      if (e >= length) continue;
      const int64_t i = latent_index(a, begin, e);
      const double both = latent_reverse(a.rest[i], d[k], s[k], norm, threshold, along);
      a.parts[begin * span + e] = both;
      a.rest[i] = both;
    }
  }
}

// term(e) over a block, in the order of square_sum: `shared` holds kLanes numbers.
template <typename Term>
__device__ __forceinline__ double block_total(int64_t length, const Term& term, double* shared) {
  constexpr int V = 4;
  double total = 0.0;
  for (int64_t begin = 0; begin < length; begin += kSegment) {
    const int64_t end = begin + kSegment < length ? begin + kSegment : length;
    double lanes[V] = {};
    for (int64_t at = begin + static_cast<int64_t>(threadIdx.x) * V; at < end; at += kLanes) {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (at + v < end) lanes[v] += term(at + v);
    }
    total += fold_block<double, V>(lanes, shared);
  }
  return total;
}

// Longer groups, a block each.
template <typename C>
__global__ void __launch_bounds__(kLaneThreads<4>)
    latent_blocks_kernel(LatentGroups a, C* steps, int64_t first, int64_t last) {
  RK_SHARED(double, shared, kLanes);
  const int64_t span = a.outer * a.inner;
  for (int64_t group = first + blockIdx.x; group < last; group += gridDim.x) {
    const int64_t begin = a.offsets[group], length = (a.offsets[group + 1] - begin) * span;
    double* const v = a.parts + begin * span;
    const auto s_of = [&](int64_t e) { return v[e] + a.rest[latent_index(a, begin, e)]; };
    const double squares = block_total(
        length,
        [&](int64_t e) {
          const double s = s_of(e);
          return s * s;
        },
        shared);
    const double share = latent_share(regkern::sqrt(squares), latent_threshold<C>(a, group));
    for (int64_t e = threadIdx.x; e < length; e += blockDim.x) {
      const double s = s_of(e);
      if (steps != nullptr) steps[begin * span + e] = static_cast<C>(s);
      v[e] = share * s;
      a.rest[latent_index(a, begin, e)] = latent_rest(s, share);
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kLaneThreads<4>)
    latent_blocks_back_kernel(LatentGroups a, const C* steps, double* slopes, int64_t first,
                              int64_t last) {
  RK_SHARED(double, shared, kLanes);
  const int64_t span = a.outer * a.inner;
  for (int64_t group = first + blockIdx.x; group < last; group += gridDim.x) {
    const int64_t begin = a.offsets[group], length = (a.offsets[group + 1] - begin) * span;
    double* const v = a.parts + begin * span;
    const C* const s = steps + begin * span;
    const auto d_of = [&](int64_t e) { return a.rest[latent_index(a, begin, e)] - v[e]; };
    const double squares = block_total(
        length,
        [&](int64_t e) {
          const double x = static_cast<double>(s[e]);
          return x * x;
        },
        shared);
    const double along =
        block_total(length, [&](int64_t e) { return static_cast<double>(s[e]) * d_of(e); }, shared);
    const double norm = regkern::sqrt(squares), threshold = latent_threshold<C>(a, group);
    if (threadIdx.x == 0) slopes[group] += latent_slope(norm, threshold, along);
    for (int64_t e = threadIdx.x; e < length; e += blockDim.x) {
      const int64_t i = latent_index(a, begin, e);
      const double both =
          latent_reverse(a.rest[i], d_of(e), static_cast<double>(s[e]), norm, threshold, along);
      v[e] = both;
      a.rest[i] = both;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kElementThreads)
    latent_begin_kernel(LatentGroups a, const T* x, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kElementThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x; i < count;
       i += stride)
    a.rest[i] = static_cast<double>(widen(x[i]));
}

template <typename T>
__global__ void __launch_bounds__(kElementThreads)
    latent_end_kernel(LatentGroups a, const T* x, T* y, int64_t count) {
  using C = compute_t<T>;
  const bool still = *static_cast<const C*>(a.threshold) == C(0);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kElementThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x; at < count;
       at += stride) {
    const int64_t run = at / a.inner, k = at % a.inner, o = run / a.n, i = run % a.n;
    const int64_t first = a.place_offsets[i], last = a.place_offsets[i + 1];
    double sum = 0.0;
    for (int64_t p = first; p < last; ++p)
      sum += a.parts[(a.places[p] * a.outer + o) * a.inner + k];
    y[at] = still || first == last ? x[at] : narrowed<T>(static_cast<C>(sum));
  }
}

template <typename T>
__global__ void __launch_bounds__(kElementThreads)
    latent_begin_back_kernel(LatentGroups a, const T* g, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kElementThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x; at < count;
       at += stride) {
    const int64_t run = at / a.inner, k = at % a.inner, o = run / a.n, i = run % a.n;
    a.rest[at] = 0.0;
    for (int64_t p = a.place_offsets[i]; p < a.place_offsets[i + 1]; ++p)
      a.parts[(a.places[p] * a.outer + o) * a.inner + k] = static_cast<double>(widen(g[at]));
  }
}

template <typename T>
__global__ void __launch_bounds__(kElementThreads)
    latent_end_back_kernel(LatentGroups a, const T* g, T* dx, int64_t count) {
  using C = compute_t<T>;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kElementThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x; at < count;
       at += stride) {
    const int64_t i = at / a.inner % a.n;
    dx[at] = a.place_offsets[i] == a.place_offsets[i + 1] ? g[at]
                                                          : narrowed<T>(static_cast<C>(a.rest[at]));
  }
}

__global__ void __launch_bounds__(kElementThreads)
    latent_slopes_kernel(double* slopes, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kElementThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x; i < count;
       i += stride)
    slopes[i] = 0.0;
}

int64_t element_blocks(int64_t count) {
  return grid_blocks(ceil_div(count, int64_t{kElementThreads}), 8);
}

// few(team) for parts that a team of one element a thread holds, many() for those of a warp, and
// blocks() for longer ones.
template <typename Few, typename Many, typename Blocks>
void by_length(const LatentGroups& a, const Few& few, const Many& many, const Blocks& blocks) {
  const int64_t length = a.longest * a.outer * a.inner;
  if (length <= 32)
    few(power_of_two_from(static_cast<int>(length)));
  else if (length <= 32 * kOwn)
    many();
  else
    blocks();
}

int64_t team_blocks(int64_t groups, int team) {
  return grid_blocks(ceil_div(groups, int64_t{kStepThreads / team}), 8);
}

template <typename T>
void launch(const LatentArgs& args, cudaStream_t stream) {
  using C = compute_t<T>;
  const LatentGroups& a = args.groups;
  const int64_t count = a.outer * a.n * a.inner;
  const T* const x = static_cast<const T*>(args.x);
  const int64_t all = a.outer * a.inner * a.all_members;
  RK_LAUNCH((latent_begin_kernel<T>), element_blocks(count), kElementThreads, 0, stream, a, x,
            count);
  for (int64_t sweep = 0; sweep < a.sweeps; ++sweep) {
    C* const steps = args.steps == nullptr ? nullptr : static_cast<C*>(args.steps) + sweep * all;
    for (int64_t c = 0; c < a.colours; ++c) {
      const int64_t first = c > 0 ? a.ends[c - 1] : 0, last = a.ends[c];
      by_length(
          a,
          [&](int team) {
            RK_LAUNCH((latent_teams_kernel<C, 1>), team_blocks(last - first, team), kStepThreads, 0,
                      stream, a, steps, first, last, team);
          },
          [&] {
            RK_LAUNCH((latent_teams_kernel<C, kOwn>), team_blocks(last - first, 32), kStepThreads,
                      0, stream, a, steps, first, last, 32);
          },
          [&] {
            RK_LAUNCH((latent_blocks_kernel<C>), grid_blocks(last - first, 4), kLaneThreads<4>, 0,
                      stream, a, steps, first, last);
          });
    }
  }
  RK_LAUNCH((latent_end_kernel<T>), element_blocks(count), kElementThreads, 0, stream, a, x,
            static_cast<T*>(args.y), count);
}

template <typename T>
void launch_back(const LatentBackwardArgs& args, cudaStream_t stream) {
  using C = compute_t<T>;
  const LatentGroups& a = args.groups;
  const int64_t count = a.outer * a.n * a.inner, all = a.outer * a.inner * a.all_members;
  const T* const g = static_cast<const T*>(args.g);
  RK_LAUNCH((latent_begin_back_kernel<T>), element_blocks(count), kElementThreads, 0, stream, a, g,
            count);
  RK_LAUNCH(latent_slopes_kernel, element_blocks(a.groups), kElementThreads, 0, stream, args.slopes,
            a.groups);
  for (int64_t sweep = a.sweeps - 1; sweep >= 0; --sweep) {
    const C* const steps = static_cast<const C*>(args.steps) + sweep * all;
    for (int64_t c = a.colours - 1; c >= 0; --c) {
      const int64_t first = c > 0 ? a.ends[c - 1] : 0, last = a.ends[c];
      by_length(
          a,
          [&](int team) {
            RK_LAUNCH((latent_teams_back_kernel<C, 1>), team_blocks(last - first, team),
                      kStepThreads, 0, stream, a, steps, args.slopes, first, last, team);
          },
          [&] {
            RK_LAUNCH((latent_teams_back_kernel<C, kOwn>), team_blocks(last - first, 32),
                      kStepThreads, 0, stream, a, steps, args.slopes, first, last, 32);
          },
          [&] {
            RK_LAUNCH((latent_blocks_back_kernel<C>), grid_blocks(last - first, 4), kLaneThreads<4>,
                      0, stream, a, steps, args.slopes, first, last);
          });
    }
  }
  RK_LAUNCH((latent_end_back_kernel<T>), element_blocks(count), kElementThreads, 0, stream, a, g,
            static_cast<T*>(args.dx), count);
}

}  // namespace

void latent_group_prox(const LatentArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) { launch<decltype(zero)>(args, stream); });
}

void latent_group_prox_backward(const LatentBackwardArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) { launch_back<decltype(zero)>(args, stream); });
}

}  // namespace regkern::cuda
