#include "transport/sliced.h"

#include "core/launch.cuh"

namespace regkern::cuda {
namespace {

using namespace transport;

// A block has a slice, a thread a lane.
template <typename T>
__global__ void __launch_bounds__(kSliceLanes, 4) sliced_cost_kernel(SlicedArgs args) {
  RK_SHARED(double, lanes, kSliceLanes);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t slice = blockIdx.x; slice < args.slices; slice += gridDim.x) {
    double sum = 0.0;
    for (int64_t i = thread; i < args.rows; i += kSliceLanes)
      sum += slice_term<T>(args, slice, i);
    lanes[thread] = sum;
    __syncthreads();
    for (int half = kSliceLanes / 2; half > 0; half /= 2) {
      if (thread < half) lanes[thread] += lanes[thread + half];
      __syncthreads();
    }
    if (thread == 0) static_cast<T*>(args.cost)[slice] = static_cast<T>(lanes[0] * mass_unit(args));
    __syncthreads();
  }
}

// A thread has an element of x, or of y.
template <typename T>
__global__ void __launch_bounds__(kSliceLanes, 4) sliced_slopes_kernel(SlicedSlopesArgs args) {
  const SlicedArgs& lines = args.lines;
  const int64_t n = lines.rows, m = lines.columns, all = lines.slices * (n + m);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kSliceLanes;
  const double unit = mass_unit(lines);
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kSliceLanes + threadIdx.x; e < all;
       e += step) {
    const int64_t slice = e / (n + m), i = e % (n + m);
    const double g = static_cast<double>(static_cast<const T*>(args.g)[slice]) * unit;
    if (i < n) {
      const T slope = static_cast<T>(g * slice_slope<true, T>(lines, slice, i));
      static_cast<T*>(args.dx)[slice * n + args.order_x[slice * n + i]] = slope;
    } else {
      const T slope = static_cast<T>(g * slice_slope<false, T>(lines, slice, i - n));
      static_cast<T*>(args.dy)[slice * m + args.order_y[slice * m + i - n]] = slope;
    }
  }
}

int64_t blocks_of(int64_t blocks) { return blocks < 65536 ? blocks : 65536; }

}  // namespace

void sliced_cost(const SlicedArgs& args, Context context) {
  if (args.slices == 0) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t blocks = blocks_of(args.slices);
  if (args.dtype == Dtype::float64)
    RK_LAUNCH((sliced_cost_kernel<double>), blocks, kSliceLanes, 0, stream, args);
  else
    RK_LAUNCH((sliced_cost_kernel<float>), blocks, kSliceLanes, 0, stream, args);
}

void sliced_slopes(const SlicedSlopesArgs& args, Context context) {
  const int64_t all = args.lines.slices * (args.lines.rows + args.lines.columns);
  if (all == 0) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t blocks = blocks_of(ceil_div(all, int64_t{kSliceLanes}));
  if (args.lines.dtype == Dtype::float64)
    RK_LAUNCH((sliced_slopes_kernel<double>), blocks, kSliceLanes, 0, stream, args);
  else
    RK_LAUNCH((sliced_slopes_kernel<float>), blocks, kSliceLanes, 0, stream, args);
}

}  // namespace regkern::cuda
