#include "core/mma.cuh"
#include "sparse/tiles.cuh"

namespace regkern::cuda {
namespace {

// A tile of gᵀ x: this many features of either. Four warps have a quarter of it each.
constexpr int kSide = kProductTile, kHalfSide = kSide / 2;
constexpr int kThreads = 128, kWarps = kThreads / 32;
// Tiles that a block goes through, one after another in the order of a row's entries.
constexpr int kRun = 4;
// Elements of the batch that a step takes, in two products of 16.
constexpr int kStep = 32;

// The first of the entries from `begin` to `end` of a row whose index is not below `limit`.
__device__ __forceinline__ int64_t first_from(const int32_t* index, int64_t begin, int64_t end,
                                              int64_t limit) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (index[middle] < limit)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// Which elements of the batch meet in a product does not matter, as long as it is the same for both
// operands: so a thread's share of 16 bytes of a tile, whatever its order is, is that of two
// products.
template <typename T>
struct alignas(16) Fragment {
  uint32_t pairs[4];
};
template <typename T>
__device__ __forceinline__ Fragment<T> read_fragment(const T* tile, int64_t pitch, int64_t feature,
                                                     int64_t features, int k) {
  // Beyond the last feature there are no entries: anything will do.
  const int64_t row = feature < features ? feature : features - 1;
  return *reinterpret_cast<const Fragment<T>*>(tile + row * pitch + k);
}

// (kSide, kSide) products of features of x from c on and of g from r on, summed over the batch. A
// warp's quarter begins at its own c and r.
template <typename T, int BT>
__device__ __forceinline__ void multiply_tile(const SddmmArgs& args, int64_t c, int64_t r,
                                              float (&d)[2][4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, place = lane % 4 * 8;
  const int64_t tiles = ceil_div(args.batch, int64_t{BT});
#pragma unroll 1
  for (int64_t t = 0; t < tiles; ++t) {
    const T* const x = static_cast<const T*>(args.x.data) + t * args.x.stride;
    const T* const g = static_cast<const T*>(args.g.data) + t * args.g.stride;
#pragma unroll 1
    for (int k = 0; k < BT; k += kStep) {
      Fragment<T> of_x[2][2], of_g[4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          of_x[m][h] =
              read_fragment(x, args.x.pitch, c + m * 16 + h * 8 + row, args.view.rows, k + place);
#pragma unroll
      for (int n = 0; n < 4; ++n)
        of_g[n] = read_fragment(g, args.g.pitch, r + n * 8 + row, args.view.columns, k + place);
#pragma unroll
      for (int s = 0; s < 4; s += 2)
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint32_t a[4] = {of_x[m][0].pairs[s], of_x[m][1].pairs[s], of_x[m][0].pairs[s + 1],
                                 of_x[m][1].pairs[s + 1]};
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const uint32_t b[2] = {of_g[n].pairs[s], of_g[n].pairs[s + 1]};
            mma_16816<T>(a, b, d[m][n]);
          }
        }
    }
  }
}

template <typename T, int BT>
__global__ void __launch_bounds__(kThreads, 4) sparse_sddmm_tiles_kernel(SddmmArgs args) {
  constexpr int kPitch = kSide + 1;
  RK_SHARED(float, products, kSide* kPitch);
  RK_SHARED(int64_t, next, kSide);
  RK_SHARED(int64_t, ends, kSide);
  const SparseView& view = args.view;
  float* const dvalues = static_cast<float*>(args.dvalues);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int of_c = warp / 2 * kHalfSide, of_r = warp % 2 * kHalfSide;
  const int64_t blocks = ceil_div(view.rows, int64_t{kSide});
  const int64_t units = blocks * ceil_div(view.columns, int64_t{kSide * kRun});
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t c = unit % blocks * kSide, begin = unit / blocks * (kSide * kRun);
    const int64_t end = begin + kSide * kRun < view.columns ? begin + kSide * kRun : view.columns;
    const bool has_row = thread < kSide && c + thread < view.rows;
    int64_t last = 0;
    if (thread < kSide) {
      next[thread] = 0;
      ends[thread] = 0;
    }
    if (has_row) {
      last = view.offsets[c + thread + 1];
      ends[thread] = first_from(view.index, view.offsets[c + thread], last, begin);
    }
    for (int64_t r = begin; r < end; r += kSide) {
      bool some = false;
      if (has_row) {
        next[thread] = ends[thread];
        ends[thread] = first_from(view.index, next[thread], last, r + kSide);
        some = ends[thread] > next[thread];
      }
      // A tile without entries is not computed.
      if (__syncthreads_or(some) != 0) {
        float d[2][4][4] = {};
        multiply_tile<T, BT>(args, c + of_c, r + of_r, d);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              products[(of_c + m * 16 + i / 2 * 8 + lane / 4) * kPitch + of_r + n * 8 +
                       lane % 4 * 2 + i % 2] = d[m][n][i];
        __syncthreads();
        for (int i = warp; i < kSide; i += kWarps)
          for (int64_t e = next[i] + lane; e < ends[i]; e += 32)
            dvalues[view.order != nullptr ? view.order[e] : e] =
                products[i * kPitch + (view.index[e] - r)];
      }
      __syncthreads();
    }
  }
}

}  // namespace

void sparse_sddmm_tiles(const SddmmArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.view.nnz == 0) return;
  const int64_t units =
      ceil_div(args.view.rows, int64_t{kSide}) * ceil_div(args.view.columns, int64_t{kSide * kRun});
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    with_tile<float>(args.tile, [&](auto tile) {
      RK_LAUNCH((sparse_sddmm_tiles_kernel<T, decltype(tile)::value>), grid_blocks(units, 16),
                kThreads, 0, stream, args);
    });
  };
  if (args.dtype == Dtype::bfloat16) run(bfloat16{});
  if (args.dtype == Dtype::float16) run(float16{});
}

}  // namespace regkern::cuda
