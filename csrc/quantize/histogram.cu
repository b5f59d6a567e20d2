#include "core/vector.cuh"
#include "quantize/histogram.h"

namespace regkern::cuda {
namespace {

using namespace quantize;

using Count = unsigned long long;  // what atomicAdd takes

constexpr int kThreads = 256;
constexpr int kUnroll = 4;

__device__ __forceinline__ Count* total_of(const HistogramArgs& args, int32_t slot) {
  const auto bins = static_cast<int32_t>(args.bins);
  return reinterpret_cast<Count*>(slot < bins ? args.counts + slot : args.outside + (slot - bins));
}

// kShared: a block counts for itself first. Else there are too many bins, and few meet in one.
template <typename T, int V, bool kShared>
__global__ void __launch_bounds__(kThreads) histogram_kernel(HistogramArgs args) {
  RK_DYNAMIC_SHARED(uint32_t, counts);
  const T* x = static_cast<const T*>(args.x);
  const auto slots = static_cast<int32_t>(args.bins) + kOutside;
  const Bins bins = load_bins(args);
  if constexpr (kShared) {
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < slots; i += kThreads) counts[i] = 0;
    __syncthreads();
  }
  const auto add = [&](T element) {
    const auto value = static_cast<double>(widen(element));
    const int32_t slot = slot_of(bins, args.magnitude && value < 0.0 ? -value : value);
    if constexpr (kShared)
      atomicAdd(counts + slot, 1u);
    else
      atomicAdd(total_of(args, slot), Count{1});
  };
  constexpr int64_t kTile = int64_t{kThreads} * V * kUnroll;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kTile;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x * V; base < args.numel;
       base += stride) {
    Vector<T, V> v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t e = base + u * kThreads * V;
      if (e + V <= args.numel) v[u] = load_vector<T, V>(x + e);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t e = base + u * kThreads * V;
      if (e + V <= args.numel) {
#pragma unroll
        for (int k = 0; k < V; ++k) add(v[u].v[k]);
      } else {
        for (int64_t i = e; i < args.numel; ++i) add(x[i]);
      }
    }
  }
  if constexpr (kShared) {
    __syncthreads();
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < slots; i += kThreads)
      if (counts[i] != 0) atomicAdd(total_of(args, i), static_cast<Count>(counts[i]));
  }
}

__global__ void histogram_clip_kernel(HistogramArgs args) {
  args.counts[0] += args.outside[0];
  args.counts[args.bins - 1] += args.outside[1];
}

template <typename T, int V>
void launch_histogram(const HistogramArgs& args, cudaStream_t stream) {
  // Where each count is an atomic in memory, loads do not matter.
  const int64_t work = ceil_div(args.numel, int64_t{kThreads} * V * kUnroll);
  const auto bytes = static_cast<std::size_t>(args.bins + kOutside) * sizeof(uint32_t);
  if (bytes <= kSharedBytesDefault)
    RK_LAUNCH((histogram_kernel<T, V, true>), grid_blocks(work, 8), kThreads, bytes, stream, args);
  else
    RK_LAUNCH((histogram_kernel<T, 1, false>), grid_blocks(work, 8), kThreads, 0, stream, args);
}

}  // namespace

void histogram(const HistogramArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  zero_async(args.counts, static_cast<std::size_t>(args.bins) * sizeof(int64_t), stream);
  zero_async(args.outside, kOutside * sizeof(int64_t), stream);
  if (args.numel == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (is_aligned(args.x))
      launch_histogram<T, kLanesOf<T>>(args, stream);
    else
      launch_histogram<T, 1>(args, stream);
  });
  if (args.clip) RK_LAUNCH((histogram_clip_kernel), 1, 1, 0, stream, args);
}

}  // namespace regkern::cuda
