#include "core/vector.cuh"
#include "quantize/select.h"

namespace regkern::cuda {
namespace {

using namespace quantize;

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;
constexpr int kWarp = 32;

// Elements travel as unsigned integers of their size.
template <typename F>
void dispatch_width(int itemsize, F&& f) {
  if (itemsize == 2) return f(uint16_t{});
  if (itemsize == 4) return f(uint32_t{});
  f(uint64_t{});
}

// ---- block_select ----

// Byte i: whether blocks 4i … 4i + 3 are replaced, a call of the generator.
__global__ void __launch_bounds__(kThreads)
    draw_kernel(BlockDraw draw, bool invert, int64_t bytes, uint8_t* drawn) {
  const Threshold threshold = threshold_of(draw);
  const Seed seed = load_seed(draw.seed);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < bytes;
       i += stride) {
    const Words words = philox(seed, Stream::mask, static_cast<uint64_t>(i));
    uint32_t four = invert ? 15u : 0u;
#pragma unroll
    for (int j = 0; j < 4; ++j) four ^= static_cast<uint32_t>(is_one(threshold, words.w[j])) << j;
    drawn[i] = static_cast<uint8_t>(four);
  }
}

// Which block an element stands in, and how far it is to the end of the block.
template <typename I>
struct Position {
  I block, left, column;
};

template <bool kEven, typename I>
__device__ __forceinline__ Position<I> position_of(const RowBlocks& b, I e) {
  const I size = static_cast<I>(b.block);
  if constexpr (kEven) {
    const I block = e / size;
    return {block, (block + 1) * size - e, 0};
  } else {
    const I row_size = static_cast<I>(b.row_size);
    const I row = e / row_size, column = e - row * row_size, within = column / size;
    const I end = (within + 1) * size < row_size ? (within + 1) * size : row_size;
    return {row * static_cast<I>(blocks_per_row(b)) + within, end - column, column};
  }
}

template <bool kEven, typename I>
__device__ __forceinline__ void advance(const RowBlocks& b, Position<I>& p) {
  if constexpr (!kEven) p.column = p.column + 1 == static_cast<I>(b.row_size) ? 0 : p.column + 1;
  if (--p.left > 0) return;
  ++p.block;
  p.left = static_cast<I>(b.block);
  if constexpr (!kEven) {
    const I rest = static_cast<I>(b.row_size) - p.column;
    p.left = p.left < rest ? p.left : rest;
  }
}

template <typename I>
__device__ __forceinline__ bool is_drawn(const uint8_t* drawn, I block) {
  return (drawn[block >> 2] >> (block & 3) & 1) != 0;
}

template <typename U, int V, bool kEven, typename I>
__global__ void __launch_bounds__(kThreads) block_select_kernel(BlockSelectArgs args) {
  const RowBlocks& b = args.blocks;
  const I total = static_cast<I>(b.rows * b.row_size);
  const auto* w = static_cast<const U*>(args.w);
  const auto* q = static_cast<const U*>(args.q);
  auto* y = static_cast<U*>(args.y);
  const bool valid = threshold_of(args.draw).valid;
  const I stride = static_cast<I>(gridDim.x) * kThreads * V;
  for (I e = (static_cast<I>(blockIdx.x) * kThreads + threadIdx.x) * V; e < total; e += stride) {
    Position<I> p = position_of<kEven>(b, e);
    Vector<U, V> x = load_vector<U, V>(w + e);
    // A probability that is none cannot be refused here: it has to show in the result.
    if (!valid) memset(&x, 0xFF, sizeof(x));
    const bool one = p.left >= static_cast<I>(V);
    if (one && !is_drawn(args.drawn, p.block)) {
      if (args.w != args.y || !valid) store_vector(x, y + e);
      continue;
    }
    if (valid && one && q != nullptr && !args.q_shared) {
      store_vector(load_vector<U, V>(q + e), y + e);
      continue;
    }
    if (valid) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const I size = static_cast<I>(b.block);
        if (is_drawn(args.drawn, p.block)) {
          I from = e + static_cast<I>(i);
          if (args.q_shared) {
            if constexpr (kEven)
              from = size - p.left;
            else
              from = p.column % size;
          }
          x.v[i] = q == nullptr ? U{0} : q[from];
        }
        if (i + 1 < V) advance<kEven>(b, p);
      }
    }
    store_vector(x, y + e);
  }
}

