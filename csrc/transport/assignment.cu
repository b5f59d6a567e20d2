#include "transport/assignment.h"
#include "transport/block_team.cuh"

namespace regkern::cuda {
namespace {

using namespace transport;

constexpr int kBlocksPerSm = 16;

// A block has a problem.
template <typename T>
__global__ void __launch_bounds__(kAssignmentLanes) assignment_kernel(AssignmentArgs args) {
  RK_SHARED(double, space, kAssignmentLanes);
  BlockTeam<kAssignmentLanes> team{space};
  for (int64_t problem = blockIdx.x; problem < args.batch; problem += gridDim.x)
    assign_problem<T>(team, args, problem);
}

}  // namespace

void assignment(const AssignmentArgs& args, Context context) {
  if (args.batch == 0) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((assignment_kernel<decltype(zero)>), grid_blocks(args.batch, kBlocksPerSm),
              kAssignmentLanes, 0, stream, args);
  });
}

}  // namespace regkern::cuda
