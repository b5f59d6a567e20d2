#include "core/vector.cuh"
#include "transport/dense.h"

namespace regkern::cuda {
namespace {

using namespace transport;

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kBlocksPerSm = 16;
static_assert(kRowLanes == kWarp && kPanel == kWarp && kTile % kWarp == 0);

template <typename C>
__device__ __forceinline__ C infinity() {
  return static_cast<C>(__builtin_inf());
}

__device__ __forceinline__ bool skips(const DenseArgs& args, int64_t p) {
  return args.done != nullptr && args.done[p] != 0;
}

template <typename C>
__global__ void __launch_bounds__(kThreads, 4) transport_prepare_kernel(DenseArgs args) {
  const int64_t rows = args.f_raw == nullptr ? args.batch * args.n : 0;
  const int64_t columns = args.batch * args.m, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows + columns;
       i += step) {
    if (i < columns) {
      static_cast<C*>(args.column_shift)[i] = shift_of<C>(args.g[i]);
      if (args.f_raw != nullptr)
        static_cast<C*>(args.column_weight)[i] = weight_of<C>(args.b[i], args.g[i]);
    } else {
      const int64_t r = i - columns;
      static_cast<C*>(args.row_shift)[r] = shift_of<C>(args.f_next[r]);
      static_cast<C*>(args.row_weight)[r] = weight_of<C>(args.a[r], args.f_next[r]);
    }
  }
}

// A block decides whether the kernel of a problem is made in this iteration, and weighs its
// columns.
template <typename C>
__global__ void __launch_bounds__(kThreads, 4) transport_weigh_kernel(DenseArgs args) {
  const int64_t m = args.m;
  for (int64_t p = blockIdx.x; p < args.batch; p += gridDim.x) {
    if (skips(args, p)) continue;
    const double eps = args.eps[p];
    const double *const b = args.b + p * m, *const g = args.g + p * m;
    C* const shift = static_cast<C*>(args.column_shift) + p * m;
    C* const weight = static_cast<C*>(args.column_weight) + p * m;
    bool stale = args.kernel_eps[p] != eps;
    for (int64_t j = threadIdx.x; j < m && !stale; j += kThreads)
      stale = is_stale<C>(shift[j], g[j], eps);
    stale = __syncthreads_or(stale ? 1 : 0) != 0;
    for (int64_t j = threadIdx.x; j < m; j += kThreads) {
      if (stale) shift[j] = shift_of<C>(g[j]);
      weight[j] = stale ? weight_of<C>(b[j], g[j]) : moved_weight<C>(shift[j], b[j], g[j], eps);
    }
    if (threadIdx.x == 0) {
      args.kernel_eps[p] = eps;
      args.fresh[p] = stale ? 1 : 0;
    }
    __syncthreads();
  }
}

// Σ_j b_j e_j of a row, by a warp. Lane by lane and tile by tile as on the CPU.
template <typename T, typename C>
__device__ __forceinline__ double row_sum(const T* cost, const C* shift, const C* weight, C row,
                                          C unit, int64_t m) {
  const int lane = threadIdx.x % kWarp;
  double total = 0.0;
  for (int64_t first = 0; first < m; first += kTile) {
    const int64_t end = first + kTile < m ? first + kTile : m;
    C sum = C(0);
#pragma unroll 8
    for (int64_t j = first + lane; j < end; j += kWarp)
      sum += weight[j] * power(exponent(row, C(widen(cost[j])), shift[j], unit));
    for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_down_sync(kWholeWarp, sum, half);
    total += static_cast<double>(sum);
  }
  return __shfl_sync(kWholeWarp, total, 0);
}

// Of powers that are kept.
template <typename C>
__device__ __forceinline__ double kept_sum(const C* kernel, const C* weight, int64_t m) {
  const int lane = threadIdx.x % kWarp;
  double total = 0.0;
  for (int64_t first = 0; first < m; first += kTile) {
    const int64_t end = first + kTile < m ? first + kTile : m;
    C sum = C(0);
#pragma unroll 8
    for (int64_t j = first + lane; j < end; j += kWarp) sum += weight[j] * kernel[j];
    for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_down_sync(kWholeWarp, sum, half);
    total += static_cast<double>(sum);
  }
  return __shfl_sync(kWholeWarp, total, 0);
}

template <typename T, typename C>
__device__ __forceinline__ C row_peak(const T* cost, const C* shift, const C* weight, int64_t m) {
  C peak = -infinity<C>();
  for (int64_t j = threadIdx.x % kWarp; j < m; j += kWarp) {
    const C x = weight[j] > C(0) ? shift[j] - C(widen(cost[j])) : -infinity<C>();
    peak = x > peak ? x : peak;
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const C other = __shfl_xor_sync(kWholeWarp, peak, offset);
    peak = other > peak ? other : peak;
  }
  return peak;
}

// Powers of a row, kept, and their sum.
template <typename T, typename C>
__device__ __forceinline__ double keep_row(const T* cost, const C* shift, const C* weight, C row,
                                           C unit, int64_t m, C* kernel) {
  for (int64_t j = threadIdx.x % kWarp; j < m; j += kWarp)
    kernel[j] = power(exponent(row, C(widen(cost[j])), shift[j], unit));
  return kept_sum(kernel, weight, m);
}

// A warp has a row of a kernel, of which a lane reads what it has written.
template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    transport_kept_rows_kernel(DenseArgs args) {
  using C = compute_t<T>;
  const int64_t rows = args.batch * args.n, m = args.m;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; i < rows;
       i += step) {
    const int64_t p = i / args.n;
    if (skips(args, p)) continue;
    const double eps = args.eps[p];
    const C unit = unit_of<C>(eps);
    const T* const cost = static_cast<const T*>(args.cost) + i * m;
    const C* const shift = static_cast<const C*>(args.column_shift) + p * m;
    const C* const weight = static_cast<const C*>(args.column_weight) + p * m;
    C* const kernel = static_cast<C*>(args.kernel) + i * kernel_stride(m);
    const bool fresh = args.fresh[p] != 0;
    C row = fresh ? shift_of<C>(args.f[i]) : static_cast<const C*>(args.row_shift)[i];
    double sum =
        fresh ? keep_row(cost, shift, weight, row, unit, m, kernel) : kept_sum(kernel, weight, m);
    if (!fresh && !sum_holds<C>(sum) && sum == sum)
      sum = keep_row(cost, shift, weight, row, unit, m, kernel);
    double raw = sum;
    if (sum_holds<C>(sum)) {
      raw = potential_of(row, sum, eps);
    } else if (sum == sum) {
      const C peak = row_peak(cost, shift, weight, m);
      raw = infinity<double>();
      if (peak != -infinity<C>()) {
        row = -peak;
        sum = keep_row(cost, shift, weight, row, unit, m, kernel);
        raw = sum != sum ? sum : potential_of(row, sum, eps);
      }
    }
    const RowUpdate<C> update = update_row(args.f[i], raw, row, args.a[i], eps,
                                           damping_of(args.rho_a[p], eps), args.omega[p]);
    if (update.far) keep_row(cost, shift, weight, update.shift, unit, m, kernel);
    if (threadIdx.x % kWarp != 0) continue;
    args.f_raw[i] = raw;
    args.f_next[i] = update.next;
    static_cast<C*>(args.row_shift)[i] = update.shift;
    static_cast<C*>(args.row_weight)[i] = update.weight;
  }
}