template <typename U, int V, typename I>
void launch_select(const BlockSelectArgs& args, cudaStream_t stream) {
  const int64_t total = args.blocks.rows * args.blocks.row_size;
  const int64_t blocks = grid_blocks(ceil_div(total, int64_t{kThreads} * V), kBlocksPerSm);
  if (is_even(args.blocks))
    RK_LAUNCH((block_select_kernel<U, V, true, I>), blocks, kThreads, 0, stream, args);
  else
    RK_LAUNCH((block_select_kernel<U, V, false, I>), blocks, kThreads, 0, stream, args);
}

template <typename U>
void select_as(const BlockSelectArgs& args, cudaStream_t stream) {
  const int64_t total = args.blocks.rows * args.blocks.row_size;
  const bool wide = total % kLanesOf<U> == 0 && is_aligned(args.w) && is_aligned(args.y) &&
                    (args.q == nullptr || args.q_shared || is_aligned(args.q));
  if (total >= int64_t{1} << 31)
    launch_select<U, 1, int64_t>(args, stream);
  else if (wide)
    launch_select<U, kLanesOf<U>, uint32_t>(args, stream);
  else
    launch_select<U, 1, uint32_t>(args, stream);
}

// ---- nearest_centroid ----

constexpr int kBatch = 4;  // blocks of a warp: they share every load of a centroid

// Lanes hold neighbouring centroids; all of them read the same value of a block.
template <typename T>
__global__ void __launch_bounds__(kThreads) nearest_kernel(NearestCentroidArgs args) {
  using C = compute_t<T>;
  const RowBlocks& b = args.blocks;
  const T* w = static_cast<const T*>(args.w);
  const T* codebook = static_cast<const T*>(args.codebook);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t count = block_count(b), batches = ceil_div(count, int64_t{kBatch});
  const Threshold threshold = args.drawn ? threshold_of(args.draw) : Threshold{0, true, true};
  const C infinity = static_cast<C>(bit_cast<float>(0x7F800000u));
  for (int64_t batch = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
       batch < batches; batch += warps) {
    const int64_t first = batch * kBatch;
    uint32_t active = 0;
    int64_t start[kBatch];
    int64_t size[kBatch];
    int64_t longest = 0;
    const Words words =
        args.drawn && threshold.valid
            ? philox(load_seed(args.draw.seed), Stream::mask, static_cast<uint64_t>(first / 4))
            : Words{};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const bool there = first + i < count;
      const BlockRange r = there ? block_range(b, first + i) : BlockRange{0, 0};
      start[i] = r.start;
      size[i] = r.size;
      const bool on = there && (!args.drawn || is_one(threshold, words.w[i]));
      active |= static_cast<uint32_t>(on) << i;
      longest = on && r.size > longest ? r.size : longest;
    }
    C best[kBatch];
    int32_t where[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      best[i] = infinity;
      where[i] = INT32_MAX;
    }
    bool countable[kBatch] = {};  // some distance of this lane is not NaN
    int32_t first_countable[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) first_countable[i] = INT32_MAX;
    if (active != 0)
      for (int64_t k = lane; k < args.centroids; k += kWarp) {
        C sum[kBatch] = {};
        for (int64_t j = 0; j < longest; ++j) {
          const C c = widen(codebook[j * args.centroids + k]);
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            if (j >= size[i] || (active >> i & 1u) == 0) continue;
            const C d = widen(w[start[i] + j]) - c;
            sum[i] += d * d;
          }
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (sum[i] < best[i]) {
            best[i] = sum[i];
            where[i] = static_cast<int32_t>(k);
          }
          if (sum[i] == sum[i] && !countable[i]) {
            countable[i] = true;
            first_countable[i] = static_cast<int32_t>(k);
          }
        }
      }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const C other = __shfl_xor_sync(kWholeWarp, best[i], offset);
        const int32_t at = __shfl_xor_sync(kWholeWarp, where[i], offset);
        const int32_t fallback = __shfl_xor_sync(kWholeWarp, first_countable[i], offset);
        if (other < best[i] || (other == best[i] && at < where[i])) {
          best[i] = other;
          where[i] = at;
        }
        first_countable[i] = fallback < first_countable[i] ? fallback : first_countable[i];
      }
      if (lane != 0 || first + i >= count) continue;
      const int32_t found = where[i] != INT32_MAX             ? where[i]
                            : first_countable[i] != INT32_MAX ? first_countable[i]
                                                              : kNoNearest;
      const bool on = (active >> i & 1u) != 0;
      // A probability that is none gives NaN.
      args.index[first + i] = !threshold.valid ? kNoNearest : on ? found : kNotDrawn;
    }
  }
}

