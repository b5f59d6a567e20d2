#include "core/list_sums.cuh"
#include "proximal/elementwise.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

using Count = unsigned long long;  // what atomicAdd takes

// Any law, as a call: with all of them in line in eight lanes, a kernel would be a megabyte.
template <typename C>
__device__ __noinline__ C shrunk_by(Law law, Point<C> p, C x, C t, C shape) {
  C y = C(0);
  dispatch_law(
      law, [&](auto constant) { y = shrunk_element<decltype(constant)::value>(p, x, t, shape); });
  return y;
}
template <typename C>
__device__ __noinline__ ElementGradient<C> gradient_by(Law law, Point<C> p, C g, C x, C t,
                                                       C shape) {
  ElementGradient<C> d{};
  dispatch_law(law, [&](auto constant) {
    d = shrunk_gradient<decltype(constant)::value>(p, g, x, t, shape);
  });
  return d;
}
template <typename C>
__device__ __noinline__ Penalised<C> penalty_by(Law law, C r, C lam, C shape) {
  Penalised<C> out{};
  dispatch_law(law,
               [&](auto constant) { out = penalty<decltype(constant)::value>(r, lam, shape); });
  return out;
}

// The laws that have a kernel of their own, for tensors without weights: the others are not bound
// by memory, or not run over whole networks.
template <typename F>
bool dispatch_fast(Law law, F&& f) {
  if (law == Law::soft) return f(LawConstant<Law::soft>{}), true;
  if (law == Law::hard) return f(LawConstant<Law::hard>{}), true;
  if (law == Law::scad) return f(LawConstant<Law::scad>{}), true;
  if (law == Law::mcp) return f(LawConstant<Law::mcp>{}), true;
  return false;
}

// t and shape of a thread's lane.
template <typename C>
__device__ __forceinline__ C varied(const void* each, int64_t e, bool there, C factor, C one) {
  return each != nullptr && there ? factor * static_cast<const C*>(each)[e] : one;
}

// f(place, row, e, left) for every tile, with what this thread has of it. Counts zeros.
template <typename T, typename F>
__device__ __forceinline__ void shrink_tiles(const ListChunk<ShrinkRow>& chunk, Count* zeros,
                                             int tiles, F&& f) {
  RK_SHARED(Count, counted, 1);
  if (threadIdx.x == 0) counted[0] = 0;
  __syncthreads();
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  int found = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const ShrinkRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    if (left <= 0) continue;
    const T* x = static_cast<const T*>(row.x);
    T* y = static_cast<T*>(row.y);
    T v[kListLanes];
    load_lanes(x + e, left, aligned_for_vectors(x), v);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      narrow(f(row, widen(v[i]), e + i, i < left), v + i);
      found += i < left && widen(v[i]) == compute_t<T>(0) ? 1 : 0;
    }
    store_lanes(v, left, aligned_for_vectors(y), y + e);
  }
  found = warp_sum(found);
  if (threadIdx.x % 32 == 0) atomicAdd(counted, static_cast<Count>(found));
  __syncthreads();
  if (threadIdx.x == 0 && counted[0] != 0) atomicAdd(zeros, counted[0]);
}

template <typename T, Law kLaw>
__global__ void __launch_bounds__(kListThreads)
    shrink_fast_kernel(const __grid_constant__ ListChunk<ShrinkRow> chunk, LawArgs law,
                       Count* zeros, int tiles) {
  using C = compute_t<T>;
  const Point<C> p = load_point<C>(law);
  shrink_tiles<T>(chunk, zeros, tiles, [&](const ShrinkRow&, C x, int64_t, bool) {
    return shrunk_element<kLaw>(p, x, p.t, p.shape);
  });
}

