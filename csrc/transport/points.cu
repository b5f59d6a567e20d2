#include "transport/points_panel.cuh"

namespace regkern::cuda {
namespace {

template <PointKernel kKernel, typename C>
__global__ void __launch_bounds__(kThreads, 4)
    points_softmin_kernel(PointSoftminArgs args, int64_t blocks_of_problem) {
  constexpr int kRows = kRowsOf<C>, kAll = kRows * kWarps;
  RK_SHARED(Wide<C>, ys, kPanelPart<C>);
  RK_SHARED(Wide<C>, xs, kRowsPart<C>);
  const PointPairs& p = args.pairs;
  const int64_t batch = blockIdx.x / blocks_of_problem;
  const int64_t row = blockIdx.x % blocks_of_problem * kAll;
  const int thread = static_cast<int>(threadIdx.x), mine = thread / kPointLanes * kRows;
  double* const out = args.out + batch * p.n + row;
  if (args.done != nullptr && args.done[batch]) return;
  if (args.wanted != nullptr) {
    const bool mine_is =
        thread < kAll && row + thread < p.n && args.wanted[batch * p.n + row + thread] != 0;
    if (!__syncthreads_or(mine_is)) return;
  }
  C most[kRows], lanes[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    most[r] = -static_cast<C>(__builtin_inf());
    lanes[r] = C(0);
  }
  const C scale = pair_scale<C>(p, batch);
  for_each_panel<kKernel, C>(p, batch, row, ys, xs, [&](int64_t panel, C(&e)[kRows][kPointGroups]) {
    to_exponents<kKernel>(p, batch, panel, scale, e);
    join_panel(e, most, lanes);
  });
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t i = row + mine + r < p.n ? row + mine + r : p.n - 1;
    const double softmin = end_row(p, batch, i, most[r], lanes[r]);
    if (thread % kPointLanes == 0 && row + mine + r < p.n &&
        (args.wanted == nullptr || args.wanted[batch * p.n + i]))
      out[mine + r] = softmin;
  }
}

template <PointKernel kKernel, typename C>
__global__ void __launch_bounds__(kThreads, 4)
    points_argmax_kernel(PointArgmaxArgs args, int64_t blocks_of_problem) {
  constexpr int kRows = kRowsOf<C>, kAll = kRows * kWarps;
  RK_SHARED(Wide<C>, ys, kPanelPart<C>);
  RK_SHARED(Wide<C>, xs, kRowsPart<C>);
  const PointPairs& p = args.pairs;
  const int64_t batch = blockIdx.x / blocks_of_problem;
  const int64_t row = blockIdx.x % blocks_of_problem * kAll;
  const int thread = static_cast<int>(threadIdx.x), mine = thread / kPointLanes * kRows;
  const int lane = thread % kPointLanes;
  C most[kRows];
  int places[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    most[r] = -static_cast<C>(__builtin_inf());
    places[r] = lane;
  }
  const C scale = pair_scale<C>(p, batch);
  for_each_panel<kKernel, C>(p, batch, row, ys, xs, [&](int64_t panel, C(&e)[kRows][kPointGroups]) {
    to_exponents<kKernel>(p, batch, panel, scale, e);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int g = 0; g < kPointGroups; ++g) {
        if (e[r][g] > most[r]) {
          most[r] = e[r][g];
          places[r] = static_cast<int>(panel * kPointPanel) + g * kPointLanes + lane;
        }
      }
    }
  });
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int half = kPointLanes / 2; half > 0; half /= 2) {
      const C other = __shfl_xor_sync(kWholeWarp, most[r], half);
      const int place = __shfl_xor_sync(kWholeWarp, places[r], half);
      if (other > most[r] || (other == most[r] && place < places[r])) {
        most[r] = other;
        places[r] = place;
      }
    }
    if (lane == 0 && row + mine + r < p.n) args.place[batch * p.n + row + mine + r] = places[r];
  }
}

// A warp has kApplyRows rows. Each lane keeps its own entries of a stretch.
template <typename C>
constexpr int kApplyRows = sizeof(C) == 4 ? 2 : 1;

