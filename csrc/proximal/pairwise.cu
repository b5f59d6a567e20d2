#include "core/math.h"
#include "core/square_sum.cuh"
#include "proximal/pairwise.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

constexpr int kRowThreads = 256;

template <typename T>
struct Pair {
  const T* x;
  const T* y;
  T* x_out;
  T* y_out;
};

template <typename T>
__device__ __forceinline__ bool find_pair(const PairArgs& args, int64_t p, Pair<T>* pair) {
  int64_t first = 0, second = 0;
  if (!rows_of_pair(args, p, &first, &second)) return false;
  *pair = {static_cast<const T*>(args.x) + first * args.n,
           static_cast<const T*>(args.y) + second * args.n,
           static_cast<T*>(args.x_out) + first * args.n,
           static_cast<T*>(args.y_out) + second * args.n};
  return true;
}

template <typename C>
__device__ __forceinline__ PairMove<C> move_of(const PairArgs& args, int64_t p, double total) {
  const C t = static_cast<const C*>(args.threshold)[args.threshold_per_pair ? p : 0];
  return pair_move(static_cast<C>(regkern::sqrt(total)), t);
}

// V neighbours of a row that has n elements, zeros behind its end.
template <typename T, int V>
__device__ __forceinline__ void load_row(const T* row, int64_t n, int64_t at, bool vectors,
                                         compute_t<T> out[V]) {
  if (vectors && at + V <= n) {
    const Vector<T, V> x = load_vector<T, V>(row + at);
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = widen(x.v[v]);
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = at + v < n ? widen(row[at + v]) : compute_t<T>(0);
}

template <typename T, int V>
__device__ __forceinline__ void store_row(const compute_t<T> in[V], int64_t n, int64_t at,
                                          bool vectors, T* row) {
  if (vectors && at + V <= n) {
    Vector<T, V> x;
#pragma unroll
    for (int v = 0; v < V; ++v) x.v[v] = narrowed<T>(in[v]);
    store_vector<T, V>(x, row + at);
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (at + v < n) row[at + v] = narrowed<T>(in[v]);
}

template <typename T, int V>
__device__ __forceinline__ void move_vector(const Pair<T>& pair, PairMove<compute_t<T>> move,
                                            int64_t n, int64_t at, bool vectors,
                                            const compute_t<T> x[V], const compute_t<T> y[V]) {
  compute_t<T> a[V], b[V];
#pragma unroll
  for (int v = 0; v < V; ++v) move_pair(move, x[v], y[v], &a[v], &b[v]);
  store_row<T, V>(a, n, at, vectors, pair.x_out);
  store_row<T, V>(b, n, at, vectors, pair.y_out);
}

// Rows of one stripe of a warp at most, a warp each, in registers.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) pair_warps_kernel(PairArgs args, bool vectors) {
  using C = compute_t<T>;
  constexpr int V = kLanesOf<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kRowThreads / 32);
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
       p < args.count; p += warps) {
    Pair<T> pair;
    if (!find_pair(args, p, &pair)) continue;  // the whole warp
    C x[V], y[V];
    load_row<T, V>(pair.x, args.n, lane * V, vectors, x);
    load_row<T, V>(pair.y, args.n, lane * V, vectors, y);
    const C sum = fold_team<C, 1, V>(32, [&](int, int v) {
      const C d = x[v] - y[v];
      return d * d;
    });
    double total = static_cast<double>(sum);
    if (!square_sum_holds(sum))
      total = fold_team<double, 1, V>(32, [&](int, int v) {
        const double d = static_cast<double>(x[v] - y[v]);
        return d * d;
      });
    const PairMove<C> move = move_of<C>(args, p, total);
    if (args.shares != nullptr && lane == 0) static_cast<C*>(args.shares)[p] = move.share;
    move_vector<T, V>(pair, move, args.n, lane * V, vectors, x, y);
  }
}

// The squares of a segment in type A, over a block.
template <typename A, typename T, int V>
__device__ __forceinline__ A block_squares(const Pair<T>& pair, int64_t begin, int64_t end,
                                           bool vectors, A* shared) {
  using C = compute_t<T>;
  A sums[V] = {};
  for (int64_t at = begin + static_cast<int64_t>(threadIdx.x) * V; at < end; at += kLanes) {
    C x[V], y[V];
    load_row<T, V>(pair.x, end, at, vectors, x);
    load_row<T, V>(pair.y, end, at, vectors, y);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A d = static_cast<A>(x[v] - y[v]);
      sums[v] += d * d;
    }
  }
  return fold_block<A, V>(sums, shared);
}

// Longer rows, a block each. The second read comes from the cache.
template <typename T>
__global__ void __launch_bounds__(kLaneThreads<kLanesOf<T>>)
    pair_blocks_kernel(PairArgs args, bool vectors) {
  using C = compute_t<T>;
  constexpr int V = kLanesOf<T>;
  RK_SHARED(double, shared, kLanes);
  for (int64_t p = blockIdx.x; p < args.count; p += gridDim.x) {
    Pair<T> pair;
    if (!find_pair(args, p, &pair)) continue;  // the whole block
    double total = 0.0;
    for (int64_t begin = 0; begin < args.n; begin += kSegment) {
      const int64_t end = begin + kSegment < args.n ? begin + kSegment : args.n;
      const C sum = block_squares<C, T, V>(pair, begin, end, vectors, reinterpret_cast<C*>(shared));
      total += square_sum_holds(sum)
                   ? static_cast<double>(sum)
                   : block_squares<double, T, V>(pair, begin, end, vectors, shared);
    }
    const PairMove<C> move = move_of<C>(args, p, total);
    if (args.shares != nullptr && threadIdx.x == 0) static_cast<C*>(args.shares)[p] = move.share;
    for (int64_t at = static_cast<int64_t>(threadIdx.x) * V; at < args.n; at += kLanes) {
      C x[V], y[V];
      load_row<T, V>(pair.x, args.n, at, vectors, x);
      load_row<T, V>(pair.y, args.n, at, vectors, y);
      move_vector<T, V>(pair, move, args.n, at, vectors, x, y);
    }
  }
}

template <typename T>
void launch_pairs(const PairArgs& args, cudaStream_t stream) {
  constexpr int V = kLanesOf<T>;
  const bool vectors = args.n % V == 0 && is_aligned(args.x) && is_aligned(args.y) &&
                       is_aligned(args.x_out) && is_aligned(args.y_out);
  const int64_t blocks = grid_blocks(ceil_div(args.count, int64_t{kRowThreads / 32}), 8);
  if (args.n <= 32 * V)
    RK_LAUNCH((pair_warps_kernel<T>), blocks, kRowThreads, 0, stream, args, vectors);
  else
    RK_LAUNCH((pair_blocks_kernel<T>), grid_blocks(args.count, 4), kLaneThreads<V>, 0, stream, args,
              vectors);
}

}  // namespace

void pair_prox(const PairArgs& args, Context context) {
  if (args.count == 0 || args.n == 0) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) { launch_pairs<decltype(zero)>(args, stream); });
}

}  // namespace regkern::cuda
