#include "core/list_sums.cuh"
#include "spectral/network_norms.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

template <bool kTwo, typename T>
__device__ __forceinline__ void load_pair(const NormRow& row, int64_t e, int64_t left,
                                          T x[kListLanes], T w[kListLanes]) {
  const T* const from = static_cast<const T*>(row.x);
  load_lanes(from + e, left, aligned_for_vectors(from), x);
  if constexpr (kTwo) {
    const T* const other = static_cast<const T*>(row.w);
    load_lanes(other + e, left, aligned_for_vectors(other), w);
  }
}

// The sums of a span with lanes of type A, in every thread.
template <Norms kNorms, bool kAdaptive, typename A, typename T>
__device__ __forceinline__ void span_sums(const NormRow& row, int64_t from, int64_t end,
                                          compute_t<T> eta, double p, double most, double* shared,
                                          double* sums) {
  using C = compute_t<T>;
  constexpr int kSums = kNorms == Norms::pair ? kPairSums : 1;
  constexpr bool kTwo = kAdaptive || kNorms == Norms::pair || kNorms == Norms::distance;
  A lanes[kSums][kLaneGroup] = {};
  for (int64_t e = from + static_cast<int64_t>(threadIdx.x) * kLaneGroup; e < end;
       e += kSpanLanes) {
    T x[kListLanes], w[kListLanes] = {};
    load_pair<kTwo>(row, e, end - e, x, w);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      const C first = widen(x[i]), second = widen(w[i]);
      if (i >= end - e) continue;
      lanes[0][i] += element_term<kNorms, kAdaptive, 0, A>(first, second, eta, p, most);
      if constexpr (kSums == kPairSums) {
        lanes[1][i] += element_term<kNorms, kAdaptive, 1, A>(first, second, eta, p, most);
        lanes[2][i] += element_term<kNorms, kAdaptive, 2, A>(first, second, eta, p, most);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) sums[k] = block_sum(lane_group_sum(lanes[k]), shared);
}

template <Norms kNorms, bool kAdaptive, typename T>
__global__ void __launch_bounds__(kListThreads, 2)
    network_norms_kernel(const __grid_constant__ ListChunk<NormRow> chunk, double eta, double p,
                         const double* most_at, double* spans) {
  using C = compute_t<T>;
  using A = lane_t<kNorms, C>;
  constexpr int kSums = kNorms == Norms::pair ? kPairSums : 1;
  RK_SHARED(double, shared, kListThreads);
  const double most = kNorms == Norms::power ? *most_at : 0.0;
  const ListPlace at = place_of(chunk, static_cast<int>(blockIdx.x));
  const NormRow& row = chunk.rows[at.row];
  const int64_t from = at.tile * kSpan;
  const int64_t end = from + kSpan < row.numel ? from + kSpan : row.numel;
  double sums[kSums];
  span_sums<kNorms, kAdaptive, A, T>(row, from, end, static_cast<C>(eta), p, most, shared, sums);
  if constexpr (sizeof(A) < sizeof(double)) {
    // The same in every thread.
    if (!square_sum_holds(static_cast<float>(sums[0])))
      span_sums<kNorms, kAdaptive, double, T>(row, from, end, static_cast<C>(eta), p, most, shared,
                                              sums);
  }
  if (threadIdx.x == 0)
    for (int k = 0; k < kSums; ++k) spans[(row.span + at.tile) * kSums + k] = sums[k];
}

// The largest of the block, in every thread. All threads call it.
__device__ __forceinline__ double block_largest(double value, double* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = value;
  __syncthreads();
  for (int half = kListThreads / 2; half > 0; half /= 2) {
    if (thread < half) shared[thread] = larger_magnitude(shared[thread], shared[thread + half]);
    __syncthreads();
  }
  const double most = shared[0];
  __syncthreads();
  return most;
}

template <bool kAdaptive, typename T>
__global__ void __launch_bounds__(kListThreads, 2)
    network_largest_kernel(const __grid_constant__ ListChunk<NormRow> chunk, double eta,
                           double* spans) {
  using C = compute_t<T>;
  RK_SHARED(double, shared, kListThreads);
  const ListPlace at = place_of(chunk, static_cast<int>(blockIdx.x));
  const NormRow& row = chunk.rows[at.row];
  const C shift = static_cast<C>(eta);
  const int64_t from = at.tile * kSpan;
  const int64_t end = from + kSpan < row.numel ? from + kSpan : row.numel;
  double most = 0.0;
  for (int64_t e = from + static_cast<int64_t>(threadIdx.x) * kLaneGroup; e < end;
       e += kSpanLanes) {
    T x[kListLanes], w[kListLanes];
    load_pair<kAdaptive>(row, e, end - e, x, w);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      double a = static_cast<double>(fabs(widen(x[i])));
      if constexpr (kAdaptive) a = static_cast<double>(fabs(widen(w[i])) + shift) * a;
      if (i < end - e) most = larger_magnitude(most, a);
    }
  }
  most = block_largest(most, shared);
  if (threadIdx.x == 0) spans[row.span + at.tile] = most;
}

