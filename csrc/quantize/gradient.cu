#include "quantize/gradient.h"
#include "quantize/lanes.cuh"

namespace regkern::cuda {
namespace {

using namespace quantize;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
static_assert(kLanes == 32);

// The lanes of a warp added in halves, as lane_sum() does on the CPU; in lane 0.
__device__ __forceinline__ double lane_sum(double value) {
#pragma unroll
  for (int half = 16; half > 0; half /= 2) value += __shfl_xor_sync(kWholeWarp, value, half);
  return value;
}

// given_scale() with the inverses that stand in memory.
template <typename C>
__device__ __forceinline__ Scale<C> tabled_scale(const ScaleOptions& o, int64_t block) {
  return {static_cast<const C*>(o.scale)[block], static_cast<const C*>(o.inverse)[block],
          o.zero_point != nullptr ? static_cast<const C*>(o.zero_point)[block] : C(0)};
}

template <typename T>
__device__ __forceinline__ Gradients<compute_t<T>> differentiate(const GradientArgs& args,
                                                                 int64_t e,
                                                                 const Scale<compute_t<T>>& s,
                                                                 Seed seed) {
  using C = compute_t<T>;
  const Rounder& r = args.rounder;
  C threshold = fixed_threshold<C>(r.rounding);
  if (args.seed != nullptr) {
    const auto at = static_cast<uint64_t>(e);
    const uint32_t bits = r.random_bits == 16  ? random_bits<16>(seed, Stream::rounding, at)
                          : r.random_bits == 8 ? random_bits<8>(seed, Stream::rounding, at)
                                               : random_bits<32>(seed, Stream::rounding, at);
    threshold = stochastic_threshold<C>(bits, r.random_bits);
  }
  const Gradients<C> d =
      gradients(widen(static_cast<const T*>(args.g)[e]), widen(static_cast<const T*>(args.x)[e]), s,
                r, r.rounding, threshold);
  static_cast<T*>(args.dx)[e] = narrowed<T>(d.dx);
  return d;
}

// A warp takes a segment of a row: element i belongs to lane i mod 32.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) row_sums_kernel(GradientArgs args, int64_t all) {
  using C = compute_t<T>;
  const Blocks& b = args.blocks;
  const int64_t across = blocks_across(b), along = segments_along(b), count = partial_count(b);
  const int64_t per_row = across * along, items = b.outer * b.rows * per_row;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Seed seed = args.seed != nullptr ? load_seed(args.seed) : Seed{0, 0};
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; item < items;
       item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t row = item / per_row, within = item - row * per_row;
    const int64_t block_col = within / along, segment = within - block_col * along;
    const int64_t o = row / b.rows, r = row - o * b.rows;
    const int64_t c0 = block_col * b.block_cols + segment * kSegment;
    const int64_t end =
        (block_col + 1) * b.block_cols < b.cols ? (block_col + 1) * b.block_cols : b.cols;
    const int64_t n = end - c0 < kSegment ? end - c0 : kSegment;
    const int64_t block = block_of(b, o, r, block_col * b.block_cols);
    const int64_t slot =
        block * count + ((b.shared ? o : 0) * b.block_rows + r % b.block_rows) * along + segment;
    C dscale = C(0), dzero = C(0);
    if (n > 0) {
      const Scale<C> s = tabled_scale<C>(args.scale, block);
#pragma unroll(sizeof(C) == 8 ? 1 : 4)  // four doubles at a time would spill
      for (int64_t i = lane; i < n; i += 32) {
        const Gradients<C> d = differentiate<T>(args, row * b.cols + c0 + i, s, seed);
        dscale += d.dscale;
        dzero += d.dzero;
      }
    }
    const double scales = lane_sum(static_cast<double>(dscale));
    if (lane == 0) args.partial[slot] = scales;
    if (args.dzero != nullptr) {
      const double zeros = lane_sum(static_cast<double>(dzero));
      if (lane == 0) args.partial[2 * all + slot] = zeros;
    }
  }
}

