#include "core/launch.cuh"
#include "proximal/total_variation.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

constexpr int kThreads = 64;

// A thread has a slice.
template <typename T>
__global__ void __launch_bounds__(kThreads) total_variation_kernel(TotalVariationArgs args) {
  const Slices& s = args.slices;
  const int64_t n = slice_size(s), count = slice_count(s);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    total_variation_line(line_of(static_cast<const T*>(args.x), s, i), n,
                         args.lam[i * args.lam_stride], line_of(static_cast<T*>(args.y), s, i),
                         line_of(args.jump, s, i));
  }
}

}  // namespace

void total_variation(const TotalVariationArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t work = ceil_div(slice_count(args.slices), int64_t{kThreads});
  if (work == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((total_variation_kernel<decltype(zero)>), grid_blocks(work, 32), kThreads, 0, stream,
              args);
  });
}

}  // namespace regkern::cuda
