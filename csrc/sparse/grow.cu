#include "core/launch.cuh"
#include "core/vector.cuh"
#include "sparse/grow.h"

namespace regkern::cuda {
namespace {

using namespace sparse;

constexpr int kThreads = 256, kWarps = kThreads / 32;

// A block a row, a warp 32 scores at a time: their bits, and how many are set. Nobody has looked at
// the pattern: what is outside of the matrix is left out.
template <typename C>
__global__ void __launch_bounds__(kThreads, 8) sparse_grow_mark_kernel(GrowScanArgs args) {
  RK_SHARED(int, sums, kWarps);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const C* const scores = static_cast<const C*>(args.scores);
  const C threshold = *static_cast<const C*>(args.threshold);
  const int64_t words = 2 * grow_words(args.columns);  // of 32 bits
  for (int64_t r = blockIdx.x; r < args.rows; r += gridDim.x) {
    auto* const bits = reinterpret_cast<unsigned*>(args.bits) + r * words;
    for (int64_t w = warp; w < words; w += kWarps) {
      const int64_t c = w * 32 + lane;
      const bool inside = c < args.columns;
      const C s = inside ? fabs(scores[r * args.columns + c]) : C(0);
      const unsigned word = __ballot_sync(kWholeWarp, inside && !(s <= threshold));
      if (lane == 0) bits[w] = word;
    }
    __syncthreads();
    const int64_t first = args.offsets[r], last = args.offsets[r + 1];
    const int64_t end = last < args.nnz ? last : args.nnz;
    for (int64_t e = (first > 0 ? first : 0) + thread; e < end; e += kThreads) {
      const int64_t c = args.index[e];
      if (c >= 0 && c < args.columns) atomicAnd(bits + c / 32, ~(1u << c % 32));
    }
    __syncthreads();
    int count = 0;
    for (int64_t w = thread; w < words; w += kThreads) count += __popc(bits[w]);
    count = warp_sum(count);
    if (lane == 0) sums[warp] = count;
    __syncthreads();
    if (thread == 0) {
      int64_t total = 0;
      for (int i = 0; i < kWarps; ++i) total += sums[i];
      args.ends[r] = total;
    }
    __syncthreads();
  }
}

// One block: counts of the rows become the ends of what they write.
__global__ void __launch_bounds__(kThreads) sparse_grow_ends_kernel(GrowScanArgs args) {
  RK_SHARED(int64_t, sums, kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t share = ceil_div(args.rows, int64_t{kThreads});
  const int64_t begin = thread * share < args.rows ? thread * share : args.rows;
  const int64_t end = begin + share < args.rows ? begin + share : args.rows;
  int64_t sum = 0;
  for (int64_t r = begin; r < end; ++r) sum += args.ends[r];
  sums[thread] = sum;
  __syncthreads();
  int64_t at = *args.found;
  for (int i = 0; i < thread; ++i) at += sums[i];
  for (int64_t r = begin; r < end; ++r) args.ends[r] = at += args.ends[r];
  __syncthreads();
  if (thread == kThreads - 1) *args.found = at;
}

// A block a row, a thread neighbouring words: first they are counted.
template <typename C>
__global__ void __launch_bounds__(kThreads, 6) sparse_grow_write_kernel(GrowScanArgs args) {
  RK_SHARED(int, sums, kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  const C* const scores = static_cast<const C*>(args.scores);
  C* const magnitudes = static_cast<C*>(args.magnitudes);
  const int64_t words = 2 * grow_words(args.columns);
  const int64_t share = ceil_div(words, int64_t{kThreads});
  const int64_t begin = thread * share < words ? thread * share : words;
  const int64_t end = begin + share < words ? begin + share : words;
  for (int64_t r = blockIdx.x; r < args.rows; r += gridDim.x) {
    const auto* const bits = reinterpret_cast<const unsigned*>(args.bits) + r * words;
    int count = 0;
    for (int64_t w = begin; w < end; ++w) count += __popc(bits[w]);
    sums[thread] = count;
    __syncthreads();
    int64_t behind = 0;
    for (int i = thread; i < kThreads; ++i) behind += sums[i];
    __syncthreads();
    int64_t at = args.ends[r] - behind;
    for (int64_t w = begin; w < end; ++w)
      for (unsigned left = bits[w]; left != 0; left &= left - 1, ++at) {
        if (at >= args.capacity) break;
        const int64_t c = w * 32 + __ffs(static_cast<int>(left)) - 1;
        args.places[at] = (args.first + r) * args.columns + c;
        magnitudes[at] = fabs(scores[r * args.columns + c]);
      }
  }
}

template <typename C>
void scan(const GrowScanArgs& args, cudaStream_t stream) {
  const int64_t blocks = grid_blocks(args.rows, 8);
  RK_LAUNCH((sparse_grow_mark_kernel<C>), blocks, kThreads, 0, stream, args);
  RK_LAUNCH((sparse_grow_ends_kernel), 1, kThreads, 0, stream, args);
  RK_LAUNCH((sparse_grow_write_kernel<C>), blocks, kThreads, 0, stream, args);
}

}  // namespace

void sparse_grow_scan(const GrowScanArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  args.wide ? scan<double>(args, stream) : scan<float>(args, stream);
}

}  // namespace regkern::cuda
