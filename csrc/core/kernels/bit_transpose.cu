#include "core/kernels/bit_transpose.h"
#include "core/vector.cuh"

namespace regkern::cuda {
namespace {

constexpr int kThreads = 256;

// A warp transposes a tile of 32 x 32 bits: lane i holds row i, and after swapping halves,
// quarters, …, single bits with its neighbours, column i.
__device__ uint32_t transpose32(uint32_t row, int lane) {
  uint32_t mask = 0x0000FFFFu;
#pragma unroll
  for (int width = 16; width > 0; width >>= 1, mask ^= mask << width) {
    const uint32_t theirs = __shfl_xor_sync(kWholeWarp, row, width);
    row = (lane & width) != 0 ? (row & ~mask) | (theirs >> width & mask)
                              : (row & mask) | (theirs & mask) << width;
  }
  return row;
}

__global__ void __launch_bounds__(kThreads) bit_transpose_kernel(BitTransposeArgs args) {
  const int64_t rows = args.rows, cols = args.cols;
  const int64_t words = bit_words(args.batch * rows * cols);
  const int64_t across = ceil_div(cols, int64_t{32}), down = ceil_div(rows, int64_t{32});
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       tile < args.batch * across * down; tile += stride) {
    const int64_t b = tile / (across * down), within = tile - b * (across * down);
    const int64_t r = within / across * 32, c = within % across * 32;
    uint32_t row = 0;
    if (r + lane < rows)
      row = load_bits(args.in, words, (b * rows + r + lane) * cols + c) & low_bits(cols - c);
    const uint32_t column = transpose32(row, lane);
    if (c + lane >= cols) continue;
    const int64_t bit = (b * cols + c + lane) * rows + r;
    uint32_t* out = args.out + (bit >> 5);
    if (rows % 32 == 0) {
      *out = column;
      continue;
    }
    const int shift = static_cast<int>(bit & 31);
    atomicOr(out, column << shift);
    // The bits past the last row are zero: where there is no next word, nothing is left for it.
    if (shift != 0 && column >> (32 - shift) != 0) atomicOr(out + 1, column >> (32 - shift));
  }
}

}  // namespace

void bit_transpose(const BitTransposeArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t bits = args.batch * args.rows * args.cols;
  if (bits == 0) return;
  if (args.rows % 32 != 0)
    zero_async(args.out, static_cast<size_t>(bit_words(bits)) * sizeof(uint32_t), stream);
  const int64_t tiles =
      args.batch * ceil_div(args.rows, int64_t{32}) * ceil_div(args.cols, int64_t{32});
  RK_LAUNCH(bit_transpose_kernel, grid_blocks(ceil_div(tiles, int64_t{kThreads / 32}), 8), kThreads,
            0, stream, args);
}

}  // namespace regkern::cuda
