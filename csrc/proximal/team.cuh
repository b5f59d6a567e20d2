#pragma once

#include <cstdint>

#include "core/launch.cuh"
#include "core/vector.cuh"

// A team of threads has a slice: a warp, or a whole block of kTeamThreads. Either way a block has
// kTeamThreads threads, and all of a team call these together.

namespace regkern::proximal {

constexpr int kTeamThreads = 256;
constexpr int kTeamWarps = kTeamThreads / 32;

template <int kTeam>
__device__ __forceinline__ int team_lane() {
  return static_cast<int>(threadIdx.x) % kTeam;
}
template <int kTeam>
__device__ __forceinline__ void team_sync() {
  if constexpr (kTeam == kTeamThreads)
    __syncthreads();
  else
    __syncwarp();
}

// Integer sums over the team, in every thread.
template <int kTeam, int kCount>
__device__ __forceinline__ void team_sum(int64_t (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = warp_sum(values[i]);
  if constexpr (kTeam == kTeamThreads) {
    RK_SHARED(int64_t, partial, kTeamWarps* kCount);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    __syncthreads();
    if (threadIdx.x % 32 == 0)
#pragma unroll
      for (int i = 0; i < kCount; ++i) partial[warp * kCount + i] = values[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = 0;
      for (int w = 0; w < kTeamWarps; ++w) values[i] += partial[w * kCount + i];
    }
  }
}

template <int kTeam, int kCount>
__device__ __forceinline__ void team_max(int64_t (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    for (int offset = 16; offset > 0; offset /= 2) {
      const int64_t other = __shfl_xor_sync(kWholeWarp, values[i], offset);
      values[i] = other > values[i] ? other : values[i];
    }
  if constexpr (kTeam == kTeamThreads) {
    RK_SHARED(int64_t, partial, kTeamWarps* kCount);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    __syncthreads();
    if (threadIdx.x % 32 == 0)
#pragma unroll
      for (int i = 0; i < kCount; ++i) partial[warp * kCount + i] = values[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      for (int w = 0; w < kTeamWarps; ++w)
        values[i] = partial[w * kCount + i] > values[i] ? partial[w * kCount + i] : values[i];
  }
}

// Sums of 32 lanes in double, in pairs: the same order as on the CPU. A warp calls it.
__device__ __forceinline__ double lane_sum(double value) {
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}

}  // namespace regkern::proximal
