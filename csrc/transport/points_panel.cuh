#pragma once

#include <type_traits>

#include "core/vector.cuh"
#include "transport/points.h"

// What the CUDA kernels of clouds of points share: the walk of a block over the panels.

namespace regkern::cuda {
namespace {

using namespace transport;

constexpr int kThreads = 128, kWarps = kThreads / kPointLanes;
constexpr int kDepth = 16;  // dimensions of a panel that are in shared memory at once

// Rows of a warp: their sums with a panel fill the registers.
template <typename C>
constexpr int kRowsOf = sizeof(C) == 4 ? 8 : 4;

template <typename C>
__global__ void __launch_bounds__(256, 4) points_bias_kernel(PointPairs p) {
  const int64_t padded = point_panels(p.m) * kPointPanel, all = p.batch * padded;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < all;
       at += step)
    static_cast<C*>(p.bias)[at] = column_bias<C>(p, at / padded, at % padded);
}

// What a block has of a panel and of its rows at once, as shared memory.
template <typename C>
using Wide = Vector<C, kLanesOf<C>>;
template <typename C>
constexpr int kPanelPart = kDepth * kPointPanel / kLanesOf<C>;
template <typename C>
constexpr int kRowsPart = kDepth * kRowsOf<C> * kWarps / kLanesOf<C>;

// f(panel, sums) for the panels in order: sums[r][g] over the dimensions of row r and group g of
// this lane.
template <PointKernel kKernel, typename C, typename F>
__device__ __forceinline__ void for_each_panel(const PointPairs& p, int64_t batch, int64_t row,
                                               Wide<C>* shared_ys, Wide<C>* shared_xs, const F& f) {
  constexpr int kWide = kLanesOf<C>;
  C *const ys = &shared_ys[0].v[0], *const xs = &shared_xs[0].v[0];
  constexpr int kRows = kRowsOf<C>, kAll = kRows * kWarps;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kPointLanes;
  const int mine = thread / kPointLanes * kRows;
  const int64_t panels = point_panels(p.m);
  const C scale = pair_scale<C>(p, batch);
  const C* const rows = static_cast<const C*>(p.rows) + (batch * p.n + row) * p.d;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const C* const from =
        static_cast<const C*>(p.panels) + (batch * panels + panel) * p.d * kPointPanel;
    C sums[kRows][kPointGroups];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int g = 0; g < kPointGroups; ++g) sums[r][g] = C(0);
    }
    for (int64_t first = 0; first < p.d; first += kDepth) {
      const int depth = p.d - first < kDepth ? static_cast<int>(p.d - first) : kDepth;
      __syncthreads();
      for (int at = thread; at < depth * (kPointPanel / kWide); at += kThreads)
        shared_ys[at] = load_vector<C, kWide>(from + first * kPointPanel + at * kWide);
      for (int at = thread; at < kAll * kDepth; at += kThreads) {
        const int r = at / kDepth, k = at % kDepth;
        const C value = row + r < p.n && k < depth ? rows[r * p.d + first + k] : C(0);
        xs[k * kAll + r] = kKernel == PointKernel::product ? value * scale : value;
      }
      __syncthreads();
#pragma unroll 2
      for (int k = 0; k < depth; ++k) {
        C y[kPointGroups];
#pragma unroll
        for (int g = 0; g < kPointGroups; ++g) y[g] = ys[k * kPointPanel + g * kPointLanes + lane];
#pragma unroll
        for (int some = 0; some < kRows; some += kWide) {
          const Wide<C> x = shared_xs[(k * kAll + mine + some) / kWide];
#pragma unroll
          for (int r = 0; r < kWide; ++r) {
#pragma unroll
            for (int g = 0; g < kPointGroups; ++g)
              sums[some + r][g] = add_dimension<kKernel>(sums[some + r][g], x.v[r], y[g]);
          }
        }
      }
    }
    f(panel, sums);
  }
}

// The exponents of a panel, in place of its sums.
template <PointKernel kKernel, int kRows, typename C>
__device__ __forceinline__ void to_exponents(const PointPairs& p, int64_t batch, int64_t panel,
                                             C scale, C (&sums)[kRows][kPointGroups]) {
  const C* const bias = static_cast<const C*>(p.bias) +
                        (batch * point_panels(p.m) + panel) * kPointPanel +
                        threadIdx.x % kPointLanes;
#pragma unroll
  for (int g = 0; g < kPointGroups; ++g) {
    const C b = bias[g * kPointLanes];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r][g] = exponent_of<kKernel>(b, sums[r][g], scale);
  }
}

// Lane 0 has the sum, folded in halves.
template <typename C>
__device__ __forceinline__ C fold_lanes(C value) {
  for (int half = kPointLanes / 2; half > 0; half /= 2)
    value += __shfl_down_sync(kWholeWarp, value, half);
  return value;
}

template <typename C>
__device__ __forceinline__ C greater_of(C a, C b) {
  return a > b ? a : b;
}

// A panel of exponents joins the lanes of the rows.
template <int kRows, typename C>
__device__ __forceinline__ void join_panel(const C (&e)[kRows][kPointGroups], C (&most)[kRows],
                                           C (&lanes)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const C before = most[r];
    const C top =
        greater_of(greater_of(greater_of(e[r][0], e[r][1]), greater_of(e[r][2], e[r][3])), before);
    const C by = shift_by(top);
    if (top != before) {
      lanes[r] *= power_of_two_at(before - by);
      most[r] = top;
    }
    lanes[r] += (power_of_two_at(e[r][0] - by) + power_of_two_at(e[r][1] - by)) +
                (power_of_two_at(e[r][2] - by) + power_of_two_at(e[r][3] - by));
  }
}

// The softmin of a row from its lanes; lane 0 has it.
template <typename C>
__device__ __forceinline__ double end_row(const PointPairs& p, int64_t batch, int64_t i, C most,
                                          C lanes) {
  C top = most;
  for (int half = kPointLanes / 2; half > 0; half /= 2)
    top = greater_of(__shfl_xor_sync(kWholeWarp, top, half), top);
  const C by = shift_by(top);
  return softmin_of(p, batch, i, by, fold_lanes(lanes * power_of_two_at(most - by)));
}

template <typename C>
void fill_bias(const PointPairs& p, cudaStream_t stream) {
  const int64_t all = p.batch * point_panels(p.m) * kPointPanel;
  if (all > 0)
    RK_LAUNCH((points_bias_kernel<C>), grid_blocks(ceil_div(all, int64_t{256}), 8), 256, 0, stream,
              p);
}

// f(zero of the compute type, kernel) of these pairs.
template <bool kSquares, typename F>
void dispatch_pairs(const PointPairs& p, const F& f) {
  using Product = std::integral_constant<PointKernel, PointKernel::product>;
  using Distance = std::integral_constant<PointKernel, PointKernel::distance>;
  const auto as = [&](auto zero) {
    if constexpr (kSquares) {
      using Square = std::integral_constant<PointKernel, PointKernel::square>;
      if (p.kernel == PointKernel::square) return f(zero, Square{});
    }
    p.kernel == PointKernel::product ? f(zero, Product{}) : f(zero, Distance{});
  };
  p.wide ? as(double{}) : as(float{});
}

}  // namespace
}  // namespace regkern::cuda