template <typename T>
__global__ void __launch_bounds__(kListThreads)
    shrink_kernel(const __grid_constant__ ListChunk<ShrinkRow> chunk, LawArgs law, Count* zeros,
                  int tiles) {
  using C = compute_t<T>;
  const Point<C> p = load_point<C>(law);
  shrink_tiles<T>(chunk, zeros, tiles, [&](const ShrinkRow& row, C x, int64_t e, bool there) {
    return shrunk_by(law.law, p, x, varied(row.weights, e, there, p.t, p.t),
                     varied(row.shapes, e, there, C(1), p.shape));
  });
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
                          T g[kListLanes], x[kListLanes];
                          const T* from = static_cast<const T*>(row.x);
                          const T* grad = static_cast<const T*>(row.g);
                          load_lanes(grad + e, left, aligned_for_vectors(grad), g);
                          load_lanes(from + e, left, aligned_for_vectors(from), x);
#pragma unroll
                          for (int i = 0; i < kListLanes; ++i) {
                            const bool there = i < left;
                            const C w = varied(row.weights, e + i, there, C(1), C(1));
                            const ElementGradient<C> d =
                                gradient_by(law.law, p, widen(g[i]), widen(x[i]), p.t * w,
                                            varied(row.shapes, e + i, there, C(1), p.shape));
                            narrow(d.x, g + i);
                            if (there) {
                              if (row.dweights != nullptr)
                                static_cast<C*>(row.dweights)[e + i] = d.t * p.t;
                              lanes[0][i] += static_cast<double>(d.t * w);
                              lanes[1][i] += static_cast<double>(d.lam);
                            }
                          }
                          T* to = static_cast<T*>(row.dx);
                          store_lanes(g, left, aligned_for_vectors(to), to + e);
                        });
}

template <typename T>
__global__ void __launch_bounds__(kListThreads)
    penalty_kernel(const __grid_constant__ ListChunk<PenaltyRow> chunk, LawArgs law,
                   bool accumulate, double* spans) {
  using C = compute_t<T>;
  RK_SHARED(double, shared, kListThreads);
  const Point<C> p = load_point<C>(law);
  sum_span<kShrinkSums>(chunk, static_cast<int>(blockIdx.x), spans, shared,
                        [&](const PenaltyRow& row, int64_t e, int64_t left,
                            double (&lanes)[kShrinkSums][kLaneGroup]) {
                          T x[kListLanes], dx[kListLanes] = {};
                          const T* from = static_cast<const T*>(row.x);
                          T* to = static_cast<T*>(row.dx);
                          load_lanes(from + e, left, aligned_for_vectors(from), x);
                          if (accumulate && to != nullptr)
                            load_lanes(to + e, left, aligned_for_vectors(to), dx);
#pragma unroll
                          for (int i = 0; i < kListLanes; ++i) {
                            const C v = widen(x[i]),
                                    w = varied(row.weights, e + i, i < left, C(1), C(1));
                            const Penalised<C> out = penalty_by(law.law, fabs(v), p.lam, p.shape);
                            if (i < left) {
                              lanes[0][i] += static_cast<double>(w * out.value);
                              lanes[1][i] += static_cast<double>(w * out.by_lam);
                            }
                            const C d = p.t * (w * (v < C(0) ? -out.by_r : out.by_r));
                            narrow(accumulate ? d + widen(dx[i]) : d, dx + i);
                          }
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
  auto* zeros = reinterpret_cast<Count*>(args.zeros);
  zero_async(args.zeros, sizeof(int64_t), stream);
  bool varied = false;
  for (int64_t i = 0; i < args.count; ++i)
    varied = varied || args.rows[i].weights != nullptr || args.rows[i].shapes != nullptr;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_chunk(
        args.rows, args.count, [&](const ListChunk<ShrinkRow>& chunk, int64_t, int64_t tiles) {
          const auto fast = [&](auto constant) {
            RK_LAUNCH((shrink_fast_kernel<T, decltype(constant)::value>), grid_blocks(tiles, 8),
                      kListThreads, 0, stream, chunk, args.law, zeros, static_cast<int>(tiles));
          };
          if (!varied && dispatch_fast(args.law.law, fast)) return;
          RK_LAUNCH((shrink_kernel<T>), grid_blocks(tiles, 8), kListThreads, 0, stream, chunk,
                    args.law, zeros, static_cast<int>(tiles));
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
