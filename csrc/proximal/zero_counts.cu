#include "core/tensor_list.cuh"
#include "proximal/zero_counts.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

template <typename T>
__device__ __forceinline__ int count_lanes(const ZeroRow& row, int64_t e, int32_t* seen) {
  const int64_t left = row.numel - e, width = row.columns * row.inner;
  if (left <= 0) return 0;
  T x[kListLanes];
  load_lanes(static_cast<const T*>(row.data) + e, left, aligned_for_vectors(row.data), x);
  int zeros = 0;
#pragma unroll
  for (int i = 0; i < kListLanes; ++i) {
    if (i >= left) continue;
    if (widen(x[i]) == 0) {
      ++zeros;
      continue;
    }
    // Everybody writes the same number.
    const int64_t r = (e + i) / width;
    seen[row.row_flags + r] = 1;
    seen[row.column_flags + (e + i - r * width) / row.inner] = 1;
  }
  return zeros;
}

__global__ void __launch_bounds__(kListThreads)
    zero_counts_kernel(const __grid_constant__ ListChunk<ZeroRow> chunk, int64_t first_row,
                       int tiles, int32_t* seen, int64_t* out) {
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const ZeroRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + static_cast<int64_t>(threadIdx.x) * kListLanes;
    int zeros = 0;
    if (row.dtype == Dtype::float64)
      zeros = count_lanes<double>(row, e, seen);
    else if (row.dtype == Dtype::bfloat16)
      zeros = count_lanes<bfloat16>(row, e, seen);
    else if (row.dtype == Dtype::float16)
      zeros = count_lanes<float16>(row, e, seen);
    else
      zeros = count_lanes<float>(row, e, seen);
    zeros = warp_sum(zeros);
    if (threadIdx.x % 32 == 0 && zeros > 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(out + 3 * (first_row + place.row)),
                static_cast<unsigned long long>(zeros));
  }
}

// A block a tensor: flags that nobody has set.
__global__ void __launch_bounds__(kListThreads)
    zero_lines_kernel(const __grid_constant__ ListChunk<ZeroRow> chunk, int64_t first_row,
                      const int32_t* seen, int64_t* out) {
  const ZeroRow& row = chunk.rows[blockIdx.x];
  for (int which = 0; which < 2; ++which) {
    const int64_t n = which == 0 ? row.rows : row.columns;
    const int32_t* const flags = seen + (which == 0 ? row.row_flags : row.column_flags);
    int zeros = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) zeros += flags[i] == 0 ? 1 : 0;
    zeros = warp_sum(zeros);
    if (threadIdx.x % 32 == 0 && zeros > 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(
                    out + 3 * (first_row + static_cast<int64_t>(blockIdx.x)) + 1 + which),
                static_cast<unsigned long long>(zeros));
  }
}

}  // namespace

void zero_counts(const ZeroCountsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.flags > 0)
    zero_async(args.seen, static_cast<std::size_t>(args.flags) * sizeof(int32_t), stream);
  zero_async(args.out, static_cast<std::size_t>(args.count) * 3 * sizeof(int64_t), stream);
  for (int64_t begin = 0; begin < args.count;) {
    ListChunk<ZeroRow> chunk;
    const int64_t left = args.count - begin;
    chunk.count =
        static_cast<int>(left < ListChunk<ZeroRow>::kMost ? left : ListChunk<ZeroRow>::kMost);
    int64_t tiles = 0;
    for (int i = 0; i < chunk.count; ++i) {
      chunk.rows[i] = args.rows[begin + i];
      tiles += ceil_div(chunk.rows[i].numel, kListTile);
      chunk.tiles_end[i] = static_cast<int>(tiles);
    }
    if (tiles > 0)
      RK_LAUNCH(zero_counts_kernel, grid_blocks(tiles, 8), kListThreads, 0, stream, chunk, begin,
                static_cast<int>(tiles), args.seen, args.out);
    RK_LAUNCH(zero_lines_kernel, chunk.count, kListThreads, 0, stream, chunk, begin, args.seen,
              args.out);
    begin += chunk.count;
  }
}

}  // namespace regkern::cuda
