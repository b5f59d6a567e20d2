#include "transport/block_team.cuh"
#include "transport/partial.h"

namespace regkern::cuda {
namespace {

using namespace transport;

constexpr int kBlocksPerSm = 16;

// A block has a problem.
__global__ void __launch_bounds__(kPartialLanes, 8) transport_partial_kernel(PartialArgs args) {
  RK_SHARED(double, space, kPartialLanes);
  BlockTeam<kPartialLanes> team{space};
  for (int64_t p = blockIdx.x; p < args.batch; p += gridDim.x) {
    partial_half_step(team, args, p);
    __syncthreads();
  }
}

}  // namespace

void transport_partial(const PartialArgs& args, Context context) {
  if (args.batch == 0) return;
  RK_LAUNCH(transport_partial_kernel, grid_blocks(args.batch, kBlocksPerSm), kPartialLanes, 0,
            static_cast<cudaStream_t>(context.stream), args);
}

}  // namespace regkern::cuda
