#pragma once

#include "core/square_sum.cuh"
#include "core/tensor_list.cuh"
#include "proximal/group_before.h"

// What the CUDA kernels of groups share. A group is read by a team of threads of a warp where it is
// short, by a block otherwise; lanes are those of core/square_sum.h.

namespace regkern::cuda {
namespace {

using namespace proximal;

template <typename T>
constexpr int kNeighbours = kLanesOf<T>;
template <typename T>
constexpr int kGroupThreads = kLaneThreads<kNeighbours<T>>;

// Blocks of a multiprocessor that the kernels of long groups are compiled for, so that a thread has
// 96 registers with halves, 80 with floats, 128 with doubles. Left to itself, the compiler aims at
// more blocks and spills. 0 is its choice.
template <typename T, bool kTeams>
constexpr int kGroupBlocks = kTeams           ? 0
                             : sizeof(T) == 8 ? 1
                             : sizeof(T) == 4 ? 3
                                              : 5;

// Stripes that a team keeps: 16 elements a thread, 8 of doubles.
template <typename T>
constexpr int kTeamStripes = sizeof(T) == 8 ? 4 : 16 / kNeighbours<T>;
template <typename T>
constexpr int64_t kTeamMost = int64_t{kTeamStripes<T>} * 32 * kNeighbours<T>;

// Threads of a team for groups of n ≤ kTeamMost elements.
template <typename T>
__host__ __device__ __forceinline__ int team_of(int64_t n) {
  const int threads =
      power_of_two_from(static_cast<int>((n + kNeighbours<T> - 1) / kNeighbours<T>));
  return threads < 32 ? threads : 32;
}

// Elements e … e + V - 1 of a run of n as `before` makes them; 0 beyond its end.
template <Before kBefore, typename T, int V, typename I>
__device__ __forceinline__ void load_prepared(const Prepared<kBefore, T>& x, I e, I n, bool aligned,
                                              compute_t<T> (&out)[V]) {
  using C = compute_t<T>;
  if (aligned && e < n) {
    const Vector<T, V> in = load_vector<T, V>(x.x + e);
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = x.of(widen(in.v[v]), e + v);
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = e + v < n ? x(e + v) : C(0);
}

template <typename T, int V>
__device__ __forceinline__ void store_scaled(const compute_t<T> (&x)[V], compute_t<T> factor, int e,
                                             int n, bool aligned, T* y) {
  if (aligned && e < n) {
    Vector<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) narrow(scaled_by(factor, x[v]), &out.v[v]);
    store_vector<T, V>(out, y + e);
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (e + v < n) narrow(scaled_by(factor, x[v]), y + e + v);
}

// The sum of squares of what a team's threads have, in every thread; float sums that do not hold
// are added again in double. All threads of the warp call it.
template <typename C, int K, int V>
__device__ __forceinline__ double team_square_sum(int team, const C (&x)[K][V]) {
  const C sum = fold_team<C, K, V>(team, [&](int k, int v) { return x[k][v] * x[k][v]; });
  double total = static_cast<double>(sum);
  if constexpr (sizeof(C) == sizeof(float)) {
    const bool holds = square_sum_holds(sum);
    if (__any_sync(kWholeWarp, !holds)) {
      const double wide = fold_team<double, K, V>(team, [&](int k, int v) {
        const double value = static_cast<double>(x[k][v]);
        return value * value;
      });
      total = holds ? total : wide;
    }
  }
  return total;
}

// The sum over a block's stripes of a run of n, in every thread: add(e, lanes) adds the terms of
// the elements from e on to the thread's lanes.
template <typename A, int V, typename Add>
__device__ __forceinline__ A block_sum(int n, double* shared, const Add& add) {
  A lanes[V] = {};
  // Unrolled, it needs more registers than there are.
#pragma unroll 1
  for (int e = static_cast<int>(threadIdx.x) * V; e < n; e += kLanes) add(e, lanes);
  return fold_block<A, V>(lanes, reinterpret_cast<A*>(shared));
}

// zeros += the threads of the warp that have one.
__device__ __forceinline__ void count_zeros(bool zero, int64_t* zeros) {
  const unsigned count = static_cast<unsigned>(__popc(__ballot_sync(kWholeWarp, zero)));
  if (count > 0 && threadIdx.x % 32 == 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(zeros), static_cast<unsigned long long>(count));
}

// launch(chunk, tiles) for the rows of a list, of which tiles_of(row) tiles each.
template <typename Tiles, typename Launch>
void for_each_group_chunk(const GroupRow* rows, int64_t count, Tiles&& tiles_of, Launch&& launch) {
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  ListChunk<GroupRow> chunk;
  for (int64_t begin = 0; begin < count; begin += chunk.count) {
    int64_t tiles = 0;
    chunk.count = 0;
    while (begin + chunk.count < count && chunk.count < ListChunk<GroupRow>::kMost) {
      const int64_t more = tiles_of(rows[begin + chunk.count]);
      if (chunk.count > 0 && tiles + more > kMostTiles) break;
      tiles += more;
      chunk.rows[chunk.count] = rows[begin + chunk.count];
      chunk.tiles_end[chunk.count] = static_cast<int>(tiles);
      ++chunk.count;
    }
    if (tiles > 0) launch(chunk, tiles);
  }
}

}  // namespace
}  // namespace regkern::cuda