// ---- centroid_select ----

// V neighbours stand in one block.
template <typename U, int V, typename I>
__global__ void __launch_bounds__(kThreads) centroid_select_kernel(CentroidSelectArgs args) {
  const RowBlocks& b = args.blocks;
  const I total = static_cast<I>(b.rows * b.row_size), size = static_cast<I>(b.block);
  const I row_size = static_cast<I>(b.row_size), across = static_cast<I>(blocks_per_row(b));
  const auto* w = static_cast<const U*>(args.w);
  const auto* codebook = static_cast<const U*>(args.codebook);
  auto* y = static_cast<U*>(args.y);
  const I stride = static_cast<I>(gridDim.x) * kThreads * V;
  for (I e = (static_cast<I>(blockIdx.x) * kThreads + threadIdx.x) * V; e < total; e += stride) {
    const I row = e / row_size, column = e - row * row_size, within = column / size;
    const int32_t k = args.index[row * across + within];
    Vector<U, V> x;
    if (k >= 0 && k < args.centroids)
      x = load_vector<U, V>(codebook + static_cast<int64_t>(k) * b.block +
                            (column - within * size));
    else if (k == kNotDrawn)
      x = load_vector<U, V>(w + e);
    else
      memset(&x, 0xFF, sizeof(x));  // all bits set are a NaN
    store_vector(x, y + e);
  }
}

template <typename U>
void gather_as(const CentroidSelectArgs& args, cudaStream_t stream) {
  const RowBlocks& b = args.blocks;
  constexpr int V = kLanesOf<U>;
  const int64_t total = b.rows * b.row_size;
  const bool wide = is_even(b) && b.block % V == 0 && is_aligned(args.w) && is_aligned(args.y) &&
                    is_aligned(args.codebook);
  const auto blocks = [&](int v) {
    return grid_blocks(ceil_div(total, int64_t{kThreads} * v), kBlocksPerSm);
  };
  if (total >= int64_t{1} << 31)
    RK_LAUNCH((centroid_select_kernel<U, 1, int64_t>), blocks(1), kThreads, 0, stream, args);
  else if (wide)
    RK_LAUNCH((centroid_select_kernel<U, V, uint32_t>), blocks(V), kThreads, 0, stream, args);
  else
    RK_LAUNCH((centroid_select_kernel<U, 1, uint32_t>), blocks(1), kThreads, 0, stream, args);
}

// ---- centroid_sum ----

