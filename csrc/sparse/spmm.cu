#include "core/launch.cuh"
#include "sparse/spmm.h"

namespace regkern::cuda {
namespace {

using namespace sparse;

constexpr int kThreads = 256, kWarps = kThreads / 32;
// Rows whose results a block writes together, and features that it packs.
constexpr int kRowGroup = 16, kPackFeatures = 32;
constexpr unsigned kAll = 0xffffffffu;

// The elements of a tile that a lane has: lane, lane + 32, ….
template <int BT>
constexpr int kOwn = BT < 32 ? 1 : BT / 32;

template <typename T, int BT>
__global__ void __launch_bounds__(kThreads, 4) sparse_pack_kernel(PackArgs args) {
  using C = compute_t<T>;
  RK_SHARED(C, shared, BT * (kPackFeatures + 1));
  const T* const x = static_cast<const T*>(args.x);
  C* const out = static_cast<C*>(args.tiles);
  const int64_t blocks = ceil_div(args.features, int64_t{kPackFeatures});
  const int64_t units = ceil_div(args.batch, int64_t{BT}) * blocks;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t t = unit / blocks, f = unit % blocks * kPackFeatures;
    // Neighbours of memory belong to neighbouring threads, going in and coming out.
    for (int i = static_cast<int>(threadIdx.x); i < BT * kPackFeatures; i += kThreads) {
      const int k = args.feature_major ? i % BT : i / kPackFeatures;
      const int j = args.feature_major ? i / BT : i % kPackFeatures;
      const int64_t b = t * BT + k, feature = f + j;
      C value = C(0);
      if (b < args.batch && feature < args.features)
        value =
            widen(x[args.feature_major ? feature * args.batch + b : b * args.features + feature]);
      shared[k * (kPackFeatures + 1) + j] = value;
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < BT * kPackFeatures; i += kThreads) {
      const int k = i % BT, j = i / BT;
      if (f + j < args.features)
        out[(t * args.features + f + j) * BT + k] = shared[k * (kPackFeatures + 1) + j];
    }
    __syncthreads();
  }
}

// Results of a block, (kRowGroup, BT), activated and written to where y has them.
template <typename T, int BT>
__device__ __forceinline__ void write_block(const compute_t<T>* shared, Activation activation,
                                            bool feature_major, int64_t batch, int64_t features,
                                            int64_t b, int64_t r, T* y) {
  for (int i = static_cast<int>(threadIdx.x); i < BT * kRowGroup; i += kThreads) {
    const int k = feature_major ? i % BT : i / kRowGroup;
    const int j = feature_major ? i / BT : i % kRowGroup;
    if (b + k >= batch || r + j >= features) continue;
    y[feature_major ? (r + j) * batch + b + k : (b + k) * features + r + j] =
        narrowed<T>(activated(activation, shared[j * (BT + 1) + k]));
  }
}

// A row a warp: 32 entries are read side by side, and handed round.
template <typename T, int BT>
__global__ void __launch_bounds__(kThreads, 4) sparse_spmm_kernel(SpmmArgs args) {
  using C = compute_t<T>;
  constexpr int K = kOwn<BT>;
  RK_SHARED(C, shared, kRowGroup * (BT + 1));
  const SparseView& view = args.view;
  const C* const values = static_cast<const C*>(args.values);
  const C* const bias = static_cast<const C*>(args.bias);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t groups = ceil_div(view.rows, int64_t{kRowGroup});
  const int64_t units = ceil_div(args.batch, int64_t{BT}) * groups;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t t = unit / groups, first = unit % groups * kRowGroup;
    const C* const tile = static_cast<const C*>(args.x.data) + t * args.x.stride;
    for (int j = warp; j < kRowGroup && first + j < view.rows; j += kWarps) {
      const int64_t begin = view.offsets[first + j], end = view.offsets[first + j + 1];
      C sums[K] = {};
      for (int64_t at = begin; at < end; at += 32) {
        const int count = static_cast<int>(end - at < 32 ? end - at : 32);
        int32_t column = 0;
        C w = C(0);
        if (lane < count) {
          column = view.index[at + lane];
          w = values[view.order != nullptr ? view.order[at + lane] : at + lane];
        }
        for (int e = 0; e < count; ++e) {
          const C* const x = tile + __shfl_sync(kAll, column, e) * args.x.pitch;
          const C own = __shfl_sync(kAll, w, e);
#pragma unroll
          for (int k = 0; k < K; ++k)
            if (BT >= 32 || lane < BT) sums[k] += own * x[lane + 32 * k];
        }
      }
      const C more = bias != nullptr ? bias[first + j] : C(0);
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (BT >= 32 || lane < BT)
          shared[j * (BT + 1) + lane + 32 * k] = bias != nullptr ? sums[k] + more : sums[k];
    }
    __syncthreads();
    write_block<T, BT>(shared, args.activation, args.feature_major, args.batch, view.rows, t * BT,
                       first, static_cast<T*>(args.y));
    if (args.z != nullptr)
      write_block<T, BT>(shared, Activation::none, args.feature_major, args.batch, view.rows,
                         t * BT, first, static_cast<T*>(args.z));
    __syncthreads();
  }
}

