#include "core/launch.cuh"
#include "core/vector.cuh"
#include "quantize/faults.h"

namespace regkern::cuda {
namespace {

using namespace quantize;

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 16;

__global__ void __launch_bounds__(kThreads) stuck_at_kernel(StuckAtArgs a, bool aligned) {
  using Words16 = Vector<uint32_t, 4>;
  const int64_t vectors = aligned ? a.bytes / kVectorBytes : 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const auto* code = static_cast<const uint32_t*>(a.code);
  const auto* sa0 = static_cast<const uint32_t*>(a.sa0);
  const auto* sa1 = static_cast<const uint32_t*>(a.sa1);
  for (int64_t i = first; i < vectors; i += stride) {
    Words16 v = load_vector<uint32_t, 4>(code + i * 4);
    const Words16 zero = load_vector<uint32_t, 4>(sa0 + i * 4);
    const Words16 one = load_vector<uint32_t, 4>(sa1 + i * 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) v.v[j] = (v.v[j] | one.v[j]) & ~zero.v[j];
    store_vector<uint32_t, 4>(v, static_cast<uint32_t*>(a.out) + i * 4);
  }
  for (int64_t i = vectors * kVectorBytes + first; i < a.bytes; i += stride)
    static_cast<uint8_t*>(a.out)[i] = static_cast<uint8_t>(
        (static_cast<const uint8_t*>(a.code)[i] | static_cast<const uint8_t*>(a.sa1)[i]) &
        ~static_cast<const uint8_t*>(a.sa0)[i]);
}

template <typename M>
__global__ void __launch_bounds__(kThreads) stuck_at_masks_kernel(StuckAtMasksArgs a) {
  const Seed seed = load_seed(a.seed);
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < a.numel;
       e += static_cast<int64_t>(gridDim.x) * kThreads) {
    const Faults f = faults_of(seed, a.rate, static_cast<uint64_t>(e), a.bits);
    static_cast<M*>(a.sa0)[e] = static_cast<M>(f.sa0);
    static_cast<M*>(a.sa1)[e] = static_cast<M>(f.sa1);
  }
}

template <typename T, int V, typename I>
__global__ void __launch_bounds__(kThreads, 4) inject_faults_kernel(InjectFaultsArgs a) {
  using C = compute_t<T>;
  const I numel = static_cast<I>(a.numel), inner = static_cast<I>(a.inner);
  const I channels = static_cast<I>(a.channels);
  const bool drawn = a.seed != nullptr;
  const Seed seed = drawn ? load_seed(a.seed) : Seed{0, 0};
  for (I e = (static_cast<I>(blockIdx.x) * kThreads + threadIdx.x) * V; e < numel;
       e += static_cast<I>(gridDim.x) * kThreads * V) {
    const Vector<T, V> in = load_vector<T, V>(static_cast<const T*>(a.w) + e);
    Vector<T, V> out;
    // V elements are in one channel.
    const I c = channels == 1 ? 0 : e / inner % channels;
    const C scale = static_cast<const C*>(a.scale)[c];
    const C zero = static_cast<const C*>(a.zero_point)[c], inverse = inverse_of(scale);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const auto at = static_cast<int64_t>(e) + i;
      uint32_t sa0 = 0, sa1 = 0;
      if (drawn) {
        const Faults f = faults_of(seed, a.rate, static_cast<uint64_t>(at), a.bits);
        sa0 = static_cast<uint32_t>(f.sa0);
        sa1 = static_cast<uint32_t>(f.sa1);
      } else if (a.masks_wide) {
        if (a.sa0 != nullptr) sa0 = static_cast<const uint32_t*>(a.sa0)[at];
        if (a.sa1 != nullptr) sa1 = static_cast<const uint32_t*>(a.sa1)[at];
      } else {
        if (a.sa0 != nullptr) sa0 = static_cast<const uint8_t*>(a.sa0)[at];
        if (a.sa1 != nullptr) sa1 = static_cast<const uint8_t*>(a.sa1)[at];
      }
      narrow(faulty_value<C>(widen(in.v[i]), scale, inverse, zero, a.bits, sa0, sa1), out.v + i);
    }
    store_vector<T, V>(out, static_cast<T*>(a.y) + e);
  }
}

template <typename T, int V>
void launch_inject(const InjectFaultsArgs& a, cudaStream_t stream) {
  const int64_t blocks = grid_blocks(ceil_div(a.numel, int64_t{kThreads} * V), kBlocksPerSm);
  if (a.numel < (int64_t{1} << 31))
    RK_LAUNCH((inject_faults_kernel<T, V, uint32_t>), blocks, kThreads, 0, stream, a);
  else
    RK_LAUNCH((inject_faults_kernel<T, V, int64_t>), blocks, kThreads, 0, stream, a);
}

template <typename M>
void launch_masks(const StuckAtMasksArgs& a, cudaStream_t stream) {
  RK_LAUNCH((stuck_at_masks_kernel<M>),
            grid_blocks(ceil_div(a.numel, int64_t{kThreads}), kBlocksPerSm), kThreads, 0, stream,
            a);
}

}  // namespace

void stuck_at(const StuckAtArgs& a, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const bool aligned =
      is_aligned(a.code) && is_aligned(a.sa0) && is_aligned(a.sa1) && is_aligned(a.out);
  const int64_t work = aligned ? ceil_div(a.bytes, int64_t{kVectorBytes}) : a.bytes;
  RK_LAUNCH(stuck_at_kernel, grid_blocks(ceil_div(work, int64_t{kThreads}), kBlocksPerSm), kThreads,
            0, stream, a, aligned);
}

void stuck_at_masks(const StuckAtMasksArgs& a, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  switch (a.itemsize) {
    case 1:
      return launch_masks<uint8_t>(a, stream);
    case 2:
      return launch_masks<uint16_t>(a, stream);
    case 4:
      return launch_masks<uint32_t>(a, stream);
    default:
      return launch_masks<uint64_t>(a, stream);
  }
}

void inject_faults(const InjectFaultsArgs& a, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = kLanesOf<T>;
    const int64_t run = a.channels == 1 ? a.numel : a.inner;
    if (run % V == 0 && is_aligned(a.w) && is_aligned(a.y))
      launch_inject<T, V>(a, stream);
    else
      launch_inject<T, 1>(a, stream);
  });
}

}  // namespace regkern::cuda
