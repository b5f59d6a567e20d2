#include "core/tensor_list.cuh"
#include "masks/prefix.h"

namespace regkern::cuda {
namespace {

using namespace masks;

template <typename T>
__global__ void __launch_bounds__(kListThreads, 4)
    prefix_kernel(const __grid_constant__ PrefixArgs args, int64_t tiles) {
  const T* const x = static_cast<const T*>(args.x);
  T* const y = static_cast<T*>(args.y);
  const int64_t row = args.size * args.inner, numel = args.outer * row;
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t e = t * kListTile + mine, left = numel - e;
    if (left <= 0) continue;
    T v[kListLanes];
    load_lanes(x + e, left, aligned_for_vectors(x), v);
    int64_t o = e / row, within = e - o * row, kept = prefix_elements(args, o);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      if (i > 0 && i < left && ++within == row) {
        within = 0;
        kept = prefix_elements(args, ++o);
      }
      if (within >= kept) narrow(widen(v[i]) * compute_t<T>(0), v + i);
    }
    store_lanes(v, left, aligned_for_vectors(y), y + e);
  }
}

__global__ void __launch_bounds__(kListThreads, 4)
    uniform_kernel(const __grid_constant__ UniformArgs args) {
  const Seed seed = load_seed(args.seed);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kListThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kListThreads + threadIdx.x; i < args.numel;
       i += step)
    args.u[i] = uniform_of(seed, i);
}

}  // namespace

void prefix(const PrefixArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t tiles = ceil_div(args.outer * args.size * args.inner, kListTile);
  if (tiles == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((prefix_kernel<decltype(zero)>), grid_blocks(tiles, 8), kListThreads, 0, stream, args,
              tiles);
  });
}

void uniform(const UniformArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t tiles = ceil_div(args.numel, int64_t{kListThreads});
  if (tiles > 0) RK_LAUNCH(uniform_kernel, grid_blocks(tiles, 8), kListThreads, 0, stream, args);
}

}  // namespace regkern::cuda
