#include "core/list_sums.cuh"
#include "proximal/elementwise.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

using Count = unsigned long long;  // what atomicAdd takes

// t and shape of a thread's lanes.
template <typename C>
__device__ __forceinline__ void load_varied(const Point<C>& p, const void* weights,
                                            const void* shapes, int64_t e, int64_t left,
                                            C t[kListLanes], C shape[kListLanes]) {
  const C* w = static_cast<const C*>(weights);
  const C* a = static_cast<const C*>(shapes);
#pragma unroll
  for (int i = 0; i < kListLanes; ++i) {
    t[i] = w != nullptr && i < left ? p.t * w[e + i] : p.t;
    shape[i] = a != nullptr && i < left ? a[e + i] : p.shape;
  }
}

template <typename T>
__global__ void __launch_bounds__(kListThreads)
    shrink_kernel(const __grid_constant__ ListChunk<ShrinkRow> chunk, LawArgs law, Count* zeros,
                  int tiles) {
  using C = compute_t<T>;
  RK_SHARED(Count, counted, 1);
  if (threadIdx.x == 0) counted[0] = 0;
  __syncthreads();
  const Point<C> p = load_point<C>(law);
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  int found = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const ShrinkRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    if (left <= 0) continue;
    const T* x = static_cast<const T*>(row.x);
    T* y = static_cast<T*>(row.y);
    T in[kListLanes], out[kListLanes] = {};
    load_lanes(x + e, left, aligned_for_vectors(x), in);
    if (row.weights == nullptr && row.shapes == nullptr) {
      dispatch_law(law.law, [&](auto constant) {
#pragma unroll
        for (int i = 0; i < kListLanes; ++i)
          narrow(shrunk_element<decltype(constant)::value>(p, widen(in[i]), p.t, p.shape), out + i);
      });
    } else {
      C t[kListLanes], shape[kListLanes];
      load_varied(p, row.weights, row.shapes, e, left, t, shape);
      dispatch_law(law.law, [&](auto constant) {
#pragma unroll
        for (int i = 0; i < kListLanes; ++i)
          narrow(shrunk_element<decltype(constant)::value>(p, widen(in[i]), t[i], shape[i]),
                 out + i);
      });
    }
    store_lanes(out, left, aligned_for_vectors(y), y + e);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) found += i < left && widen(out[i]) == C(0) ? 1 : 0;
  }
  found = warp_sum(found);
  if (threadIdx.x % 32 == 0) atomicAdd(counted, static_cast<Count>(found));
  __syncthreads();
  if (threadIdx.x == 0 && counted[0] != 0) atomicAdd(zeros, counted[0]);
}

template <typename T>
__global__ void __launch_bounds__(kListThreads)
    shrink_gradient_kernel(const __grid_constant__ ListChunk<ShrinkGradientRow> chunk, LawArgs law,
                           double* spans) {
  using C = compute_t<T>;
  RK_SHARED(double, shared, kListThreads);
  const Point<C> p = load_point<C>(law);
  sum_span<kShrinkSums>(chunk, static_cast<int>(blockIdx.x), spans, shared,
                        [&](const ShrinkGradientRow& row, int64_t e, int64_t left,
                            double (&lanes)[kShrinkSums][kLaneGroup]) {
                          T g[kListLanes], x[kListLanes], dx[kListLanes] = {};
                          C t[kListLanes], shape[kListLanes];
                          const T* from = static_cast<const T*>(row.x);
                          const T* grad = static_cast<const T*>(row.g);
                          load_lanes(grad + e, left, aligned_for_vectors(grad), g);
                          load_lanes(from + e, left, aligned_for_vectors(from), x);
                          load_varied(p, row.weights, row.shapes, e, left, t, shape);
                          dispatch_law(law.law, [&](auto constant) {
#pragma unroll
                            for (int i = 0; i < kListLanes; ++i) {
                              const ElementGradient<C> d =
                                  shrunk_gradient<decltype(constant)::value>(
                                      p, widen(g[i]), widen(x[i]), t[i], shape[i]);
                              narrow(d.x, dx + i);
                              C by_t = d.t;
                              if (i < left) {
                                if (row.dweights != nullptr)
                                  static_cast<C*>(row.dweights)[e + i] = d.t * p.t;
                                if (row.weights != nullptr)
                                  by_t = d.t * static_cast<const C*>(row.weights)[e + i];
                                lanes[0][i] += static_cast<double>(by_t);
                                lanes[1][i] += static_cast<double>(d.lam);
                              }
                            }
                          });
                          T* to = static_cast<T*>(row.dx);
                          store_lanes(dx, left, aligned_for_vectors(to), to + e);
                        });
}

