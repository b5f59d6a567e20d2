#pragma once

#include "core/vector.cuh"
#include "quantize/segments.h"

// Sums over the groups of a tensor: a thread adds up one lane of a piece, in `bins` sums that stand
// in shared memory.

namespace regkern::quantize {
namespace {

constexpr int kSumThreads = 128;

// Threads whose sums fit into the shared memory that every GPU grants.
inline int sum_threads(int bins) {
  int threads = kSumThreads;
  while (threads > 1 && threads * bins * sizeof(double) > (size_t{40} << 10)) threads /= 2;
  return threads;
}
inline size_t sum_bytes(int bins) { return sum_threads(bins) * bins * sizeof(double); }

// The sums of a thread, interleaved with those of its neighbours: no bank conflicts.
class LaneSums {
 public:
  __device__ __forceinline__ explicit LaneSums(double* shared) : mine_(shared + threadIdx.x) {}
  __device__ __forceinline__ double& operator[](int bin) const { return mine_[bin * blockDim.x]; }

 private:
  double* mine_;
};

// Calls body(group, element, sums) for the elements of the lanes of this thread.
REGKERN_CALLS_ARGUMENT
template <typename F>
__device__ __forceinline__ void for_lanes(const Segments& s, int bins, double* lanes,
                                          double* shared, F&& body) {
  const LaneSums sums(shared);
  const int64_t size = group_size(s), piece = piece_size(bins), pieces = piece_count(s, bins);
  const int64_t per_group = pieces * kSumLanes, work = per_group * s.groups;
  // Neighbouring threads read neighbours in memory.
  const bool by_group = s.inner < kSumLanes;
  const int64_t rows = kSumLanes / s.inner, rest = kSumLanes % s.inner;
  for (int64_t w = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; w < work;
       w += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t g = by_group ? w % s.groups : w / per_group;
    const int64_t lane = by_group ? w / s.groups : w - g * per_group;
    for (int b = 0; b < bins; ++b) sums[b] = 0.0;
    const int64_t begin = lane / kSumLanes * piece;
    const int64_t end = begin + piece < size ? begin + piece : size;
    int64_t k = begin + lane % kSumLanes;
    int64_t o = k / s.inner, i = k - o * s.inner;
    for (; k < end; k += kSumLanes) {
      body(g, (o * s.groups + g) * s.inner + i, sums);
      o += rows;
      i += rest;
      if (i >= s.inner) {
        i -= s.inner;
        ++o;
      }
    }
    double* out = lanes + (g * per_group + lane) * bins;
    for (int b = 0; b < bins; ++b) out[b] = sums[b];
  }
}

inline int64_t lane_blocks(const Segments& s, int bins) {
  const int64_t threads = sum_threads(bins);
  return grid_blocks(ceil_div(piece_count(s, bins) * kSumLanes * s.groups, threads), 64);
}

__global__ void __launch_bounds__(kSumThreads) span_kernel(Segments s, SumsArgs sums) {
  const int64_t pieces = piece_count(s, sums.bins), spans = span_count(s, sums.bins);
  const int64_t work = s.groups * spans * sums.bins;
  for (int64_t w = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x; w < work;
       w += static_cast<int64_t>(gridDim.x) * kSumThreads) {
    const int64_t row = w / sums.bins, b = w - row * sums.bins;
    const int64_t g = row / spans, first = (row - g * spans) * kPiecesPerSpan;
    double total = 0.0;
    for (int64_t p = first; p < first + kPiecesPerSpan && p < pieces; ++p) {
      const double* lane = sums.lanes + (g * pieces + p) * kSumLanes * sums.bins + b;
      double sum = 0.0;
#pragma unroll
      for (int i = 0; i < kSumLanes; ++i) sum += lane[i * sums.bins];
      total += sum;
    }
    sums.spans[w] = total;
  }
}

template <typename C>
__global__ void __launch_bounds__(kSumThreads) finish_kernel(Segments s, SumsArgs sums) {
  const int64_t spans = span_count(s, sums.bins), work = s.groups * sums.outputs;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  for (int64_t w = first; w < work; w += static_cast<int64_t>(gridDim.x) * kSumThreads)
    finish_bin<C>(sums, spans, w / sums.outputs, static_cast<int>(w % sums.outputs));
  if (first == 0 && sums.total[0] != nullptr) finish_total<C>(sums, spans, s.groups);
}

// After the lanes: their sums by span, and the results.
inline void launch_sums(const Segments& s, const SumsArgs& sums, cudaStream_t stream) {
  const int64_t spans = s.groups * span_count(s, sums.bins) * sums.bins;
  if (spans > 0)
    RK_LAUNCH(span_kernel, grid_blocks(ceil_div(spans, int64_t{kSumThreads}), 16), kSumThreads, 0,
              stream, s, sums);
  const int64_t work = s.groups * sums.outputs + 1;
  const int64_t blocks = grid_blocks(ceil_div(work, int64_t{kSumThreads}), 16);
  if (sums.dtype == Dtype::float64)
    RK_LAUNCH((finish_kernel<double>), blocks, kSumThreads, 0, stream, s, sums);
  else
    RK_LAUNCH((finish_kernel<float>), blocks, kSumThreads, 0, stream, s, sums);
}

}  // namespace
}  // namespace regkern::quantize
