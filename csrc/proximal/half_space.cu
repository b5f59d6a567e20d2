#include "core/square_sum.cuh"
#include "core/tensor_list.cuh"
#include "proximal/half_space.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

constexpr int kV = 4;

// A block for a group, or for many of one element.
template <typename T>
__global__ void __launch_bounds__(kLaneThreads<kV>)
    half_space_kernel(const __grid_constant__ ListChunk<HalfSpaceRow> chunk, int tiles,
                      double eps) {
  RK_SHARED(double, shared, kLanes);
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const HalfSpaceRow& row = chunk.rows[place.row];
    const int64_t from = place.tile * kListTile, to = from + kListTile;
    if (row.run == 1) {
      // A vector's elements are groups of their own: a thread for each.
      for (int64_t i = from + threadIdx.x; i < to && i < row.numel; i += blockDim.x) {
        T* const x = static_cast<T*>(row.x) + i;
        const auto b = static_cast<double>(widen(static_cast<const T*>(row.old)[i]));
        if (leaves_half_space(static_cast<double>(widen(*x)) * b, b * b, eps)) *x = T{};
      }
      continue;
    }
    const int64_t end = ceil_div(to < row.numel ? to : row.numel, row.run);
    for (int64_t group = ceil_div(from, row.run); group < end; ++group) {
      T* const x = static_cast<T*>(row.x) + group * row.run;
      const T* const old = static_cast<const T*>(row.old) + group * row.run;
      double product = 0.0, squares = 0.0;
      for (int64_t begin = 0; begin < row.run; begin += kSegment) {
        const int64_t left = row.run - begin, n = left < kSegment ? left : kSegment;
        double products[kV] = {}, olds[kV] = {};
        for (int64_t i = static_cast<int64_t>(threadIdx.x) * kV; i < n; i += kLanes) {
#pragma unroll
          for (int v = 0; v < kV; ++v) {
            if (i + v >= n) continue;
            const auto b = static_cast<double>(widen(old[begin + i + v]));
            products[v] += static_cast<double>(widen(x[begin + i + v])) * b;
            olds[v] += b * b;
          }
        }
        product += fold_block<double, kV>(products, shared);
        squares += fold_block<double, kV>(olds, shared);
      }
      if (!leaves_half_space(product, squares, eps)) continue;
      for (int64_t i = threadIdx.x; i < row.run; i += blockDim.x) x[i] = T{};
    }
  }
}

}  // namespace

void half_space(const HalfSpaceArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_chunk(args.rows, args.count,
                   [&](const ListChunk<HalfSpaceRow>& chunk, int64_t, int64_t tiles) {
                     RK_LAUNCH((half_space_kernel<T>), grid_blocks(tiles, 8), kLaneThreads<kV>, 0,
                               stream, chunk, static_cast<int>(tiles), args.eps);
                   });
  });
}

}  // namespace regkern::cuda