// A warp has a row.
template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    transport_rows_kernel(DenseArgs args) {
  using C = compute_t<T>;
  const int64_t rows = args.batch * args.n, m = args.m;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; i < rows;
       i += step) {
    const int64_t p = i / args.n;
    if (skips(args, p)) continue;
    const double eps = args.eps[p];
    const C unit = unit_of<C>(eps);
    const T* const cost = static_cast<const T*>(args.cost) + i * m;
    const C* const shift = static_cast<const C*>(args.column_shift) + p * m;
    const C* const weight = static_cast<const C*>(args.column_weight) + p * m;
    C row = shift_of<C>(args.f[i]);
    double sum = row_sum(cost, shift, weight, row, unit, m);
    double raw = sum;
    if (sum_holds<C>(sum)) {
      raw = potential_of(row, sum, eps);
    } else if (sum == sum) {
      const C peak = row_peak(cost, shift, weight, m);
      raw = infinity<double>();
      if (peak != -infinity<C>()) {
        row = -peak;
        sum = row_sum(cost, shift, weight, row, unit, m);
        raw = sum != sum ? sum : potential_of(row, sum, eps);
      }
    }
    if (threadIdx.x % kWarp != 0) continue;
    args.f_raw[i] = raw;
    if (args.g_raw == nullptr) continue;
    const RowUpdate<C> update = update_row(args.f[i], raw, row, args.a[i], eps,
                                           damping_of(args.rho_a[p], eps), args.omega[p]);
    args.f_next[i] = update.next;
    static_cast<C*>(args.row_shift)[i] = update.shift;
    static_cast<C*>(args.row_weight)[i] = update.weight;
  }
}

