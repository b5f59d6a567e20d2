#include "core/vector.cuh"
#include "masks/patch_gather.h"

namespace regkern::cuda {
namespace {

using namespace masks;

constexpr int kThreads = 256;
constexpr int kInFlight = 4;

// A row is `units` of T, for a group of 2^shift neighbouring threads.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    patch_copy_kernel(const __grid_constant__ PatchCopyArgs args, int64_t units, int shift) {
  const int64_t groups = (static_cast<int64_t>(gridDim.x) * kThreads) >> shift;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t lane = thread & ((int64_t{1} << shift) - 1), step = int64_t{1} << shift;
  const int64_t all = args.batch * args.rows;
  for (int64_t at = thread >> shift; at < all; at += groups) {
    const int64_t id = args.ids[at];
    const T* from = nullptr;
    if (id >= 0 && id < args.count)
      from = reinterpret_cast<const T*>(static_cast<const char*>(args.x) +
                                        at / args.rows * args.x_sample + id * args.x_row);
    else if (id >= args.count)
      from = static_cast<const T*>(args.fill);
    T* const to = reinterpret_cast<T*>(static_cast<char*>(args.y) + at * args.bytes);
    int64_t u = lane;
    for (; u + (kInFlight - 1) * step < units; u += kInFlight * step) {
      T v[kInFlight] = {};
      if (from != nullptr) {
#pragma unroll
        for (int k = 0; k < kInFlight; ++k) v[k] = from[u + k * step];
      }
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) to[u + k * step] = v[k];
    }
    for (; u < units; u += step) {
      T v{};
      if (from != nullptr) v = from[u];
      to[u] = v;
    }
  }
}

__global__ void __launch_bounds__(kThreads, 8)
    patch_inverse_kernel(const __grid_constant__ PatchInverseArgs args) {
  for (int64_t b = blockIdx.x; b < args.batch; b += gridDim.x) {
    const int64_t* const ids = args.ids + b * args.rows;
    int64_t* const inverse = args.inverse + b * args.count;
    for (int64_t i = threadIdx.x; i < args.count; i += kThreads) inverse[i] = -1;
    __syncthreads();
    for (int64_t j = threadIdx.x; j < args.rows; j += kThreads)
      if (ids[j] >= 0 && ids[j] < args.count) inverse[ids[j]] = j;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 8)
    patch_fill_chunks_kernel(const __grid_constant__ PatchFillSumArgs args, int64_t tiles,
                             int64_t chunks) {
  using C = compute_t<T>;
  for (int64_t t = blockIdx.x; t < tiles * chunks; t += gridDim.x) {
    const int64_t chunk = t / tiles, column = (t - chunk * tiles) * kThreads + threadIdx.x;
    if (column >= args.columns) continue;
    const int64_t end = (chunk + 1) * kFillRows, last = end < args.rows ? end : args.rows;
    C sum = C(0);
#pragma unroll 4
    for (int64_t row = chunk * kFillRows; row < last; ++row)
      if (args.ids[row] >= args.count)
        sum += widen(static_cast<const T*>(args.g)[row * args.columns + column]);
    args.chunks[chunk * args.columns + column] = static_cast<double>(sum);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 8)
    patch_fill_total_kernel(const __grid_constant__ PatchFillSumArgs args, int64_t chunks) {
  using C = compute_t<T>;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; c < args.columns;
       c += stride) {
    double sum = 0.0;
#pragma unroll 4
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += args.chunks[chunk * args.columns + c];
    narrow(static_cast<C>(sum), static_cast<T*>(args.sum) + c);
  }
}

// The widest unit that rows, their strides and all pointers are multiples of.
template <typename T>
bool fits(const PatchCopyArgs& args) {
  const auto at = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  const auto sizes = static_cast<std::uintptr_t>(args.bytes | args.x_sample | args.x_row);
  return ((sizes | at(args.x) | at(args.y) | at(args.fill)) % sizeof(T)) == 0;
}

template <typename T>
void launch_copy(const PatchCopyArgs& args, cudaStream_t stream) {
  const int64_t units = args.bytes / static_cast<int64_t>(sizeof(T));
  int shift = 0;
  while (shift < 5 && (int64_t{1} << shift) < units) ++shift;
  const int64_t work = ceil_div(args.batch * args.rows, int64_t{kThreads >> shift});
  RK_LAUNCH((patch_copy_kernel<T>), grid_blocks(work, 8), kThreads, 0, stream, args, units, shift);
}

}  // namespace

void patch_copy(const PatchCopyArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.batch * args.rows * args.bytes == 0) return;
  if (fits<uint4>(args)) return launch_copy<uint4>(args, stream);
  if (fits<uint32_t>(args)) return launch_copy<uint32_t>(args, stream);
  launch_copy<uint16_t>(args, stream);
}

void patch_inverse(const PatchInverseArgs& args, Context context) {
  if (args.batch == 0) return;
  RK_LAUNCH(patch_inverse_kernel, grid_blocks(args.batch, 8), kThreads, 0,
            static_cast<cudaStream_t>(context.stream), args);
}

void patch_fill_sum(const PatchFillSumArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.columns == 0) return;
  const int64_t tiles = ceil_div(args.columns, int64_t{kThreads});
  const int64_t chunks = ceil_div(args.rows, kFillRows);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (chunks > 0)
      RK_LAUNCH((patch_fill_chunks_kernel<T>), grid_blocks(tiles * chunks, 8), kThreads, 0, stream,
                args, tiles, chunks);
    RK_LAUNCH((patch_fill_total_kernel<T>), grid_blocks(tiles, 8), kThreads, 0, stream, args,
              chunks);
  });
}

}  // namespace regkern::cuda
