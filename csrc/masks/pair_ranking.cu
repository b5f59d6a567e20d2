#include "core/vector.cuh"
#include "masks/pair_ranking.h"

namespace regkern::cuda {
namespace {

using namespace masks;

constexpr int kThreads = 256, kWarps = kThreads / 32;
static_assert(kPairLanes == 32);

__device__ __forceinline__ double folded(double value) {
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}

// A row of a sample for a warp.
template <typename C, bool kCurve>
__global__ void __launch_bounds__(kThreads, 4)
    pair_rows_kernel(const __grid_constant__ PairRankingArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t n = args.n, all = args.batch * n;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; at < all;
       at += warps) {
    const int64_t base = at / n * n;
    const C* const p = static_cast<const C*>(args.predicted) + base;
    const C* const t = static_cast<const C*>(args.target) + base;
    const C* const v = static_cast<const C*>(args.direction) + (kCurve ? base : 0);
    const uint8_t* const mask = args.mask == nullptr ? nullptr : args.mask + base;
    const int64_t i = at - base;
    const bool there = mask == nullptr || mask[i] != 0;
    const C p_i = p[i], t_i = t[i], v_i = kCurve ? v[i] : C(0);
    C loss = C(0), sum = C(0);
    int64_t pairs = 0;
    for (int64_t j = lane; there && j < n; j += kPairLanes) {
      const C t_j = t[j];
      if ((mask != nullptr && mask[j] == 0) || t_i == t_j) continue;
      const C z = pair_gap(p_i, p[j], t_i, t_j);
      const C e = regkern::exp(-regkern::fabs(z));
      if constexpr (kCurve) {
        sum += pair_curve(e) * (v_i - v[j]);
      } else {
        loss += pair_loss(z, e);
        const C s = pair_sigmoid(z, e);
        sum += t_i > t_j ? -s : s;
        ++pairs;
      }
    }
    const double slope = folded(static_cast<double>(sum));
    if (lane == 0) static_cast<C*>(args.out)[at] = static_cast<C>(slope);
    if constexpr (!kCurve) {
      const double row = folded(static_cast<double>(loss));
      pairs = warp_sum(pairs);
      if (lane == 0) {
        args.row_losses[at] = row;
        if (pairs > 0)
          atomicAdd(reinterpret_cast<unsigned long long*>(args.pairs + at / n),
                    static_cast<unsigned long long>(pairs));
      }
    }
  }
}

// A sample for a warp.
__global__ void __launch_bounds__(kThreads, 4)
    pair_losses_kernel(const __grid_constant__ PairRankingArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; b < args.batch;
       b += warps) {
    double sum = 0.0;
    for (int64_t i = lane; i < args.n; i += kPairLanes) sum += args.row_losses[b * args.n + i];
    sum = folded(sum);
    if (lane == 0) args.losses[b] = sum;
  }
}

template <typename C>
void launch_ranking(const PairRankingArgs& args, cudaStream_t stream) {
  const int64_t work = ceil_div(args.batch * args.n, int64_t{kWarps});
  if (args.direction != nullptr) {
    if (work > 0)
      RK_LAUNCH((pair_rows_kernel<C, true>), grid_blocks(work, 8), kThreads, 0, stream, args);
    return;
  }
  zero_async(args.pairs, static_cast<std::size_t>(args.batch) * sizeof(int64_t), stream);
  if (work > 0)
    RK_LAUNCH((pair_rows_kernel<C, false>), grid_blocks(work, 8), kThreads, 0, stream, args);
  RK_LAUNCH(pair_losses_kernel, grid_blocks(ceil_div(args.batch, int64_t{kWarps}), 8), kThreads, 0,
            stream, args);
}

}  // namespace

void pair_ranking(const PairRankingArgs& args, Context context) {
  if (args.batch == 0) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.dtype == Dtype::float64)
    launch_ranking<double>(args, stream);
  else
    launch_ranking<float>(args, stream);
}

}  // namespace regkern::cuda
