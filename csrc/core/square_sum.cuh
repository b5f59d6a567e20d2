#pragma once

#include "core/square_sum.h"
#include "core/vector.cuh"

// The sums of core/square_sum.h on the GPU. Lane = (stripe, thread, v): a thread has V neighbours
// of each stripe, and a team of `team` threads of a warp covers team · V lanes a stripe.

namespace regkern {

// Folds K lanes of a thread, a power of two, into the first. By recursion: nested loops are not
// always unrolled, and what is not lies in local memory.
template <int K, typename A>
__device__ __forceinline__ void fold_own(A* lanes) {
  if constexpr (K > 1) {
#pragma unroll
    for (int k = 0; k < K / 2; ++k) lanes[k] += lanes[k + K / 2];
    fold_own<K / 2>(lanes);
  }
}

// The sum over all lanes of a team of a power of two of threads, at most a warp, in every thread of
// it: term(k, v) is the thread's part of stripe k at its neighbour v. K, the stripes of different
// lanes, is a power of two. All threads of the warp call it.
template <typename A, int K, int V, typename Term>
__device__ __forceinline__ A fold_team(int team, const Term& term) {
  A sums[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    A lanes[K];
#pragma unroll
    for (int k = 0; k < K; ++k) lanes[k] = term(k, v);
    fold_own<K>(lanes);
    sums[v] = lanes[0];
  }
  for (int offset = team / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] += __shfl_xor_sync(kWholeWarp, sums[v], offset);
  }
  fold_own<V>(sums);
  return sums[0];
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
  // Every warp folds the same lanes of all warps, so that every thread has the sum.
  const A sum =
      fold_team<A, kWarps, V>(32, [&](int w, int v) { return shared[(w * 32 + lane) * V + v]; });
  __syncthreads();
  return sum;
}

}  // namespace regkern