// The sum of the products of a tile, in every thread. Lane l of the kBatchLanes has what is in the
// lanes l and l + 16 of the warp.
template <int BT, typename C>
__device__ __forceinline__ C tile_sum(const C (&products)[kOwn<BT>]) {
  C sum = C(0);
#pragma unroll
  for (int k = 0; k < kOwn<BT>; ++k) {
    sum += products[k];
    const C other = __shfl_down_sync(kAll, products[k], kBatchLanes);
    if (BT >= 32) sum += other;
  }
#pragma unroll
  for (int offset = kBatchLanes / 2; offset > 0; offset /= 2)
    sum += __shfl_xor_sync(kAll, sum, offset);
  return __shfl_sync(kAll, sum, 0);
}

template <typename T, int BT, bool kDx>
__global__ void __launch_bounds__(kThreads, 4) sparse_sddmm_kernel(SddmmArgs args) {
  using C = compute_t<T>;
  constexpr int K = kOwn<BT>;
  RK_SHARED(C, shared, kRowGroup * (BT + 1));
  const SparseView& view = args.view;
  const C* const values = static_cast<const C*>(args.values);
  C* const dvalues = static_cast<C*>(args.dvalues);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t groups = ceil_div(view.rows, int64_t{kRowGroup});
  const int64_t tiles = ceil_div(args.batch, int64_t{BT});
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const int64_t first = group * kRowGroup;
    for (int64_t t = 0; t < tiles; ++t) {
      const C* const x_tile = static_cast<const C*>(args.x.data) + t * args.x.stride;
      const C* const g_tile = static_cast<const C*>(args.g.data) + t * args.g.stride;
      for (int j = warp; j < kRowGroup && first + j < view.rows; j += kWarps) {
        const int64_t begin = view.offsets[first + j], end = view.offsets[first + j + 1];
        C sums[K] = {}, x[K] = {};
#pragma unroll
        for (int k = 0; k < K; ++k)
          if (BT >= 32 || lane < BT) x[k] = x_tile[(first + j) * args.x.pitch + lane + 32 * k];
        for (int64_t at = begin; at < end; at += 32) {
          const int count = static_cast<int>(end - at < 32 ? end - at : 32);
          int32_t column = 0;
          int64_t place = 0;
          C w = C(0), found = C(0);
          if (lane < count) {
            column = view.index[at + lane];
            place = view.order != nullptr ? view.order[at + lane] : at + lane;
            if (kDx) w = values[place];
          }
#pragma unroll 1
          for (int e = 0; e < count; ++e) {
            const C* const g = g_tile + __shfl_sync(kAll, column, e) * args.g.pitch;
            const C own = __shfl_sync(kAll, w, e);
            C products[K];
#pragma unroll
            for (int k = 0; k < K; ++k) {
              const C part = BT >= 32 || lane < BT ? g[lane + 32 * k] : C(0);
              if (kDx) sums[k] += own * part;
              products[k] = x[k] * part;
            }
            const C sum = tile_sum<BT, C>(products);
            if (lane == e) found = sum;
          }
          // Only this warp has these entries.
          if (lane < count) dvalues[place] = (t == 0 ? C(0) : dvalues[place]) + found;
        }
        if constexpr (kDx) {
#pragma unroll
          for (int k = 0; k < K; ++k)
            if (BT >= 32 || lane < BT) shared[j * (BT + 1) + lane + 32 * k] = sums[k];
        }
      }
      if constexpr (kDx) {
        __syncthreads();
        write_block<T, BT>(shared, Activation::none, args.feature_major, args.batch, view.rows,
                           t * BT, first, static_cast<T*>(args.dx));
        __syncthreads();
      }
    }
  }
}

}  // namespace

void sparse_pack(const PackArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_tile<compute_t<T>>(args.tile, [&](auto tile) {
      constexpr int BT = decltype(tile)::value;
      const int64_t units =
          ceil_div(args.batch, int64_t{BT}) * ceil_div(args.features, int64_t{kPackFeatures});
      if (units == 0) return;
      RK_LAUNCH((sparse_pack_kernel<T, BT>), grid_blocks(units, 8), kThreads, 0, stream, args);
    });
  });
}

void sparse_spmm(const SpmmArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_tile<compute_t<T>>(args.tile, [&](auto tile) {
      constexpr int BT = decltype(tile)::value;
      const int64_t units =
          ceil_div(args.batch, int64_t{BT}) * ceil_div(args.view.rows, int64_t{kRowGroup});
      RK_LAUNCH((sparse_spmm_kernel<T, BT>), grid_blocks(units, 8), kThreads, 0, stream, args);
    });
  });
}

void sparse_sddmm(const SddmmArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_tile<compute_t<T>>(args.tile, [&](auto tile) {
      constexpr int BT = decltype(tile)::value;
      const int64_t groups = ceil_div(args.view.rows, int64_t{kRowGroup});
      if (args.dx != nullptr)
        RK_LAUNCH((sparse_sddmm_kernel<T, BT, true>), grid_blocks(groups, 8), kThreads, 0, stream,
                  args);
      else
        RK_LAUNCH((sparse_sddmm_kernel<compute_t<T>, BT, false>), grid_blocks(groups, 8), kThreads,
                  0, stream, args);
    });
  });
}

}  // namespace regkern::cuda
