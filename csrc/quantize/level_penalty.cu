#include "core/launch.cuh"
#include "core/noise.h"
#include "quantize/level_penalty.h"
#include "quantize/segments.cuh"

namespace regkern::cuda {
namespace {

using namespace quantize;

template <typename C>
__global__ void __launch_bounds__(32) penalty_bounds_kernel(LevelPenaltyArgs a) {
  if (threadIdx.x == 0)
    *static_cast<Bounds<C>*>(a.bounds) = bounds_of(static_cast<const C*>(a.values), a.levels);
}

template <typename C>
__device__ __forceinline__ C variation(const LevelPenaltyArgs& a, int64_t e) {
  if (a.variability == 0.0) return C(1);
  const float normal = normal_of(load_seed(a.seed), static_cast<uint64_t>(e));
  return C(1) + static_cast<C>(a.variability) * static_cast<C>(normal);
}

template <typename C, bool kUniform>
__device__ __forceinline__ Level<C> level_at(const LevelPenaltyArgs& a, C w, C f, int64_t e) {
  if constexpr (kUniform) {
    const uint32_t sa0 = a.sa0 != nullptr ? a.sa0[e] : 0u, sa1 = a.sa1 != nullptr ? a.sa1[e] : 0u;
    return uniform_level(w, *static_cast<const C*>(a.values), f, a.range,
                         a.sa0 != nullptr || a.sa1 != nullptr, sa0, sa1);
  } else {
    const Nearest<C> found =
        nearest_scaled(w, static_cast<const C*>(a.values), a.levels,
                       *static_cast<const Bounds<C>*>(a.bounds), f, allowed_at(a.allowed, e));
    return {found.value, found.code, f};
  }
}

template <typename T, bool kUniform>
__device__ __forceinline__ Level<compute_t<T>> penalty_at(const LevelPenaltyArgs& a, int64_t e,
                                                          compute_t<T>* residual) {
  using C = compute_t<T>;
  const C w = widen(static_cast<const T*>(a.w)[e]), f = variation<C>(a, e);
  const Level<C> level = level_at<C, kUniform>(a, w, f, e);
  *residual = w - level.value;
  if (a.dw != nullptr) narrow(static_cast<C>(2.0 * a.mean) * *residual, static_cast<T*>(a.dw) + e);
  if (a.code != nullptr) a.code[e] = level.code;
  if (a.factor != nullptr) static_cast<C*>(a.factor)[e] = f;
  return level;
}

template <typename T, bool kUniform>
__global__ void __launch_bounds__(kSumThreads) penalty_sums_kernel(LevelPenaltyArgs a) {
  using C = compute_t<T>;
  RK_DYNAMIC_SHARED(double, shared);
  const int last = a.sums.bins - 1;
  for_lanes(Segments{1, 1, a.numel}, a.sums.bins, a.sums.lanes, shared,
            [&](int64_t, int64_t e, const LaneSums& sums) {
              C d;
              const Level<C> level = penalty_at<T, kUniform>(a, e, &d);
              sums[last] += static_cast<double>(d * d);
              if (a.sums.outputs > 0)
                sums[kUniform ? 0 : level.code] += static_cast<double>(d * level.weight);
            });
}

template <typename T, bool kUniform>
__global__ void __launch_bounds__(kSumThreads) penalty_kernel(LevelPenaltyArgs a) {
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x; e < a.numel;
       e += static_cast<int64_t>(gridDim.x) * kSumThreads) {
    compute_t<T> d;
    penalty_at<T, kUniform>(a, e, &d);
  }
}

template <typename T, bool kUniform>
void penalty_as(const LevelPenaltyArgs& a, cudaStream_t stream) {
  const Segments s{1, 1, a.numel};
  if (a.numel > 0) {
    if (!kUniform) RK_LAUNCH((penalty_bounds_kernel<compute_t<T>>), 1, 32, 0, stream, a);
    if (a.sums.bins > 0)
      RK_LAUNCH((penalty_sums_kernel<T, kUniform>), lane_blocks(s, a.sums.bins),
                sum_threads(a.sums.bins), sum_bytes(a.sums.bins), stream, a);
    else
      RK_LAUNCH((penalty_kernel<T, kUniform>),
                grid_blocks(ceil_div(a.numel, int64_t{kSumThreads}), 32), kSumThreads, 0, stream,
                a);
  }
  if (a.sums.bins > 0) launch_sums(s, a.sums, stream);
}

}  // namespace

void level_penalty(const LevelPenaltyArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.uniform ? penalty_as<T, true>(args, stream) : penalty_as<T, false>(args, stream);
  });
}

}  // namespace regkern::cuda
