#include "core/vector.cuh"
#include "proximal/column_pool.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

constexpr int kThreads = 128;
constexpr int kBlocksPerSm = 16;

// A thread has V neighbouring columns of one batch.
template <typename T, Pool kPool, int V>
__global__ void __launch_bounds__(kThreads) pool_kernel(ColumnPoolArgs a) {
  using C = compute_t<T>;
  const int64_t across = a.columns / V, work = a.batch * across;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  [[maybe_unused]] const double share = share_of<double>(a.length);
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < work;
       item += stride) {
    const int64_t b = item / across, column = (item - b * across) * V;
    const T* x = static_cast<const T*>(a.x) + b * a.length * a.columns + column;
    double sums[V] = {};
    C best[V] = {};
    int32_t place[V];
#pragma unroll
    for (int i = 0; i < V; ++i) place[i] = -1;
    for (int64_t t = 0; t < a.length; ++t) {
      if (!keeps(a.keep, b * a.length + t)) continue;
      const Vector<T, V> v = load_vector<T, V>(x + t * a.columns);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const C value = widen(v.v[i]);
        if constexpr (kPool == Pool::max) {
          if (is_greater(value, best[i])) {
            best[i] = value;
            place[i] = static_cast<int32_t>(t);
          }
        } else {
          sums[i] += pooled_term<kPool>(value);
        }
      }
    }
    const int64_t at = b * a.columns + column;
    Vector<T, V> out;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      C y = C(0);
      if constexpr (kPool == Pool::max) {
        y = log1p(best[i]);
        a.place[at + i] = place[i];
      } else if constexpr (kPool == Pool::magnitude) {
        y = static_cast<C>(sums[i] * share);
      } else {
        y = static_cast<C>(sums[i]);
      }
      narrow(y, out.v + i);
    }
    store_vector(out, static_cast<T*>(a.y) + at);
  }
}

template <typename T, Pool kPool, int V>
__global__ void __launch_bounds__(kThreads) pool_gradient_kernel(ColumnPoolBackwardArgs a) {
  using C = compute_t<T>;
  const int64_t across = a.columns / V, work = a.batch * a.length * across;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const C scale = share_of<C>(a.length);
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < work;
       item += stride) {
    const int64_t row = item / across, column = (item - row * across) * V;
    const int64_t b = row / a.length;
    const auto t = static_cast<int32_t>(row - b * a.length);
    const int64_t at = b * a.columns + column, from = row * a.columns + column;
    const Vector<T, V> x = load_vector<T, V>(static_cast<const T*>(a.x) + from);
    const Vector<T, V> g = load_vector<T, V>(static_cast<const T*>(a.g) + at);
    const bool kept = keeps(a.keep, row);
    Vector<T, V> dx;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      bool there = kept;
      if constexpr (kPool == Pool::max) there = a.place[at + i] == t;
      narrow(pooled_gradient<kPool>(widen(g.v[i]), widen(x.v[i]), there, scale), dx.v + i);
    }
    store_vector(dx, static_cast<T*>(a.dx) + from);
  }
}

template <typename F>
void dispatch_pool(Pool pool, F&& f) {
  if (pool == Pool::magnitude) return f(std::integral_constant<Pool, Pool::magnitude>{});
  if (pool == Pool::sum) return f(std::integral_constant<Pool, Pool::sum>{});
  f(std::integral_constant<Pool, Pool::max>{});
}

template <typename F>
void dispatch_lanes(bool wide, int lanes, F&& f) {
  if (!wide) return f(std::integral_constant<int, 1>{});
  if (lanes == 2) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 4>{});
}

// As many lanes as travel in 16 bytes, 4 at most: sums are doubles.
template <typename T>
constexpr int kMostLanes = sizeof(T) == 8 ? 2 : 4;

}  // namespace

void column_pool(const ColumnPoolArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = args.columns % kMostLanes<T> == 0 && is_aligned(args.x) && is_aligned(args.y);
    dispatch_pool(args.pool, [&](auto pool) {
      constexpr Pool kPool = decltype(pool)::value;
      dispatch_lanes(wide, kMostLanes<T>, [&](auto lanes) {
        constexpr int V = decltype(lanes)::value;
        if constexpr (V <= kMostLanes<T>) {
          const int64_t work = args.batch * (args.columns / V);
          RK_LAUNCH((pool_kernel<T, kPool, V>),
                    grid_blocks(ceil_div(work, int64_t{kThreads}), kBlocksPerSm), kThreads, 0,
                    stream, args);
        }
      });
    });
  });
}

void column_pool_backward(const ColumnPoolBackwardArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = args.columns % kMostLanes<T> == 0 && is_aligned(args.x) &&
                      is_aligned(args.g) && is_aligned(args.dx);
    dispatch_pool(args.pool, [&](auto pool) {
      constexpr Pool kPool = decltype(pool)::value;
      dispatch_lanes(wide, kMostLanes<T>, [&](auto lanes) {
        constexpr int V = decltype(lanes)::value;
        if constexpr (V <= kMostLanes<T>) {
          const int64_t work = args.batch * args.length * (args.columns / V);
          RK_LAUNCH((pool_gradient_kernel<T, kPool, V>),
                    grid_blocks(ceil_div(work, int64_t{kThreads}), kBlocksPerSm), kThreads, 0,
                    stream, args);
        }
      });
    });
  });
}

}  // namespace regkern::cuda
