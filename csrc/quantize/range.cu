#include "core/vector.cuh"
#include "quantize/range.h"

namespace regkern::cuda {
namespace {

using namespace quantize;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
// Of a thread, in flight; 64-bit indices need the registers.
template <int V, typename I>
constexpr int kVectorsOf = sizeof(I) == 4 || V == 1 ? 4 : 2;
constexpr int64_t kNarrow = 32;

// atomicMin and atomicMax know long long, not int64_t.
template <typename C>
struct AtomicKey {
  using type = int;
};
template <>
struct AtomicKey<double> {
  using type = long long;
};
template <typename C>
using atomic_key_t = typename AtomicKey<C>::type;

template <typename C>
struct Extremes {
  order_key_t<C> low = kLeastKey<C>, high = kLargestKey<C>;

  __device__ __forceinline__ void add(C x) { add(order_key(x), order_key(x)); }
  __device__ __forceinline__ void add(order_key_t<C> least, order_key_t<C> largest) {
    low = least < low ? least : low;
    high = largest > high ? largest : high;
  }
};

// An outdated key is too weak: it costs an atomic, no more.
template <typename C>
__device__ __forceinline__ void fold(const BlockRangeArgs& args, int64_t block,
                                     const Extremes<C>& e) {
  using A = atomic_key_t<C>;
  A* low = static_cast<A*>(args.minimum) + block;
  A* high = static_cast<A*>(args.maximum) + block;
  if (e.low < *low) atomicMin(low, static_cast<A>(e.low));
  if (e.high > *high) atomicMax(high, static_cast<A>(e.high));
}

template <typename C>
__device__ __forceinline__ void store(const BlockRangeArgs& args, int64_t block,
                                      const Extremes<C>& e) {
  using K = order_key_t<C>;
  finish_range<C>(e.low, e.high, static_cast<K*>(args.minimum) + block,
                  static_cast<K*>(args.maximum) + block);
}

// A team of `lanes` threads of a warp reads one of `slices` shares of a block: pieces of its runs,
// kVectors vectors a thread.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(kThreads)
    range_runs_kernel(BlockRangeArgs args, Blocks b, int lanes, int64_t slices) {
  using C = compute_t<T>;
  constexpr int kVectors = kVectorsOf<V, I>;
  const T* x = static_cast<const T*>(args.x);
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const I cols = static_cast<I>(b.cols), rows = static_cast<I>(b.rows);
  const I block_cols = static_cast<I>(b.block_cols), block_rows = static_cast<I>(b.block_rows);
  const I across = static_cast<I>(blocks_across(b)), down = static_cast<I>(blocks_down(b));
  const I piece = static_cast<I>(lanes) * (V * kVectors);
  const I pieces = block_cols / piece + (block_cols % piece != 0);
  const I outers = static_cast<I>(b.shared ? b.outer : 1), share = static_cast<I>(slices);
  const I items = static_cast<I>(block_count(b)) * share;
  const I teams = static_cast<I>(gridDim.x) * (kThreads / static_cast<I>(lanes));
  const I first = static_cast<I>(blockIdx.x) * (kThreads / static_cast<I>(lanes)) +
                  static_cast<I>(threadIdx.x) / static_cast<I>(lanes);
  // Teams of one warp leave the loop together: they shuffle.
  const I rounds = items / teams + (items % teams != 0);
  for (I round = 0; round < rounds; ++round) {
    const I item = first + round * teams;
    const bool mine = item < items;
    const I block = mine ? item / share : 0, slice = mine ? item - block * share : 0;
    Extremes<C> e;
    if (mine) {
      I left = 0, top = 0, o = 0;
      if (b.outer * b.rows == 1) {
        left = block * block_cols;
      } else {
        left = block % across * block_cols;
        const I unit = block / across;
        top = unit % down * block_rows;
        o = b.shared ? 0 : unit / down;
      }
      const I height = rows - top < block_rows ? rows - top : block_rows;
      const I width = cols - left < block_cols ? cols - left : block_cols;
      const I count = outers * height * pieces;
      for (I p = slice; p < count; p += share) {
        const I run = pieces == 1 ? p : p / pieces, begin = (p - run * pieces) * piece;
        const I outer = outers == 1 ? o : run / height;
        const I row = outers == 1 ? run : run - outer * height;
        const T* data = x + ((outer * rows + top + row) * cols + left);
        Vector<T, V> v[kVectors];
#pragma unroll
        for (int k = 0; k < kVectors; ++k) {
          const I at = begin + static_cast<I>((k * lanes + lane) * V);
          if (at < width) v[k] = load_vector<T, V>(data + at);
        }
#pragma unroll
        for (int k = 0; k < kVectors; ++k) {
          const I at = begin + static_cast<I>((k * lanes + lane) * V);
          if (at >= width) continue;
#pragma unroll
          for (int j = 0; j < V; ++j) e.add(widen(v[k].v[j]));
        }
      }
    }
    using A = atomic_key_t<C>;
    for (int offset = lanes / 2; offset > 0; offset /= 2)
      e.add(__shfl_xor_sync(kWholeWarp, static_cast<A>(e.low), offset),
            __shfl_xor_sync(kWholeWarp, static_cast<A>(e.high), offset));
    if (!mine || lane != 0) continue;
    if (share == 1)
      store<C>(args, static_cast<int64_t>(block), e);
    else
      fold<C>(args, static_cast<int64_t>(block), e);
  }
}

// A thread reads V columns over one of `slices` shares of the rows of a block.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(kThreads)
    range_columns_kernel(BlockRangeArgs args, Blocks b, int64_t slices) {
  using C = compute_t<T>;
  const T* x = static_cast<const T*>(args.x);
  const I cols = static_cast<I>(b.cols), rows = static_cast<I>(b.rows);
  const I block_rows = static_cast<I>(b.block_rows), down = static_cast<I>(blocks_down(b));
  const I block_cols = static_cast<I>(b.block_cols), across = static_cast<I>(blocks_across(b));
  const I width = cols / V, share = static_cast<I>(slices);
  const I items = static_cast<I>(b.outer) * down * share * width;
  const I stride = static_cast<I>(gridDim.x) * kThreads;
  const I step = block_rows / share + (block_rows % share != 0);
  for (I item = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; item < items; item += stride) {
    const I rest = item / width, c = (item - rest * width) * V;
    const I unit = rest / share, slice = rest - unit * share;
    const I o = unit / down, from_top = unit - o * down, top = from_top * block_rows;
    const I end = rows - top < block_rows ? rows : top + block_rows;
    const I first = top + slice * step;
    const I stop = end - first < step || first >= end ? end : first + step;
    if (first >= stop) continue;
    Extremes<C> e[V];
    const T* data = x + ((o * rows + first) * cols + c);
#pragma unroll 4
    for (I r = first; r < stop; ++r, data += cols) {
      const Vector<T, V> v = load_vector<T, V>(data);
#pragma unroll
      for (int j = 0; j < V; ++j) e[j].add(widen(v.v[j]));
    }
    const I block = ((b.shared ? 0 : o) * down + from_top) * across;
#pragma unroll
    for (int j = 0; j < V; ++j)
      fold<C>(args, static_cast<int64_t>(block + (c + static_cast<I>(j)) / block_cols), e[j]);
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads)
    range_start_kernel(BlockRangeArgs args, int64_t blocks) {
  auto* low = static_cast<order_key_t<C>*>(args.minimum);
  auto* high = static_cast<order_key_t<C>*>(args.maximum);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < blocks;
       i += stride) {
    low[i] = kLeastKey<C>;
    high[i] = kLargestKey<C>;
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads)
    range_finish_kernel(BlockRangeArgs args, int64_t blocks) {
  auto* low = static_cast<order_key_t<C>*>(args.minimum);
  auto* high = static_cast<order_key_t<C>*>(args.maximum);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < blocks;
       i += stride)
    finish_range<C>(low[i], high[i], low + i, high + i);
}

// Teams that fill the device several times over.
int64_t wanted_teams(int lanes) {
  return int64_t{device_sm_count()} * 8 * (kThreads / static_cast<int64_t>(lanes));
}

template <typename T, int V, typename I>
void launch_range(const BlockRangeArgs& args, const Blocks& b, cudaStream_t stream) {
  using C = compute_t<T>;
  const int64_t blocks = block_count(b);
  const bool empty = b.outer * b.rows * b.cols == 0;
  const bool narrow = b.block_cols < kNarrow && (b.block_rows > 1 || (b.shared && b.outer != 1));
  int lanes = 1;
  while (lanes < kWarp && int64_t{lanes} * V < b.block_cols) lanes *= 2;
  int64_t slices = 1;
  if (!empty) {
    // What can be shared out, and how often it is worth it.
    const int64_t parts = narrow
                              ? ceil_div(b.block_rows, int64_t{16})
                              : (b.shared ? b.outer : 1) * b.block_rows *
                                    ceil_div(b.block_cols, int64_t{lanes} * V * kVectorsOf<V, I>);
    const int64_t columns = b.outer * blocks_down(b) * (b.cols / V);
    const int64_t wanted =
        narrow ? ceil_div(wanted_teams(1), columns) : ceil_div(wanted_teams(lanes), blocks);
    slices = wanted < parts ? wanted : parts;
  }
  const bool atomic = empty || narrow || slices > 1;
  const int64_t each = grid_blocks(ceil_div(blocks, int64_t{kThreads}), 8);
  if (atomic) RK_LAUNCH((range_start_kernel<C>), each, kThreads, 0, stream, args, blocks);
  if (!empty && narrow) {
    const int64_t items = b.outer * blocks_down(b) * slices * (b.cols / V);
    RK_LAUNCH((range_columns_kernel<T, V, I>), grid_blocks(ceil_div(items, int64_t{kThreads}), 16),
              kThreads, 0, stream, args, b, slices);
  } else if (!empty) {
    const int64_t teams = blocks * slices;
    RK_LAUNCH((range_runs_kernel<T, V, I>),
              grid_blocks(ceil_div(teams * lanes, int64_t{kThreads}), 16), kThreads, 0, stream,
              args, b, lanes, slices);
  }
  if (atomic) RK_LAUNCH((range_finish_kernel<C>), each, kThreads, 0, stream, args, blocks);
}

}  // namespace

void block_range(const BlockRangeArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (block_count(args.blocks) == 0) return;
  const Blocks b = flattened(args.blocks);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = kLanesOf<T>;
    const bool narrow = b.block_cols < kNarrow && (b.block_rows > 1 || (b.shared && b.outer != 1));
    const bool vectors = is_aligned(args.x) && b.cols % V == 0 &&
                         (narrow || b.block_cols % V == 0 || blocks_across(b) == 1);
    // Room for the steps of the loops beyond the last element.
    const bool fits =
        b.outer * b.rows * b.cols < (int64_t{1} << 30) && block_count(b) < (int64_t{1} << 30);
    if (vectors && fits)
      launch_range<T, V, uint32_t>(args, b, stream);
    else if (vectors)
      launch_range<T, V, int64_t>(args, b, stream);
    else if (fits)
      launch_range<T, 1, uint32_t>(args, b, stream);
    else
      launch_range<T, 1, int64_t>(args, b, stream);
  });
}

}  // namespace regkern::cuda
