#include "core/launch.cuh"
#include "transport/quantile_cost.h"

namespace regkern::cuda {
namespace {

using namespace transport;

constexpr int kThreads = 256, kBlocksPerSm = 8;

// A thread has an element of x at a time.
__global__ void __launch_bounds__(kThreads) quantile_cost_kernel(QuantileCostArgs args) {
  const int64_t count = args.rows * args.n, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < count; e += step)
    quantile_element(args, e / args.n, e % args.n);
}

}  // namespace

void quantile_cost(const QuantileCostArgs& args, Context context) {
  if (args.rows * args.n == 0) return;
  const int64_t blocks = ceil_div(args.rows * args.n, int64_t{kThreads});
  RK_LAUNCH(quantile_cost_kernel, grid_blocks(blocks, kBlocksPerSm), kThreads, 0,
            static_cast<cudaStream_t>(context.stream), args);
}

}  // namespace regkern::cuda