// A block for every tensor of the chunk.
__global__ void __launch_bounds__(kTotalLanes)
    tensor_norms_kernel(const __grid_constant__ ListChunk<NormRow> chunk, int sums, bool largest,
                        const double* spans, double* each) {
  RK_SHARED(double, shared, kTotalLanes);
  const NormRow& row = chunk.rows[blockIdx.x];
  const int64_t begin = row.span, end = begin + span_count(row.numel);
  for (int k = 0; k < sums; ++k) {
    double value = 0.0;
    if (largest) {
      for (int64_t i = begin + threadIdx.x; i < end; i += kTotalLanes)
        value = larger_magnitude(value, spans[i]);
      value = block_largest(value, shared);
    } else {
      value = total_of_spans(spans + k, begin, end, sums, shared);
    }
    if (threadIdx.x == 0) each[static_cast<int64_t>(blockIdx.x) * sums + k] = value;
  }
}

__global__ void __launch_bounds__(kTotalLanes)
    all_norms_kernel(int sums, bool largest, int64_t all_spans, const double* spans,
                     double* total) {
  RK_SHARED(double, shared, kTotalLanes);
  for (int k = 0; k < sums; ++k) {
    double value = 0.0;
    if (largest) {
      for (int64_t i = threadIdx.x; i < all_spans; i += kTotalLanes)
        value = larger_magnitude(value, spans[i]);
      value = block_largest(value, shared);
    } else {
      value = total_of_spans(spans + k, 0, all_spans, sums, shared);
    }
    if (threadIdx.x == 0) total[k] = value;
  }
}

template <Norms kNorms, bool kAdaptive, typename T>
void launch_sums(const NetworkNormsArgs& args, const ListChunk<NormRow>& chunk, int64_t tiles,
                 cudaStream_t stream) {
  RK_LAUNCH((network_norms_kernel<kNorms, kAdaptive, T>), tiles, kListThreads, 0, stream, chunk,
            args.eta, args.p, args.most, args.spans);
}

template <bool kAdaptive, typename T>
void launch_norms(const NetworkNormsArgs& args, const ListChunk<NormRow>& chunk, int64_t tiles,
                  cudaStream_t stream) {
  switch (args.norms) {
    case Norms::absolute:
      return launch_sums<Norms::absolute, kAdaptive, T>(args, chunk, tiles, stream);
    case Norms::square:
      return launch_sums<Norms::square, kAdaptive, T>(args, chunk, tiles, stream);
    case Norms::power:
      return launch_sums<Norms::power, kAdaptive, T>(args, chunk, tiles, stream);
    case Norms::largest:
      RK_LAUNCH((network_largest_kernel<kAdaptive, T>), tiles, kListThreads, 0, stream, chunk,
                args.eta, args.spans);
      return;
    case Norms::pair:
      return launch_sums<Norms::pair, false, T>(args, chunk, tiles, stream);
    case Norms::distance:
      return launch_sums<Norms::distance, false, T>(args, chunk, tiles, stream);
  }
}

}  // namespace

void network_norms(const NetworkNormsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int sums = sums_of(args.norms);
  const bool largest = args.norms == Norms::largest;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_chunk<kSpan>(args.rows, args.count,
                          [&](const ListChunk<NormRow>& chunk, int64_t first, int64_t tiles) {
                            args.adaptive ? launch_norms<true, T>(args, chunk, tiles, stream)
                                          : launch_norms<false, T>(args, chunk, tiles, stream);
                            RK_LAUNCH((tensor_norms_kernel), chunk.count, kTotalLanes, 0, stream,
                                      chunk, sums, largest, args.spans, args.each + first * sums);
                          });
  });
  RK_LAUNCH((all_norms_kernel), 1, kTotalLanes, 0, stream, sums, largest, args.all_spans,
            args.spans, args.total);
}

}  // namespace regkern::cuda