template <typename T>
__global__ void __launch_bounds__(kListThreads)
    penalty_kernel(const __grid_constant__ ListChunk<PenaltyRow> chunk, LawArgs law,
                   bool accumulate, double* spans) {
  using C = compute_t<T>;
  RK_SHARED(double, shared, kListThreads);
  const Point<C> p = load_point<C>(law);
  sum_span<kShrinkSums>(
      chunk, static_cast<int>(blockIdx.x), spans, shared,
      [&](const PenaltyRow& row, int64_t e, int64_t left,
          double (&lanes)[kShrinkSums][kLaneGroup]) {
        T x[kListLanes], dx[kListLanes] = {};
        const T* from = static_cast<const T*>(row.x);
        const C* weights = static_cast<const C*>(row.weights);
        T* to = static_cast<T*>(row.dx);
        load_lanes(from + e, left, aligned_for_vectors(from), x);
        if (accumulate && to != nullptr) load_lanes(to + e, left, aligned_for_vectors(to), dx);
        dispatch_law(law.law, [&](auto constant) {
#pragma unroll
          for (int i = 0; i < kListLanes; ++i) {
            const C v = widen(x[i]);
            const Penalised<C> out = penalty<decltype(constant)::value>(fabs(v), p.lam, p.shape);
            const C w = i >= left ? C(0) : weights != nullptr ? weights[e + i] : C(1);
            if (i < left) {
              lanes[0][i] += static_cast<double>(w * out.value);
              lanes[1][i] += static_cast<double>(w * out.by_lam);
            }
            const C d = p.t * (w * (v < C(0) ? -out.by_r : out.by_r));
            narrow(accumulate ? d + widen(dx[i]) : d, dx + i);
          }
        });
        if (to != nullptr) store_lanes(dx, left, aligned_for_vectors(to), to + e);
      });
}

template <typename C>
__global__ void __launch_bounds__(kTotalLanes)
    shrink_totals_kernel(const double* spans, int64_t all_spans, C* out) {
  RK_SHARED(double, shared, kTotalLanes);
  for (int k = 0; k < kShrinkSums; ++k) {
    const double sum = total_of_spans(spans + k, 0, all_spans, kShrinkSums, shared);
    if (threadIdx.x == 0) out[k] = static_cast<C>(sum);
  }
}

}  // namespace

void prox_elementwise(const ProxElementwiseArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  zero_async(args.zeros, sizeof(int64_t), stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    for_each_chunk(
        args.rows, args.count, [&](const ListChunk<ShrinkRow>& chunk, int64_t, int64_t tiles) {
          RK_LAUNCH((shrink_kernel<decltype(zero)>), grid_blocks(tiles, 8), kListThreads, 0, stream,
                    chunk, args.law, reinterpret_cast<Count*>(args.zeros), static_cast<int>(tiles));
        });
  });
}

void prox_elementwise_backward(const ProxElementwiseBackwardArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    for_each_chunk<kSpan>(args.rows, args.count,
                          [&](const ListChunk<ShrinkGradientRow>& chunk, int64_t, int64_t tiles) {
                            RK_LAUNCH((shrink_gradient_kernel<T>), tiles, kListThreads, 0, stream,
                                      chunk, args.law, args.spans);
                          });
    RK_LAUNCH((shrink_totals_kernel<C>), 1, kTotalLanes, 0, stream, args.spans, args.all_spans,
              static_cast<C*>(args.out));
  });
}

void penalty_elementwise(const PenaltyElementwiseArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    for_each_chunk<kSpan>(args.rows, args.count,
                          [&](const ListChunk<PenaltyRow>& chunk, int64_t, int64_t tiles) {
                            RK_LAUNCH((penalty_kernel<T>), tiles, kListThreads, 0, stream, chunk,
                                      args.law, args.accumulate, args.spans);
                          });
    if (args.only_dx) return;
    RK_LAUNCH((shrink_totals_kernel<C>), 1, kTotalLanes, 0, stream, args.spans, args.all_spans,
              static_cast<C*>(args.out));
  });
}

}  // namespace regkern::cuda
