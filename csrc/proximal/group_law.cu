#include "proximal/group_lanes.cuh"
#include "proximal/group_law.h"

namespace regkern::cuda {
namespace {

constexpr int kThreads = 256;
// Left to itself, the compiler aims at five blocks a multiprocessor and spills.
constexpr int kBlocks = 4;

template <Law kLaw, typename C>
__global__ void __launch_bounds__(kThreads, kBlocks)
    group_law_kernel(const __grid_constant__ ListChunk<GroupRow> chunk, GroupLawArgs args,
                     int tiles) {
  const double step = static_cast<double>(*static_cast<const C*>(args.step));
  const double lam = static_cast<double>(*static_cast<const C*>(args.lam));
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const GroupRow& row = chunk.rows[place.row];
    const int64_t slice = place.tile * kThreads + threadIdx.x, g = row.slice + slice;
    bool zero = false;
    if (slice < row.slices) {
      const double weight = args.weights != nullptr ? row.weight * args.weights[g] : row.weight;
      const double s = sqrt(args.sums[g]);
      const GroupShrunk out = shrink_group<kLaw>(s, step * weight, lam, args.shape);
      static_cast<C*>(args.factors)[g] = static_cast<C>(out.factor);
      static_cast<C*>(args.norms)[g] = static_cast<C>(out.norm);
      if (args.before != nullptr) args.before[g] = s;
      zero = out.norm == 0.0;
    }
    count_zeros(zero, args.zeros);
  }
}

template <Law kLaw, typename C>
__global__ void __launch_bounds__(kThreads) group_slopes_kernel(GroupSlopesArgs args) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; g < args.groups;
       g += stride)
    slopes_of<kLaw, C>(args, g);
}

template <Law kLaw, typename C>
__global__ void __launch_bounds__(kThreads) group_penalty_kernel(GroupPenaltyArgs args) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; g < args.groups;
       g += stride)
    penalty_of<kLaw, C>(args, g);
}

int64_t blocks_for(int64_t groups) { return grid_blocks(ceil_div(groups, int64_t{kThreads}), 8); }

}  // namespace

void group_law(const GroupLawArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_compute(args.dtype, [&](auto zero) {
    dispatch_law(args.law, [&](auto law) {
      for_each_group_chunk(
          args.rows, args.count,
          [](const GroupRow& row) { return ceil_div(row.slices, int64_t{kThreads}); },
          [&](const ListChunk<GroupRow>& chunk, int64_t tiles) {
            RK_LAUNCH((group_law_kernel<decltype(law)::value, decltype(zero)>),
                      grid_blocks(tiles, 8), kThreads, 0, stream, chunk, args,
                      static_cast<int>(tiles));
          });
    });
  });
}

void group_slopes(const GroupSlopesArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_compute(args.compute, [&](auto zero) {
    dispatch_law(args.law, [&](auto law) {
      RK_LAUNCH((group_slopes_kernel<decltype(law)::value, decltype(zero)>),
                blocks_for(args.groups), kThreads, 0, stream, args);
    });
  });
}

void group_penalty(const GroupPenaltyArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_compute(args.compute, [&](auto zero) {
    dispatch_law(args.law, [&](auto law) {
      RK_LAUNCH((group_penalty_kernel<decltype(law)::value, decltype(zero)>),
                blocks_for(args.groups), kThreads, 0, stream, args);
    });
  });
}

}  // namespace regkern::cuda