// A warp adds one element of one centroid's list; a lane of it is a lane of the sum.
template <typename T>
__global__ void __launch_bounds__(kThreads) centroid_sum_kernel(CentroidSumArgs args) {
  static_assert(kSumLanes == kWarp);
  const RowBlocks& b = args.blocks;
  const T* g = static_cast<const T*>(args.g);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t work = args.centroids * b.block;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
       item < work; item += warps) {
    const int64_t k = item / b.block, j = item - k * b.block;
    double sum = 0.0;
    for (int64_t i = args.offsets[k] + lane; i < args.offsets[k + 1]; i += kWarp) {
      const BlockRange r = block_range(b, args.order[i]);
      if (j < r.size) sum += static_cast<double>(widen(g[r.start + j]));
    }
    for (int width = kWarp / 2; width > 0; width /= 2)
      sum += __shfl_down_sync(kWholeWarp, sum, static_cast<unsigned>(width));
    if (lane == 0) narrow(static_cast<compute_t<T>>(sum), static_cast<T*>(args.out) + item);
  }
}

// ---- subvector_mean ----

template <typename T>
__global__ void __launch_bounds__(kThreads) mean_lanes_kernel(SubvectorMeanArgs args) {
  const RowBlocks& b = args.blocks;
  const T* w = static_cast<const T*>(args.w);
  const int64_t step = kMeanLanes * b.block, work = mean_chunks(b) * step, count = block_count(b);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < work;
       item += stride) {
    const int64_t chunk = item / step, within = item - chunk * step;
    const int64_t lane = within / b.block, j = within - lane * b.block;
    const int64_t begin = chunk * kMeanChunk;
    const int64_t end = begin + kMeanChunk < count ? begin + kMeanChunk : count;
    double sum = 0.0;
    for (int64_t i = begin + lane; i < end; i += kMeanLanes) {
      const BlockRange r = block_range(b, i);
      if (j < r.size) sum += static_cast<double>(widen(w[r.start + j]));
    }
    args.partial[item] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) mean_kernel(SubvectorMeanArgs args) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; j < args.blocks.block;
       j += stride)
    narrow(static_cast<compute_t<T>>(mean_from(args, j)), static_cast<T*>(args.out) + j);
}

}  // namespace

void block_select(const BlockSelectArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t bytes = ceil_div(block_count(args.blocks), int64_t{4});
  RK_LAUNCH(draw_kernel, grid_blocks(ceil_div(bytes, int64_t{kThreads}), kBlocksPerSm), kThreads, 0,
            stream, args.draw, args.invert, bytes, args.drawn);
  dispatch_width(args.itemsize, [&](auto zero) { select_as<decltype(zero)>(args, stream); });
}

void nearest_centroid(const NearestCentroidArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t batches = ceil_div(block_count(args.blocks), int64_t{kBatch});
  const int64_t blocks = grid_blocks(ceil_div(batches, int64_t{kThreads / kWarp}), kBlocksPerSm);
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((nearest_kernel<decltype(zero)>), blocks, kThreads, 0, stream, args);
  });
}

void centroid_select(const CentroidSelectArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_width(args.itemsize, [&](auto zero) { gather_as<decltype(zero)>(args, stream); });
}

void centroid_sum(const CentroidSumArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t work = args.centroids * args.blocks.block;
  const int64_t blocks = grid_blocks(ceil_div(work, int64_t{kThreads / kWarp}), kBlocksPerSm);
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((centroid_sum_kernel<decltype(zero)>), blocks, kThreads, 0, stream, args);
  });
}

void subvector_mean(const SubvectorMeanArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t work = mean_chunks(args.blocks) * kMeanLanes * args.blocks.block;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    RK_LAUNCH((mean_lanes_kernel<T>), grid_blocks(ceil_div(work, int64_t{kThreads}), kBlocksPerSm),
              kThreads, 0, stream, args);
    RK_LAUNCH((mean_kernel<T>),
              grid_blocks(ceil_div(args.blocks.block, int64_t{kThreads}), kBlocksPerSm), kThreads,
              0, stream, args);
  });
}

}  // namespace regkern::cuda
