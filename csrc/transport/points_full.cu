#include "transport/points_full.h"
#include "transport/points_panel.cuh"

namespace regkern::cuda {
namespace {

// Rows whose sums with its column a thread has.
template <typename C>
constexpr int kColumnRows = sizeof(C) == 4 ? 16 : 8;

template <typename C>
__global__ void __launch_bounds__(256, 4) points_prepare_kernel(PointFullArgs args) {
  const PointPairs& p = args.rows;
  const int64_t padded = point_panels(p.m) * kPointPanel, all = p.batch * padded;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < all;
       at += step) {
    PointColumn<C> column{-static_cast<C>(__builtin_inf()), C(0)};
    if (at % padded < p.m) column = point_column<C>(p, at / padded, at % padded);
    static_cast<C*>(args.column_shift)[at] = column.shift;
    static_cast<C*>(args.column_weight)[at] = column.weight;
  }
}

// A warp has kRowsOf<C> rows: the transforms of those whose sums hold.
template <PointKernel kKernel, typename C>
__global__ void __launch_bounds__(kThreads, 4)
    points_rows_kernel(PointFullArgs args, int64_t blocks_of_problem) {
  constexpr int kRows = kRowsOf<C>, kAll = kRows * kWarps;
  RK_SHARED(Wide<C>, ys, kPanelPart<C>);
  RK_SHARED(Wide<C>, xs, kRowsPart<C>);
  const PointPairs& p = args.rows;
  const int64_t batch = blockIdx.x / blocks_of_problem;
  const int64_t row = blockIdx.x % blocks_of_problem * kAll;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kPointLanes;
  const int mine = thread / kPointLanes * kRows;
  if (args.done != nullptr && args.done[batch]) return;
  const C scale = pair_scale<C>(p, batch);
  const int64_t columns = batch * point_panels(p.m) * kPointPanel + lane;
  const C* const shift = static_cast<const C*>(args.column_shift) + columns;
  const C* const weight = static_cast<const C*>(args.column_weight) + columns;
  RK_SHARED(C, shifts, kAll);
  if (thread < kAll && row + thread < p.n)
    shifts[thread] = shift_before<C>(args, batch, row + thread);
  __syncthreads();
  C lanes[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) lanes[r] = C(0);
  for_each_panel<kKernel, C>(p, batch, row, ys, xs, [&](int64_t panel, C(&e)[kRows][kPointGroups]) {
#pragma unroll
    for (int g = 0; g < kPointGroups; ++g) {
      const C v = shift[panel * kPointPanel + g * kPointLanes];
      const C b = weight[panel * kPointPanel + g * kPointLanes];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        e[r][g] = power_of_two_at(exponent_of<kKernel>(shifts[mine + r] + v, e[r][g], scale)) * b;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) lanes[r] += (e[r][0] + e[r][1]) + (e[r][2] + e[r][3]);
  });
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const double sum = static_cast<double>(fold_lanes(lanes[r]));
    const int64_t i = row + mine + r;
    if (lane != 0 || i >= p.n) continue;
    const bool holds = point_sum_holds<C>(sum);
    const int64_t at = batch * p.n + i;
    args.again[at] = !holds;
    if (holds)
      args.f_raw[at] = point_potential(row_term(p, at), shifts[mine + r], sum, p.eps[batch]);
  }
}

// What rows enter the columns as.
template <typename C>
__global__ void __launch_bounds__(256, 4) points_update_kernel(PointFullArgs args) {
  const PointPairs& p = args.rows;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < p.batch * p.n;
       at += step) {
    const int64_t batch = at / p.n, i = at % p.n;
    if (args.done != nullptr && args.done[batch]) continue;
    const PointRow<C> found =
        point_row<C>(args, batch, i, args.f_raw[at], shift_before<C>(args, batch, i));
    args.f_next[at] = found.next;
    static_cast<C*>(args.row_shift)[at] = found.shift;
    static_cast<C*>(args.row_weight)[at] = found.weight;
  }
}

