#include "core/vector.cuh"
#include "spectral/columns.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;

// As many neighbouring columns of a thread as travel in 16 bytes, 4 at most: sums are doubles.
template <typename T>
constexpr int kMostLanes = sizeof(T) == 8 ? 2 : 4;

struct Place {
  int64_t piece, column;
};

template <int V>
__device__ __forceinline__ Place place_of(int64_t item, int64_t columns) {
  const int64_t across = columns / V, piece = item / across;
  return {piece, (item - piece * across) * V};
}

// f(row offset of the thread's columns) for the rows of a piece.
template <typename F>
__device__ __forceinline__ void for_rows(int64_t rows, int64_t columns, const Place& at, F&& f) {
  const int64_t first = at.piece * kRowPiece;
  const int64_t stop = first + kRowPiece < rows ? first + kRowPiece : rows;
#pragma unroll 4
  for (int64_t r = first; r < stop; ++r) f(r * columns + at.column);
}

// Σ x of every piece, or Σ (x − μ)².
template <typename T, int V, bool kSquares>
__global__ void __launch_bounds__(kThreads) column_pieces_kernel(StandardizeColumnsArgs args) {
  const int64_t work = row_pieces(args.rows) * (args.columns / V);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const double* mean = args.space + row_pieces(args.rows) * args.columns;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < work;
       item += step) {
    const Place at = place_of<V>(item, args.columns);
    double sums[V] = {}, centre[V] = {};
    if constexpr (kSquares)
#pragma unroll
      for (int v = 0; v < V; ++v) centre[v] = mean[at.column + v];
    for_rows(args.rows, args.columns, at, [&](int64_t e) {
      const Vector<T, V> x = load_vector<T, V>(static_cast<const T*>(args.x) + e);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const double d = static_cast<double>(widen(x.v[v])) - centre[v];
        sums[v] += kSquares ? d * d : d;
      }
    });
#pragma unroll
    for (int v = 0; v < V; ++v) args.space[at.piece * args.columns + at.column + v] = sums[v];
  }
}

__device__ __forceinline__ double pieces_total(const double* pieces, int64_t count, int64_t columns,
                                               int64_t column) {
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) total += pieces[i * columns + column];
  return total;
}

template <typename C, bool kSquares>
__global__ void __launch_bounds__(kThreads) column_totals_kernel(StandardizeColumnsArgs args) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, n = args.columns;
  const int64_t pieces = row_pieces(args.rows);
  double* mean = args.space + pieces * n;
  double* factor = mean + n;
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; c < n; c += step) {
    const double total = pieces_total(args.space, pieces, n, c);
    if constexpr (kSquares) {
      const double variance = column_variance(total, args.rows, args.correction);
      factor[c] = column_factor(args, variance);
      static_cast<C*>(args.variance)[c] = static_cast<C>(variance);
    } else {
      mean[c] = total / static_cast<double>(args.rows);
      static_cast<C*>(args.mean)[c] = static_cast<C>(mean[c]);
    }
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads) standardize_kernel(StandardizeColumnsArgs args) {
  using C = compute_t<T>;
  const int64_t work = row_pieces(args.rows) * (args.columns / V);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const double* mean = args.space + row_pieces(args.rows) * args.columns;
  const double* factor = mean + args.columns;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < work;
       item += step) {
    const Place at = place_of<V>(item, args.columns);
    double m[V], f[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      m[v] = mean[at.column + v];
      f[v] = factor[at.column + v];
    }
    for_rows(args.rows, args.columns, at, [&](int64_t e) {
      const Vector<T, V> x = load_vector<T, V>(static_cast<const T*>(args.x) + e);
      Vector<T, V> y;
#pragma unroll
      for (int v = 0; v < V; ++v) narrow(standardized(C(widen(x.v[v])), m[v], f[v]), y.v + v);
      store_vector<T, V>(y, static_cast<T*>(args.y) + e);
    });
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads) product_pieces_kernel(ColumnProductsArgs args) {
  const int64_t pieces = row_pieces(args.rows), work = pieces * (args.columns / V);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < work;
       item += step) {
    const Place at = place_of<V>(item, args.columns);
    double sums[V] = {}, products[V] = {};
    for_rows(args.rows, args.columns, at, [&](int64_t e) {
      const Vector<T, V> a = load_vector<T, V>(static_cast<const T*>(args.a) + e);
      const Vector<T, V> b = load_vector<T, V>(static_cast<const T*>(args.b) + e);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const double d = static_cast<double>(widen(a.v[v]));
        sums[v] += d;
        products[v] += d * static_cast<double>(widen(b.v[v]));
      }
    });
    double* out = args.space + at.piece * args.columns + at.column;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      out[v] = sums[v];
      out[pieces * args.columns + v] = products[v];
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads) product_totals_kernel(ColumnProductsArgs args) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, n = args.columns;
  const int64_t pieces = row_pieces(args.rows);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < 2 * n; i += step)
    static_cast<C*>(args.sums)[i] =
        static_cast<C>(pieces_total(args.space + i / n * pieces * n, pieces, n, i % n));
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads) column_combine_kernel(ColumnCombineArgs args) {
  using C = compute_t<T>;
  const int64_t work = row_pieces(args.rows) * (args.columns / V), n = args.columns;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const C* numbers = static_cast<const C*>(args.numbers);
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < work;
       item += step) {
    const Place at = place_of<V>(item, n);
    C p[V], q[V], constant[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      p[v] = numbers[at.column + v];
      q[v] = numbers[n + at.column + v];
      constant[v] = numbers[2 * n + at.column + v];
    }
    for_rows(args.rows, n, at, [&](int64_t e) {
      const Vector<T, V> a = load_vector<T, V>(static_cast<const T*>(args.a) + e);
      const Vector<T, V> b = load_vector<T, V>(static_cast<const T*>(args.b) + e);
      Vector<T, V> y;
#pragma unroll
      for (int v = 0; v < V; ++v)
        narrow(p[v] * widen(a.v[v]) + q[v] * widen(b.v[v]) + constant[v], y.v + v);
      store_vector<T, V>(y, static_cast<T*>(args.y) + e);
    });
  }
}

