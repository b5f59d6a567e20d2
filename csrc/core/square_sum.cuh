#pragma once

#include "core/square_sum.h"
#include "core/vector.cuh"

// The sums of core/square_sum.h on the GPU. Lane = (stripe, thread, v): a thread has V neighbours
// of each stripe, and a team of `team` threads of a warp covers team · V lanes a stripe.

namespace regkern {

// The sum over all lanes of a team of a power of two of threads, at most a warp, in every thread of
// it. K, the stripes of different lanes, is a power of two. All threads of the warp call it.
template <typename A, int K, int V>
__device__ __forceinline__ A fold_team(A (&lanes)[K][V], int team) {
#pragma unroll
  for (int half = K / 2; half > 0; half /= 2) {
#pragma unroll
    for (int k = 0; k < half; ++k) {
#pragma unroll
      for (int v = 0; v < V; ++v) lanes[k][v] += lanes[k + half][v];
    }
  }
  for (int offset = team / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int v = 0; v < V; ++v) lanes[0][v] += __shfl_xor_sync(kWholeWarp, lanes[0][v], offset);
  }
#pragma unroll
  for (int half = V / 2; half > 0; half /= 2) {
#pragma unroll
    for (int v = 0; v < half; ++v) lanes[0][v] += lanes[0][v + half];
  }
  return lanes[0][0];
}

// Threads of a block that has one lane each for V neighbours: kLanes lanes in all.
template <int V>
constexpr int kLaneThreads = kLanes / V;

// The sum over the kLanes lanes of a block of kLaneThreads<V> threads, in every thread. `shared`
// has room for kLanes numbers. All threads call it, and it ends with a barrier.
template <typename A, int V>
__device__ __forceinline__ A fold_block(const A (&lanes)[V], A* shared) {
  constexpr int kWarps = kLaneThreads<V> / 32;
#pragma unroll
  for (int v = 0; v < V; ++v) shared[static_cast<int>(threadIdx.x) * V + v] = lanes[v];
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  A folded[1][V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    A warps[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) warps[w] = shared[(w * 32 + lane) * V + v];
#pragma unroll
    for (int half = kWarps / 2; half > 0; half /= 2) {
#pragma unroll
      for (int w = 0; w < half; ++w) warps[w] += warps[w + half];
    }
    folded[0][v] = warps[0];
  }
  __syncthreads();
  return fold_team<A, 1, V>(folded, 32);
}

}  // namespace regkern