// A block has a panel and a chunk of rows, a thread a column.
template <PointKernel kKernel, typename C>
__global__ void __launch_bounds__(kPointPanel, 4) points_columns_kernel(PointFullArgs args) {
  constexpr int kRows = kColumnRows<C>, kWide = kLanesOf<C>;
  RK_SHARED(Wide<C>, xs, kDepth * kRows / kWide);
  RK_SHARED(C, shifts, kRows);
  RK_SHARED(C, weights, kRows);
  const PointPairs& p = args.rows;
  const int64_t panels = point_panels(p.m), chunks = point_chunks(p.n);
  const int64_t panel = blockIdx.x % panels, chunk = blockIdx.x / panels % chunks;
  const int64_t batch = blockIdx.x / panels / chunks;
  if (args.done != nullptr && args.done[batch]) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first = chunk * point_chunk_rows(p.n);
  const int64_t end = first + point_chunk_rows(p.n) < p.n ? first + point_chunk_rows(p.n) : p.n;
  const C scale = pair_scale<C>(p, batch);
  const C* const y =
      static_cast<const C*>(p.panels) + (batch * panels + panel) * p.d * kPointPanel + thread;
  const C v =
      static_cast<const C*>(args.column_shift)[(batch * panels + panel) * kPointPanel + thread];
  C sum = C(0);
  for (int64_t row = first; row < end; row += kRows) {
    const C* const rows = static_cast<const C*>(p.rows) + (batch * p.n + row) * p.d;
    const int count = end - row < kRows ? static_cast<int>(end - row) : kRows;
    __syncthreads();
    if (thread < kRows) {
      const bool there = thread < count;
      const int64_t at = batch * p.n + row + thread;
      shifts[thread] =
          there ? static_cast<const C*>(args.row_shift)[at] : -static_cast<C>(__builtin_inf());
      weights[thread] = there ? static_cast<const C*>(args.row_weight)[at] : C(0);
    }
    C e[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) e[r] = C(0);
    for (int64_t start = 0; start < p.d; start += kDepth) {
      const int depth = p.d - start < kDepth ? static_cast<int>(p.d - start) : kDepth;
      __syncthreads();
      for (int at = thread; at < kRows * kDepth; at += kPointPanel) {
        const int r = at / kDepth, k = at % kDepth;
        const C value = r < count && k < depth ? rows[r * p.d + start + k] : C(0);
        (&xs[0].v[0])[k * kRows + r] = kKernel == PointKernel::product ? value * scale : value;
      }
      __syncthreads();
#pragma unroll 2
      for (int k = 0; k < depth; ++k) {
        const C other = y[(start + k) * kPointPanel];
#pragma unroll
        for (int some = 0; some < kRows; some += kWide) {
          const Wide<C> x = xs[(k * kRows + some) / kWide];
#pragma unroll
          for (int r = 0; r < kWide; ++r)
            e[some + r] = add_dimension<kKernel>(e[some + r], x.v[r], other);
        }
      }
    }
    if (p.d == 0) __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      e[r] = weights[r] * power_of_two_at(exponent_of<kKernel>(shifts[r] + v, e[r], scale));
#pragma unroll
    for (int r = 0; r < kRows; r += 4) sum += (e[r] + e[r + 1]) + (e[r + 2] + e[r + 3]);
  }
  static_cast<C*>(
      args.partials)[((batch * chunks + chunk) * panels + panel) * kPointPanel + thread] = sum;
}

template <typename C>
__global__ void __launch_bounds__(256, 4) points_fold_kernel(PointFullArgs args) {
  const PointPairs& p = args.rows;
  const int64_t padded = point_panels(p.m) * kPointPanel, chunks = point_chunks(p.n);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < p.batch * p.m;
       at += step) {
    const int64_t batch = at / p.m, j = at % p.m;
    args.again[at] = 0;
    if (args.done != nullptr && args.done[batch]) continue;
    const C* const partial = static_cast<const C*>(args.partials) + batch * chunks * padded + j;
    double sum = 0.0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      sum += static_cast<double>(partial[chunk * padded]);
    const bool holds = point_sum_holds<C>(sum);
    args.again[at] = !holds;
    const double* const term = p.column_terms == nullptr ? nullptr : p.column_terms + at;
    const C shift = static_cast<const C*>(args.column_shift)[batch * padded + j];
    if (holds) args.g_raw[at] = point_potential(term, shift, sum, p.eps[batch]);
  }
}

}  // namespace

void transport_points_full(const PointFullArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const PointPairs& p = args.rows;
  const auto blocks = [](int64_t work) { return grid_blocks(ceil_div(work, int64_t{256}), 8); };
  dispatch_pairs<true>(p, [&](auto zero, auto kernel) {
    using C = decltype(zero);
    constexpr PointKernel kKernel = decltype(kernel)::value;
    const int64_t panels = point_panels(p.m), chunks = point_chunks(p.n);
    if (p.batch * panels > 0)
      RK_LAUNCH((points_prepare_kernel<C>), blocks(p.batch * panels * kPointPanel), 256, 0, stream,
                args);
    if (p.batch * p.n > 0) {
      const int64_t of_problem = ceil_div(p.n, int64_t{kRowsOf<C> * kWarps});
      RK_LAUNCH((points_rows_kernel<kKernel, C>), p.batch * of_problem, kThreads, 0, stream, args,
                of_problem);
      transport_points_softmin({p, args.done, args.again, args.f_raw}, context);
      RK_LAUNCH((points_update_kernel<C>), blocks(p.batch * p.n), 256, 0, stream, args);
    }
    if (p.batch * chunks * panels > 0)
      RK_LAUNCH((points_columns_kernel<kKernel, C>), p.batch * chunks * panels, kPointPanel, 0,
                stream, args);
    if (p.batch * p.m > 0)
      RK_LAUNCH((points_fold_kernel<C>), blocks(p.batch * p.m), 256, 0, stream, args);
  });
  transport_points_softmin({args.columns, args.done, args.again, args.g_raw}, context);
}

}  // namespace regkern::cuda