// Neighbours of a thread: as many as travel together where rows start on multiples of them.
template <typename T>
bool travel_together(const void* data, int64_t stride) {
  return is_aligned(data) && stride % kLanesOf<T> == 0;
}

template <int V, typename C>
__device__ __forceinline__ void store_sums(const C (&sums)[V], C* to) {
  constexpr int kAtOnce = V < kLanesOf<C> ? V : kLanesOf<C>;
#pragma unroll
  for (int v = 0; v < V; v += kAtOnce) {
    Vector<C, kAtOnce> some;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) some.v[k] = sums[v + k];
    store_vector(some, to + v);
  }
}

// A thread has V columns of a chunk of rows.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 4) transport_columns_kernel(DenseArgs args) {
  using C = compute_t<T>;
  const int64_t n = args.n, m = args.m, chunk = chunk_rows(n), chunks = chunk_count(n);
  const int64_t groups = ceil_div(m, int64_t{kThreads} * V), all = args.batch * chunks * groups;
  for (int64_t task = blockIdx.x; task < all; task += gridDim.x) {
    const int64_t j = (task % groups * kThreads + threadIdx.x) * V, c = task / groups % chunks;
    const int64_t p = task / groups / chunks;
    if (j >= m || skips(args, p)) continue;
    const C unit = unit_of<C>(args.eps[p]);
    C shift[V], sums[V] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) shift[v] = static_cast<const C*>(args.column_shift)[p * m + j + v];
    const int64_t first = c * chunk, end = first + chunk < n ? first + chunk : n;
    const C* const row = static_cast<const C*>(args.row_shift) + p * n;
    const C* const weight = static_cast<const C*>(args.row_weight) + p * n;
    const T* const cost = static_cast<const T*>(args.cost) + p * n * m + j;
#pragma unroll(V > 1 ? 2 : 8)
    for (int64_t i = first; i < end; ++i) {
      const Vector<T, V> costs = load_vector<T, V>(cost + i * m);
#pragma unroll
      for (int v = 0; v < V; ++v)
        sums[v] += weight[i] * power(exponent(row[i], C(widen(costs.v[v])), shift[v], unit));
    }
    store_sums<V>(sums, static_cast<C*>(args.partials) + (p * chunks + c) * m + j);
  }
}

template <typename C, int V>
__global__ void __launch_bounds__(kThreads, 4) transport_kept_columns_kernel(DenseArgs args) {
  const int64_t n = args.n, m = args.m, chunk = chunk_rows(n), chunks = chunk_count(n);
  const int64_t groups = ceil_div(m, int64_t{kThreads} * V), all = args.batch * chunks * groups;
  const int64_t stride = kernel_stride(m);
  for (int64_t task = blockIdx.x; task < all; task += gridDim.x) {
    const int64_t j = (task % groups * kThreads + threadIdx.x) * V, c = task / groups % chunks;
    const int64_t p = task / groups / chunks;
    if (j >= m || skips(args, p)) continue;
    const int64_t first = c * chunk, end = first + chunk < n ? first + chunk : n;
    const C* const weight = static_cast<const C*>(args.row_weight) + p * n;
    const C* const kernel = static_cast<const C*>(args.kernel) + p * n * stride + j;
    C sums[V] = {};
#pragma unroll 8
    for (int64_t i = first; i < end; ++i) {
      const Vector<C, V> powers = load_vector<C, V>(kernel + i * stride);
#pragma unroll
      for (int v = 0; v < V; ++v) sums[v] += weight[i] * powers.v[v];
    }
    store_sums<V>(sums, static_cast<C*>(args.partials) + (p * chunks + c) * m + j);
  }
}

