#include "core/launch.cuh"
#include "sparse/sample_entries.h"

namespace regkern::cuda {
namespace {

using namespace sparse;

constexpr int kThreads = 256, kWarps = kThreads / 32;

// A row a warp. Nobody has looked at the pattern: what is outside of the matrix is left out.
template <typename T>
__global__ void __launch_bounds__(kThreads, 8) sparse_write_kernel(EntryWriteArgs args) {
  using C = compute_t<T>;
  const C* const values = static_cast<const C*>(args.values);
  const C* const base = static_cast<const C*>(args.base);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp; r < args.rows; r += step) {
    T* const row = static_cast<T*>(args.weight) + r * args.columns;
    const int64_t first = args.offsets[r], last = args.offsets[r + 1];
    const int64_t end = last < args.nnz ? last : args.nnz;
    for (int64_t e = (first > 0 ? first : 0) + lane; e < end; e += 32) {
      const int64_t column = args.index[e];
      if (column >= 0 && column < args.columns)
        narrow(base != nullptr ? values[e] + base[e] : values[e], row + column);
    }
  }
}

}  // namespace

void sparse_write(const EntryWriteArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((sparse_write_kernel<decltype(zero)>),
              grid_blocks(ceil_div(args.rows, int64_t{kWarps}), 8), kThreads, 0, stream, args);
  });
}

}  // namespace regkern::cuda
