#include "core/launch.cuh"
#include "masks/beta_noise.h"

namespace regkern::cuda {
namespace {

constexpr int kThreads = 64;  // a draw is long and a grid coarse: spread it over multiprocessors

__global__ void __launch_bounds__(kThreads, 8) beta_noise_kernel(masks::BetaNoiseArgs args) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < args.numel;
       i += stride)
    args.out[i] = masks::beta_noise_of(args, i);
}

}  // namespace

void beta_noise(const masks::BetaNoiseArgs& args, Context context) {
  if (args.numel == 0) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  RK_LAUNCH(beta_noise_kernel, grid_blocks(ceil_div(args.numel, int64_t{kThreads}), 16), kThreads,
            0, stream, args);
}

}  // namespace regkern::cuda