// A thread block takes a segment of 32 columns: row i of it belongs to the warp's row i mod 32, and
// a thread has one column. Eight warps carry the 32 rows of lanes, four each.
constexpr int kRowsPerWarp = kLanes / kWarps;
using LaneRow = double[32];
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) column_sums_kernel(GradientArgs args, int64_t all) {
  using C = compute_t<T>;
  RK_SHARED(LaneRow, scales, kLanes);
  RK_SHARED(LaneRow, zeros, kLanes);
  const Blocks& b = args.blocks;
  const int64_t along = segments_along(b), count = partial_count(b), down = blocks_down(b);
  const int64_t bands = ceil_div(b.cols, int64_t{32});
  const int64_t items = b.outer * down * along * bands;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const Seed seed = args.seed != nullptr ? load_seed(args.seed) : Seed{0, 0};
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t band = item % bands, segment = item / bands % along;
    const int64_t block_row = item / (bands * along) % down, o = item / (bands * along * down);
    const int64_t c = band * 32 + lane;
    const int64_t first = block_row * b.block_rows + segment * kSegment;
    int64_t last =
        (block_row + 1) * b.block_rows < b.rows ? (block_row + 1) * b.block_rows : b.rows;
    last = first + kSegment < last ? first + kSegment : last;
    C dscale[kRowsPerWarp] = {}, dzero[kRowsPerWarp] = {};
    int64_t block = 0;
    if (c < b.cols) {
      block = block_of(b, o, block_row * b.block_rows, c);
      const Scale<C> s = tabled_scale<C>(args.scale, block);
      for (int64_t r = first; r < last; r += kLanes) {
#pragma unroll
        for (int k = 0; k < kRowsPerWarp; ++k) {
          const int64_t row = r + warp * kRowsPerWarp + k;
          if (row >= last) continue;
          const Gradients<C> d = differentiate<T>(args, (o * b.rows + row) * b.cols + c, s, seed);
          dscale[k] += d.dscale;
          dzero[k] += d.dzero;
        }
      }
    }
    __syncthreads();  // the sums before have been read
#pragma unroll
    for (int k = 0; k < kRowsPerWarp; ++k) {
      scales[warp * kRowsPerWarp + k][lane] = static_cast<double>(dscale[k]);
      zeros[warp * kRowsPerWarp + k][lane] = static_cast<double>(dzero[k]);
    }
    __syncthreads();
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int l = warp; l < half; l += kWarps) {
        scales[l][lane] += scales[l + half][lane];
        zeros[l][lane] += zeros[l + half][lane];
      }
      __syncthreads();
    }
    if (warp == 0 && c < b.cols) {
      const int64_t slot =
          block * count + ((b.shared ? o : 0) * b.block_cols + c % b.block_cols) * along + segment;
      args.partial[slot] = scales[0][lane];
      if (args.dzero != nullptr) args.partial[2 * all + slot] = zeros[0][lane];
    }
  }
}

// A division inside of the kernels above would cost them a call, and the double ones a spill.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    inverse_kernel(const C* scale, C* inverse, int64_t blocks) {
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < blocks;
       k += static_cast<int64_t>(gridDim.x) * kThreads)
    inverse[k] = C(1) / scale[k];
}

// A warp sums kSegment numbers of a block: (blocks, count) to (blocks, next).
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const double* from, double* to, int64_t blocks, int64_t count, int64_t next) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
       item < blocks * next; item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t block = item / next, first = (item - block * next) * kSegment;
    const int64_t n = count - first < kSegment ? count - first : kSegment;
    double sum = 0.0;
#pragma unroll 4
    for (int64_t i = lane; i < n; i += 32) sum += from[block * count + first + i];
    sum = lane_sum(sum);
    if (lane == 0) to[item] = sum;
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const double* sums, C* out, int64_t blocks) {
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < blocks;
       k += static_cast<int64_t>(gridDim.x) * kThreads)
    out[k] = static_cast<C>(sums[k]);
}

template <typename C>
void finish(const double* sums, void* out, int64_t blocks, cudaStream_t stream) {
  RK_LAUNCH((finish_kernel<C>), grid_blocks(ceil_div(blocks, int64_t{kThreads}), 8), kThreads, 0,
            stream, sums, static_cast<C*>(out), blocks);
}

}  // namespace

void quantize_gradient(const GradientArgs& given, Context context) {
  GradientArgs args = given;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Blocks& b = args.blocks;
  const int64_t blocks = block_count(b), count = partial_count(b), all = count * blocks;
  const int sums = args.dzero != nullptr ? 2 : 1;
  // What no segment fills: the rows and columns that a short last block lacks.
  for (int k = 0; k < sums; ++k)
    zero_async(args.partial + 2 * k * all, static_cast<size_t>(all) * sizeof(double), stream);
  args.scale.inverse = args.inverse;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    RK_LAUNCH((inverse_kernel<C>), grid_blocks(ceil_div(blocks, int64_t{kThreads}), 8), kThreads, 0,
              stream, static_cast<const C*>(args.scale.scale), static_cast<C*>(args.inverse),
              blocks);
    if (by_columns(b)) {
      const int64_t items =
          b.outer * blocks_down(b) * segments_along(b) * ceil_div(b.cols, int64_t{32});
      RK_LAUNCH((column_sums_kernel<T>), grid_blocks(items, 8), kThreads, 0, stream, args, all);
    } else {
      const int64_t items = b.outer * b.rows * blocks_across(b) * segments_along(b);
      RK_LAUNCH((row_sums_kernel<T>), grid_blocks(ceil_div(items, int64_t{kWarps}), 8), kThreads, 0,
                stream, args, all);
    }
  });
  for (int k = 0; k < sums; ++k) {
    double* from = args.partial + 2 * k * all;
    double* to = from + all;
    for (int64_t left = count; left > 1;) {
      const int64_t next = ceil_div(left, int64_t{kSegment});
      RK_LAUNCH(sum_kernel, grid_blocks(ceil_div(blocks * next, int64_t{kWarps}), 8), kThreads, 0,
                stream, from, to, blocks, left, next);
      double* swap = from;
      from = to;
      to = swap;
      left = next;
    }
    void* out = k == 0 ? args.dscale : args.dzero;
    if (args.dtype == Dtype::float64)
      finish<double>(from, out, blocks, stream);
    else
      finish<float>(from, out, blocks, stream);
  }
}

}  // namespace regkern::cuda
