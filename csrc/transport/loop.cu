#include "core/launch.cuh"
#include "core/list_sums.cuh"
#include "transport/loop.h"

namespace regkern::cuda {
namespace {

using namespace transport;

constexpr int kThreads = kTotalLanes;

// A block, a lane for each thread.
struct Block {
  double* shared;

  template <typename F>
  __device__ __forceinline__ double sum(int64_t n, F f) {
    double lane = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) lane += f(i);
    return block_sum(lane, shared);
  }
  template <typename F>
  __device__ __forceinline__ void each(int64_t n, F f) {
    for (int64_t i = threadIdx.x; i < n; i += kThreads) f(i);
    __syncthreads();
  }
  template <typename F>
  __device__ __forceinline__ void once(F f) {
    if (threadIdx.x == 0) f();
    __syncthreads();
  }
};

__global__ void __launch_bounds__(kThreads, 4) transport_relax_kernel(RelaxArgs args) {
  const int64_t all = args.batch * args.size;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < all; i += step) {
    const int64_t p = i / args.size;
    if (args.done[p] != 0) continue;
    args.next[i] =
        relaxed(args.old[i], args.raw[i], damping_of(args.rho[p], args.eps[p]), args.omega[p]);
  }
}

__global__ void __launch_bounds__(kThreads, 2) transport_step_kernel(StepArgs args) {
  RK_SHARED(double, shared, kThreads);
  Block block{shared};
  for (int64_t p = blockIdx.x; p < args.batch; p += gridDim.x) step(block, args, p);
}

__global__ void __launch_bounds__(kThreads, 2) transport_end_kernel(EndArgs args) {
  RK_SHARED(double, shared, kThreads);
  Block block{shared};
  for (int64_t p = blockIdx.x; p < args.batch; p += gridDim.x) finish(block, args, p);
}

}  // namespace

void transport_relax(const RelaxArgs& args, Context context) {
  const int64_t all = args.batch * args.size;
  if (all == 0) return;
  RK_LAUNCH((transport_relax_kernel), grid_blocks(ceil_div(all, int64_t{kThreads}), 8), kThreads, 0,
            static_cast<cudaStream_t>(context.stream), args);
}

void transport_step(const StepArgs& args, Context context) {
  if (args.batch == 0) return;
  RK_LAUNCH((transport_step_kernel), grid_blocks(args.batch, 8), kThreads, 0,
            static_cast<cudaStream_t>(context.stream), args);
}

void transport_end(const EndArgs& args, Context context) {
  if (args.batch == 0) return;
  RK_LAUNCH((transport_end_kernel), grid_blocks(args.batch, 8), kThreads, 0,
            static_cast<cudaStream_t>(context.stream), args);
}

}  // namespace regkern::cuda