// A warp has a panel of columns.
template <typename C>
__global__ void __launch_bounds__(kThreads, 4) transport_fold_kernel(DenseArgs args) {
  const int64_t m = args.m, chunks = chunk_count(args.n), panels = ceil_div(m, int64_t{kPanel});
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  const int lane = threadIdx.x % kWarp;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
       task < args.batch * panels; task += step) {
    const int64_t p = task / panels, j = task % panels * kPanel + lane;
    const bool there = j < m && !skips(args, p);
    bool again = false;
    if (there) {
      double sum = 0.0;
      for (int64_t c = 0; c < chunks; ++c)
        sum += static_cast<double>(static_cast<const C*>(args.partials)[(p * chunks + c) * m + j]);
      // What is computed again is marked by the sum's place: no potential is −∞.
      double out = sum;
      if (sum_holds<C>(sum))
        out = potential_of(static_cast<const C*>(args.column_shift)[p * m + j], sum, args.eps[p]);
      else if (sum == sum)
        again = true;
      args.g_raw[p * m + j] = again ? -infinity<double>() : out;
    }
    const unsigned any = __ballot_sync(kWholeWarp, again);
    if (lane == 0) args.again[task] = any != 0u;
  }
}

// A block has a panel, a warp every kWarps-th chunk of its rows.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4) transport_again_kernel(DenseArgs args) {
  using C = compute_t<T>;
  using PeakRow = C[kPanel];
  using SumRow = double[kPanel];
  RK_SHARED(PeakRow, peaks, kWarps);
  RK_SHARED(SumRow, sums, kMostChunks);
  const int64_t n = args.n, m = args.m, chunk = chunk_rows(n), chunks = chunk_count(n);
  const int64_t panels = ceil_div(m, int64_t{kPanel});
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t task = blockIdx.x; task < args.batch * panels; task += gridDim.x) {
    if (args.again[task] == 0) continue;
    const int64_t p = task / panels, j = task % panels * kPanel + lane;
    const bool there = j < m;
    const double eps = args.eps[p];
    const C unit = unit_of<C>(eps);
    const double* const from = args.f_next + p * n;
    const double* const mass = args.a + p * n;
    const T* const cost = static_cast<const T*>(args.cost) + p * n * m + (there ? j : 0);
    C peak = -infinity<C>();
    for (int64_t i = warp; i < n; i += kWarps) {
      const C x = weight_of<C>(mass[i], from[i]) > C(0)
                      ? shift_of<C>(from[i]) - C(widen(cost[i * m]))
                      : -infinity<C>();
      peak = x > peak ? x : peak;
    }
    peaks[warp][lane] = peak;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) peak = peaks[w][lane] > peak ? peaks[w][lane] : peak;
    for (int64_t c = warp; c < chunks; c += kWarps) {
      const int64_t first = c * chunk, end = first + chunk < n ? first + chunk : n;
      C sum = C(0);
      for (int64_t i = first; i < end; ++i)
        sum += weight_of<C>(mass[i], from[i]) *
               power(exponent(shift_of<C>(from[i]), C(widen(cost[i * m])), -peak, unit));
      sums[c][lane] = static_cast<double>(sum);
    }
    __syncthreads();
    if (warp == 0 && there && args.g_raw[p * m + j] == -infinity<double>()) {
      double total = 0.0;
      for (int64_t c = 0; c < chunks; ++c) total += sums[c][lane];
      double out = infinity<double>();
      if (peak != -infinity<C>()) out = total != total ? total : potential_of(-peak, total, eps);
      args.g_raw[p * m + j] = out;
    }
    __syncthreads();
  }
}