template <typename F>
void dispatch_lanes(bool wide, F&& f) {
  if (wide) return f(std::true_type{});
  f(std::false_type{});
}

template <typename T>
bool has_lanes(int64_t columns, std::initializer_list<const void*> data) {
  bool wide = columns % kMostLanes<T> == 0;
  for (const void* p : data) wide = wide && is_aligned(p);
  return wide;
}

int64_t blocks_for(int64_t work) {
  return grid_blocks(ceil_div(work, int64_t{kThreads}), kBlocksPerSm);
}

}  // namespace

void standardize_columns(const StandardizeColumnsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.columns == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    dispatch_lanes(has_lanes<T>(args.columns, {args.x, args.y}), [&](auto wide) {
      constexpr int V = decltype(wide)::value ? kMostLanes<T> : 1;
      const int64_t work = row_pieces(args.rows) * (args.columns / V);
      if (work > 0)
        RK_LAUNCH((column_pieces_kernel<T, V, false>), blocks_for(work), kThreads, 0, stream, args);
      RK_LAUNCH((column_totals_kernel<C, false>), blocks_for(args.columns), kThreads, 0, stream,
                args);
      if (work > 0)
        RK_LAUNCH((column_pieces_kernel<T, V, true>), blocks_for(work), kThreads, 0, stream, args);
      RK_LAUNCH((column_totals_kernel<C, true>), blocks_for(args.columns), kThreads, 0, stream,
                args);
      if (work > 0)
        RK_LAUNCH((standardize_kernel<T, V>), blocks_for(work), kThreads, 0, stream, args);
    });
  });
}

void column_products(const ColumnProductsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.columns == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_lanes(has_lanes<T>(args.columns, {args.a, args.b}), [&](auto wide) {
      constexpr int V = decltype(wide)::value ? kMostLanes<T> : 1;
      const int64_t work = row_pieces(args.rows) * (args.columns / V);
      if (work > 0)
        RK_LAUNCH((product_pieces_kernel<T, V>), blocks_for(work), kThreads, 0, stream, args);
      RK_LAUNCH((product_totals_kernel<compute_t<T>>), blocks_for(2 * args.columns), kThreads, 0,
                stream, args);
    });
  });
}

void column_combine(const ColumnCombineArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_lanes(has_lanes<T>(args.columns, {args.a, args.b, args.y}), [&](auto wide) {
      constexpr int V = decltype(wide)::value ? kMostLanes<T> : 1;
      const int64_t work = row_pieces(args.rows) * (args.columns / V);
      if (work > 0)
        RK_LAUNCH((column_combine_kernel<T, V>), blocks_for(work), kThreads, 0, stream, args);
    });
  });
}

}  // namespace regkern::cuda
