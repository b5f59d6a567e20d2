#include "proximal/row_gradient.h"
#include "proximal/team.cuh"

namespace regkern::cuda {
namespace {

using namespace proximal;

// A warp has a slice, its lanes the sums that the CPU keeps in 32 lanes.
template <typename T>
__global__ void __launch_bounds__(kTeamThreads) row_gradient_kernel(RowGradientArgs args) {
  using C = compute_t<T>;
  const Slices& slices = args.slices;
  const int lane = team_lane<32>();
  const int64_t n = slice_size(slices), count = slice_count(slices);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTeamWarps;
  const C* w = static_cast<const C*>(args.weights);
  for (int64_t slice = static_cast<int64_t>(blockIdx.x) * kTeamWarps + threadIdx.x / 32;
       slice < count; slice += step) {
    const int64_t start = slice_start(slices, slice);
    const T* g = static_cast<const T*>(args.g) + start;
    const T* reference = static_cast<const T*>(args.reference) + start;
    T* dx = static_cast<T*>(args.dx) + start;
    const C theta = static_cast<const C*>(args.theta)[slice];
    const double t = args.t[slice * args.t_stride];
    const double gt = args.gt != nullptr ? args.gt[slice] : 0.0;
    GradientSums sums{0.0, 0.0, 0.0};
    for (int64_t k = lane; k < n; k += 32) {
      const int64_t at = slice_offset(slices, k);
      const C ref = widen(reference[at]);
      const double s = participation(args.law, ref, w != nullptr ? w[k] : C(1), theta, args.cap);
      add_term(args.law, ref, s, static_cast<double>(widen(g[at])), &sums);
    }
    sums = {lane_sum(sums.along), lane_sum(sums.squares), lane_sum(sums.size)};
    const GradientPlan plan = plan_gradient(args.law, sums, theta, t);
    if (lane == 0) args.dt[slice] = plan.dt;
    for (int64_t k = lane; k < n; k += 32) {
      const int64_t at = slice_offset(slices, k);
      const double s = participation(args.law, C(widen(reference[at])), w != nullptr ? w[k] : C(1),
                                     theta, args.cap);
      const double d =
          gradient_element(args.law, plan, s, static_cast<double>(widen(g[at])), gt, t);
      narrow(static_cast<C>(d), dx + at);
    }
  }
}

}  // namespace

void row_gradient(const RowGradientArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t work = ceil_div(slice_count(args.slices), int64_t{kTeamWarps});
  if (work == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((row_gradient_kernel<decltype(zero)>), grid_blocks(work, 16), kTeamThreads, 0, stream,
              args);
  });
}

}  // namespace regkern::cuda