// A warp has kPlanRows rows of a problem, a lane V of their columns at a time, whose potentials it
// reads once.
constexpr int kPlanRows = 4;

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 4) transport_plan_kernel(DensePlanArgs args) {
  using C = compute_t<T>;
  const int64_t n = args.n, m = args.m, groups = ceil_div(n, int64_t{kPlanRows});
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
       task < args.batch * groups; task += step) {
    const int64_t p = task / groups, first = task % groups * kPlanRows;
    const int64_t end = first + kPlanRows < n ? first + kPlanRows : n;
    const C unit = unit_of<C>(args.eps[p]);
    for (int64_t j = threadIdx.x % kWarp * V; j < m; j += kWarp * V) {
      C shift[V], weight[V], other[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const double g = args.g[p * m + j + v];
        shift[v] = shift_of<C>(g);
        weight[v] = weight_of<C>(args.b[p * m + j + v], g);
        other[v] = args.q != nullptr ? static_cast<C>(args.q[p * m + j + v]) : C(0);
      }
#pragma unroll(sizeof(T) == 2 ? 1 : 2)
      for (int64_t i = p * n + first; i < p * n + end; ++i) {
        const C row = shift_of<C>(args.f[i]), mass = weight_of<C>(args.a[i], args.f[i]);
        const C own = args.p != nullptr ? static_cast<C>(args.p[i]) : C(0);
        const Vector<T, V> costs = load_vector<T, V>(static_cast<const T*>(args.cost) + i * m + j);
        Vector<T, V> plan;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const C cost = widen(costs.v[v]);
          narrow(plan_element(exponent(row, cost, shift[v], unit), mass, weight[v], own + other[v]),
                 plan.v + v);
        }
        store_vector(plan, static_cast<T*>(args.out) + i * m + j);
      }
    }
  }
}

}  // namespace

void transport_dense(const DenseArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    const auto blocks = [](int64_t work, int per_block) {
      return grid_blocks(ceil_div(work, int64_t{per_block}), kBlocksPerSm);
    };
    const int64_t n = args.n, m = args.m, panels = ceil_div(m, int64_t{kPanel});
    const auto tasks = [&](int width) {
      return args.batch * chunk_count(n) * ceil_div(m, int64_t{kThreads} * width);
    };
    if (args.kernel != nullptr) {
      RK_LAUNCH((transport_weigh_kernel<C>), blocks(args.batch, 1), kThreads, 0, stream, args);
      RK_LAUNCH((transport_kept_rows_kernel<T>), blocks(args.batch * n, kWarps), kThreads, 0,
                stream, args);
      // A multiple of 16 bytes is from one row of the kernel to the next, not of the sums.
      if (travel_together<C>(args.kernel, m) && is_aligned(args.partials))
        RK_LAUNCH((transport_kept_columns_kernel<C, kLanesOf<C>>), blocks(tasks(kLanesOf<C>), 1),
                  kThreads, 0, stream, args);
      else
        RK_LAUNCH((transport_kept_columns_kernel<C, 1>), blocks(tasks(1), 1), kThreads, 0, stream,
                  args);
    } else {
      RK_LAUNCH((transport_prepare_kernel<C>),
                blocks(args.batch * (m + (args.f_raw == nullptr ? n : 0)), kThreads), kThreads, 0,
                stream, args);
      if (args.f_raw != nullptr)
        RK_LAUNCH((transport_rows_kernel<T>), blocks(args.batch * n, kWarps), kThreads, 0, stream,
                  args);
      if (args.g_raw == nullptr) return;
      if (travel_together<T>(args.cost, m) && is_aligned(args.partials))
        RK_LAUNCH((transport_columns_kernel<T, kLanesOf<T>>), blocks(tasks(kLanesOf<T>), 1),
                  kThreads, 0, stream, args);
      else
        RK_LAUNCH((transport_columns_kernel<T, 1>), blocks(tasks(1), 1), kThreads, 0, stream, args);
    }
    RK_LAUNCH((transport_fold_kernel<C>), blocks(args.batch * panels, kWarps), kThreads, 0, stream,
              args);
    RK_LAUNCH((transport_again_kernel<T>), blocks(args.batch * panels, 1), kThreads, 0, stream,
              args);
  });
}

void transport_dense_plan(const DensePlanArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto blocks = grid_blocks(
        ceil_div(args.batch * ceil_div(args.n, int64_t{kPlanRows}), int64_t{kWarps}), kBlocksPerSm);
    if (travel_together<T>(args.cost, args.m) && is_aligned(args.out))
      RK_LAUNCH((transport_plan_kernel<T, kLanesOf<T>>), blocks, kThreads, 0, stream, args);
    else
      RK_LAUNCH((transport_plan_kernel<T, 1>), blocks, kThreads, 0, stream, args);
  });
}

}  // namespace regkern::cuda
