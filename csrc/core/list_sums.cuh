#pragma once

#include "core/list_sums.h"
#include "core/tensor_list.cuh"

// Sums over lists on the GPU: a block takes a span, a thread kLaneGroup neighbouring lanes of it.

namespace regkern {

static_assert(kSpanLanes == kListTile && kLaneGroup == kListLanes);

// In double, over the block: threads are added by halves. All threads call it; `shared` has room
// for kListThreads numbers, and is free again afterwards.
__device__ __forceinline__ double block_sum(double value, double* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = value;
  __syncthreads();
  for (int half = kListThreads / 2; half > 0; half /= 2) {
    if (thread < half) shared[thread] += shared[thread + half];
    __syncthreads();
  }
  const double sum = shared[0];
  __syncthreads();
  return sum;
}

// add(e, left, lanes) adds the kLaneGroup elements from e on, of which `left` are there.
REGKERN_CALLS_ARGUMENT
template <int K, typename Row, typename F>
__device__ __forceinline__ void sum_span(const ListChunk<Row>& chunk, int place, double* spans,
                                         double* shared, F&& add) {
  const ListPlace at = place_of(chunk, place);
  const Row& row = chunk.rows[at.row];
  double lanes[K][kLaneGroup] = {};
  const int64_t from = at.tile * kSpan;
  const int64_t end = from + kSpan < row.numel ? from + kSpan : row.numel;
  for (int64_t e = from + static_cast<int64_t>(threadIdx.x) * kLaneGroup; e < end; e += kSpanLanes)
    add(row, e, end - e, lanes);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const double sum = block_sum(group_sum(lanes[k]), shared);
    if (threadIdx.x == 0) spans[(row.span + at.tile) * K + k] = sum;
  }
}

// The total of spans, by a block of kTotalLanes threads.
__device__ __forceinline__ double total_of_spans(const double* spans, int64_t begin, int64_t end,
                                                 int stride, double* shared) {
  static_assert(kTotalLanes == kListThreads);
  double lane = 0.0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kTotalLanes) lane += spans[i * stride];
  return block_sum(lane, shared);
}

}  // namespace regkern
