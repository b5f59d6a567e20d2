#include "core/launch.cuh"
#include "masks/draw.h"

namespace regkern::cuda {
namespace {

using namespace masks;

constexpr int kThreads = 64;  // a draw is long and a batch short: spread it over multiprocessors
constexpr int kRankThreads = 256;

bool is_random(Pairing pairing) { return pairing == Pairing::perm || pairing == Pairing::derange; }

__global__ void __launch_bounds__(kThreads, 8) mix_params_kernel(MixParamsArgs args) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < args.batch;
       b += stride)
    draw_mix(args, b);
}

// Random partners take two kernels more.
__global__ void __launch_bounds__(kThreads) pairing_kernel(MixParamsArgs args, bool random) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < args.batch;
       b += stride) {
    if (random)
      args.keys[b] = pairing_key(args, b);
    else
      args.partner[b] = fixed_partner(args.pairing, b, args.batch);
  }
}

// The rank of a sample is the number of smaller keys; of equal keys, the earlier one is smaller.
__global__ void __launch_bounds__(kRankThreads) rank_kernel(MixParamsArgs args) {
  RK_SHARED(uint64_t, keys, kRankThreads);
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kRankThreads; base < args.batch;
       base += static_cast<int64_t>(gridDim.x) * kRankThreads) {
    const int64_t b = base + threadIdx.x;
    const uint64_t key = b < args.batch ? args.keys[b] : 0;
    int64_t rank = 0;
    for (int64_t from = 0; from < args.batch; from += kRankThreads) {
      const int64_t left = args.batch - from;
      const int count = static_cast<int>(left < kRankThreads ? left : kRankThreads);
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < count) keys[threadIdx.x] = args.keys[from + threadIdx.x];
      __syncthreads();
      for (int i = 0; i < count; ++i)
        rank += keys[i] < key || (keys[i] == key && from + i < b) ? 1 : 0;
    }
    if (b < args.batch) args.order[rank] = b;
  }
}

__global__ void __launch_bounds__(kRankThreads) partner_kernel(MixParamsArgs args) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kRankThreads;
  for (int64_t rank = static_cast<int64_t>(blockIdx.x) * kRankThreads + threadIdx.x;
       rank < args.batch; rank += stride)
    store_partner(args, rank);
}

__global__ void __launch_bounds__(kThreads) erase_params_kernel(EraseParamsArgs args) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < args.batch;
       b += stride)
    draw_erase(args, b);
}

}  // namespace

void mix_params(const MixParamsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.batch == 0) return;
  const bool random = is_random(args.pairing);
  const int64_t draws = grid_blocks(ceil_div(args.batch, int64_t{kThreads}), 16);
  RK_LAUNCH(mix_params_kernel, draws, kThreads, 0, stream, args);
  RK_LAUNCH(pairing_kernel, draws, kThreads, 0, stream, args, random);
  if (!random) return;
  const int64_t blocks = grid_blocks(ceil_div(args.batch, int64_t{kRankThreads}), 8);
  RK_LAUNCH(rank_kernel, blocks, kRankThreads, 0, stream, args);
  RK_LAUNCH(partner_kernel, blocks, kRankThreads, 0, stream, args);
}

void erase_params(const EraseParamsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.batch == 0) return;
  RK_LAUNCH(erase_params_kernel, grid_blocks(ceil_div(args.batch, int64_t{kThreads}), 16), kThreads,
            0, stream, args);
}

}  // namespace regkern::cuda