template <PointKernel kKernel, int kPower, typename C>
__global__ void __launch_bounds__(kThreads, 4)
    points_apply_kernel(PointApplyArgs args, int64_t blocks_of_problem) {
  constexpr int kRows = kApplyRows<C>, kOfRow = kPointStretch * kPointGroups;
  RK_SHARED(C, entries, kRows * kOfRow * kThreads);
  const PointPairs& p = args.pairs;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kPointLanes;
  const int64_t batch = blockIdx.x / blocks_of_problem;
  const int64_t row = (blockIdx.x % blocks_of_problem * kWarps + thread / kPointLanes) * kRows;
  if (row >= p.n) return;
  const int64_t panels = point_panels(p.m), width = args.width;
  const C scale = pair_scale<C>(p, batch);
  const C* x[kRows];
  C bias_of_row[kRows];
  int64_t at[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t i = row + r < p.n ? row + r : p.n - 1;
    at[r] = batch * p.n + i;
    x[r] = static_cast<const C*>(p.rows) + at[r] * p.d;
    bias_of_row[r] = row_bias<C>(args, batch, i);
  }
  C* const mine = entries + thread;
  double totals[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) totals[r] = 0.0;
  if (panels == 0 && lane == 0) {
    for (int r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < width; ++c) static_cast<C*>(args.out)[at[r] * width + c] = C(0);
  }
  for (int64_t first = 0; first < panels; first += kPointStretch) {
    const int count =
        panels - first < kPointStretch ? static_cast<int>(panels - first) : kPointStretch;
    C sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] = C(0);
    for (int panel = 0; panel < count; ++panel) {
      const int64_t index = batch * panels + first + panel;
      const C* const y = static_cast<const C*>(p.panels) + index * p.d * kPointPanel + lane;
      const C* const bias = static_cast<const C*>(p.bias) + index * kPointPanel + lane;
      C sums[kRows][kPointGroups];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int g = 0; g < kPointGroups; ++g) sums[r][g] = C(0);
      }
      for (int64_t k = 0; k < p.d; ++k) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const C value = kKernel == PointKernel::product ? x[r][k] * scale : x[r][k];
#pragma unroll
          for (int g = 0; g < kPointGroups; ++g)
            sums[r][g] =
                add_dimension<kKernel>(sums[r][g], value, y[k * kPointPanel + g * kPointLanes]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int g = 0; g < kPointGroups; ++g) {
          const C t =
              exponent_of<kKernel>(bias[g * kPointLanes], sums[r][g], scale) + bias_of_row[r];
          const C entry = weighted_entry<kPower>(t, sums[r][g]);
          sum[r] += entry;
          mine[(r * kOfRow + panel * kPointGroups + g) * kThreads] = entry;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) totals[r] += static_cast<double>(fold_lanes(sum[r]));
    for (int64_t c = 0; c < width; ++c) {
      C products[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) products[r] = C(0);
      for (int panel = 0; panel < count; ++panel) {
        const int64_t index = batch * panels + first + panel;
        const C* const v =
            static_cast<const C*>(args.values) + (index * width + c) * kPointPanel + lane;
#pragma unroll
        for (int g = 0; g < kPointGroups; ++g) {
          const C value = v[g * kPointLanes];
#pragma unroll
          for (int r = 0; r < kRows; ++r)
            products[r] += mine[(r * kOfRow + panel * kPointGroups + g) * kThreads] * value;
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const C folded = fold_lanes(products[r]);
        C* const out = static_cast<C*>(args.out) + at[r] * width + c;
        if (lane == 0 && row + r < p.n) *out = (first == 0 ? C(0) : *out) + folded;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (lane == 0 && row + r < p.n) args.sums[at[r]] = totals[r];
}

}  // namespace

void transport_points_softmin(const PointSoftminArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const PointPairs& p = args.pairs;
  if (p.batch * p.n == 0) return;
  dispatch_pairs<true>(p, [&](auto zero, auto kernel) {
    using C = decltype(zero);
    fill_bias<C>(p, stream);
    const int64_t blocks = ceil_div(p.n, int64_t{kRowsOf<C> * kWarps});
    RK_LAUNCH((points_softmin_kernel<decltype(kernel)::value, C>), p.batch * blocks, kThreads, 0,
              stream, args, blocks);
  });
}

void transport_points_argmax(const PointArgmaxArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const PointPairs& p = args.pairs;
  if (p.batch * p.n == 0) return;
  dispatch_pairs<false>(p, [&](auto zero, auto kernel) {
    using C = decltype(zero);
    fill_bias<C>(p, stream);
    const int64_t blocks = ceil_div(p.n, int64_t{kRowsOf<C> * kWarps});
    RK_LAUNCH((points_argmax_kernel<decltype(kernel)::value, C>), p.batch * blocks, kThreads, 0,
              stream, args, blocks);
  });
}

void transport_points_apply(const PointApplyArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const PointPairs& p = args.pairs;
  if (p.batch * p.n == 0) return;
  dispatch_pairs<false>(p, [&](auto zero, auto kernel) {
    using C = decltype(zero);
    constexpr PointKernel kKernel = decltype(kernel)::value;
    fill_bias<C>(p, stream);
    const int64_t blocks = ceil_div(p.n, int64_t{kApplyRows<C> * kWarps});
    const auto launch = [&](auto power) {
      RK_LAUNCH((points_apply_kernel<kKernel, decltype(power)::value, C>), p.batch * blocks,
                kThreads, 0, stream, args, blocks);
    };
    if constexpr (kKernel == PointKernel::distance) {
      if (args.power > 0) return launch(std::integral_constant<int, 1>{});
      if (args.power < 0) return launch(std::integral_constant<int, -1>{});
    }
    launch(std::integral_constant<int, 0>{});
  });
}

}  // namespace regkern::cuda
