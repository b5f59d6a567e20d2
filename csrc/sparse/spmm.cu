#include "sparse/tiles.cuh"

namespace regkern::cuda {
namespace {

constexpr int kPackThreads = 256, kPackFeatures = 32;
constexpr int kSumThreads = 256;
// Entries whose vectors a team has on their way at once.
template <int kSize>
constexpr int kTogether = kSize < 8 ? kSize : 8;

template <typename T, int BT>
__global__ void __launch_bounds__(kPackThreads, 4) sparse_pack_kernel(PackArgs args) {
  constexpr int kOwn = Team<T, BT>::kOwn, kSize = Team<T, BT>::kSize;
  RK_SHARED(T, shared, BT * (kPackFeatures + 1));
  const T* const x = static_cast<const T*>(args.x);
  T* const out = static_cast<T*>(args.tiles);
  const int64_t blocks = ceil_div(args.features, int64_t{kPackFeatures});
  const int64_t units = ceil_div(args.batch, int64_t{BT}) * blocks;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t t = unit / blocks, f = unit % blocks * kPackFeatures;
    // Neighbours of memory belong to neighbouring threads, going in and coming out.
    for (int i = static_cast<int>(threadIdx.x); i < BT * kPackFeatures; i += kPackThreads) {
      const int k = args.feature_major ? i % BT : i / kPackFeatures;
      const int j = args.feature_major ? i / BT : i % kPackFeatures;
      const int64_t b = t * BT + k, feature = f + j;
      T value{};
      if (b < args.batch && feature < args.features)
        value = x[args.feature_major ? feature * args.batch + b : b * args.features + feature];
      shared[k * (kPackFeatures + 1) + j] = value;
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kSize * kPackFeatures; i += kPackThreads) {
      const int lane = i % kSize, j = i / kSize;
      Vector<T, kOwn> vector;
#pragma unroll
      for (int v = 0; v < kOwn; ++v)
        vector.v[v] = shared[interleaved_element(lane * kOwn + v, BT) * (kPackFeatures + 1) + j];
      if (f + j < args.features)
        store_vector(vector, out + (t * args.features + f + j) * BT + lane * kOwn);
    }
    __syncthreads();
  }
}

template <typename T, int BT>
__global__ void __launch_bounds__(kTeamThreads, 5) sparse_spmm_kernel(SpmmArgs args) {
  using C = compute_t<T>;
  constexpr int kOwn = Team<T, BT>::kOwn, kSize = Team<T, BT>::kSize, kRows = kGroupRows<T, BT>;
  using Staged = StagedEntry<C>;
  RK_SHARED(C, shared, kRows * (BT + 1));
  RK_SHARED(Staged, entries, kRows * kStaged);
  RK_SHARED(GroupRows<kRows>, rows, 1);
  const SparseView& view = args.view;
  const C* const values = static_cast<const C*>(args.values);
  const C* const bias = static_cast<const C*>(args.bias);
  const int lane = static_cast<int>(threadIdx.x) % kSize;
  const int team = static_cast<int>(threadIdx.x) / kSize;
  // 32 bits are enough for groups of rows of tiles, each of which is 512 results and more, and keep
  // clear of divisions that are calls.
  const uint32_t groups = count_groups<kRows>(view.rows);
  const uint32_t units = static_cast<uint32_t>(ceil_div(args.batch, int64_t{BT})) * groups;
  for (uint32_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    // Tile by tile: blocks that run side by side find the same one in the caches.
    const int64_t t = unit / groups;
    const int64_t first = first_of_group<kRows>(args.row_blocks, unit % groups, groups);
    const T* const tile = static_cast<const T*>(args.x.data) + t * args.x.stride + lane * kOwn;
    rank_rows(view, first, rows);
    const int j = rows->ranked[team];
    C sums[kOwn] = {};
    const auto add = [&](const Staged* some, auto count, int64_t) {
      constexpr int kCount = decltype(count)::value;
      C w[kCount];
      Vector<T, kOwn> x[kCount];
      read_vectors(tile, args.x.pitch, some, w, x);
#pragma unroll
      for (int i = 0; i < kCount; ++i)
#pragma unroll
        for (int v = 0; v < kOwn; ++v) sums[v] += w[i] * widen(x[i].v[v]);
    };
    for_entries<kTogether<kSize>, kSize>(view, values, rows->offsets[j], rows->offsets[j + 1],
                                         entries + team * kStaged, add);
    if (bias != nullptr && first + j < view.rows) {
      const C more = bias[first + j];
#pragma unroll
      for (int v = 0; v < kOwn; ++v) sums[v] = sums[v] + more;
    }
    share_row<BT>(sums, lane, args.x.interleaved, shared + j * (BT + 1));
    __syncthreads();
    if (args.z != nullptr)
      write_block<T, BT, kRows>(shared, args.feature_major, args.batch, view.rows, t * BT, first,
                                static_cast<T*>(args.z));
    if (args.activation != Activation::none) {
      if (args.z != nullptr) __syncthreads();
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < kRows * BT; i += kTeamThreads) {
        C* const at = shared + i / BT * (BT + 1) + i % BT;
        *at = activated(args.activation, *at);
      }
      __syncthreads();
    }
    write_block<T, BT, kRows>(shared, args.feature_major, args.batch, view.rows, t * BT, first,
                              static_cast<T*>(args.y));
    __syncthreads();
  }
}

// The lanes of kCount entries, folded in halves. A thread passes half of the entries on to the one
// that it trades with, and keeps the other half, until it has one: that of its place in the team.
template <int kCount, int kLanes, int kHalf, typename C>
__device__ __forceinline__ C folded(const C (&lanes)[kCount][kLanes]) {
  const unsigned team = team_mask<kHalf * 2>();
  const bool upper = (threadIdx.x & kHalf) != 0;
  constexpr int kLeft = kCount > 1 ? kCount / 2 : 1;
  C left[kLeft][kLanes];
#pragma unroll
  for (int j = 0; j < kLeft; ++j)
#pragma unroll
    for (int l = 0; l < kLanes; ++l) {
      const C low = lanes[j][l], high = lanes[kCount > 1 ? j + kLeft : j][l];
      left[j][l] = (upper ? high : low) + __shfl_xor_sync(team, upper ? low : high, kHalf);
    }
  if constexpr (kHalf > 1) {
    return folded<kLeft, kLanes, kHalf / 2>(left);
  } else {
    static_assert(kLeft == 1);
    if constexpr (kLanes == 4) return (left[0][0] + left[0][2]) + (left[0][1] + left[0][3]);
    if constexpr (kLanes == 2) return left[0][0] + left[0][1];
    return left[0][0];
  }
}

template <typename T, int BT, bool kDx>
__global__ void __launch_bounds__(kTeamThreads, kDx ? 5 : 6)
    sparse_sddmm_kernel(SddmmArgs args, int64_t first_tile, uint32_t tiles) {
  using C = compute_t<T>;
  using Own = Team<T, BT>;
  constexpr int kOwn = Own::kOwn, kSize = Own::kSize, kRows = kGroupRows<T, BT>;
  using Staged = StagedEntry<C>;
  RK_SHARED(C, shared, kDx ? kRows * (BT + 1) : 1);
  RK_SHARED(Staged, entries, kRows * kStaged);
  RK_SHARED(GroupRows<kRows>, rows, 1);
  const SparseView& view = args.view;
  const C* const values = kDx ? static_cast<const C*>(args.values) : nullptr;
  const int lane = static_cast<int>(threadIdx.x) % kSize;
  const int team = static_cast<int>(threadIdx.x) / kSize;
  const uint32_t groups = count_groups<kRows>(view.rows);
  for (uint32_t unit = blockIdx.x; unit < tiles * groups; unit += gridDim.x) {
    const uint32_t local = unit / groups;
    const int64_t t = first_tile + local;
    const int64_t first = first_of_group<kRows>(args.row_blocks, unit % groups, groups);
    const T* const g = static_cast<const T*>(args.g.data) + t * args.g.stride + lane * kOwn;
    C* const partial = args.partial != nullptr
                           ? static_cast<C*>(args.partial) + int64_t{local} * view.nnz
                           : nullptr;
    rank_rows(view, first, rows);
    const int j = rows->ranked[team];
    C x[kOwn] = {}, sums[kOwn] = {};
    if (first + j < view.rows) {
      const auto own = load_vector<T, kOwn>(static_cast<const T*>(args.x.data) + t * args.x.stride +
                                            (first + j) * args.x.pitch + lane * kOwn);
#pragma unroll
      for (int v = 0; v < kOwn; ++v) x[v] = widen(own.v[v]);
    }
    for_entries<kTogether<kSize>, kSize>(
        view, values, rows->offsets[j], rows->offsets[j + 1], entries + team * kStaged,
        [&](const Staged* some, auto count, int64_t at) {
          constexpr int kCount = decltype(count)::value;
          C w[kCount], lanes[kCount][Own::kLanes];
          Vector<T, kOwn> parts[kCount];
          read_vectors(g, args.g.pitch, some, w, parts);
#pragma unroll
          for (int i = 0; i < kCount; ++i)
#pragma unroll
            for (int l = 0; l < Own::kLanes; ++l) {
              lanes[i][l] = x[l * Own::kEach] * widen(parts[i].v[l * Own::kEach]);
#pragma unroll
              for (int n = 1; n < Own::kEach; ++n) {
                const int v = l * Own::kEach + n;
                lanes[i][l] += x[v] * widen(parts[i].v[v]);
              }
            }
          if constexpr (kDx) {
#pragma unroll
            for (int i = 0; i < kCount; ++i)
#pragma unroll
              for (int v = 0; v < kOwn; ++v) sums[v] += w[i] * widen(parts[i].v[v]);
          }
          const C sum = folded<kCount, Own::kLanes, kSize / 2>(lanes);
          if (lane % (kSize / kCount) != 0) return;
          const int64_t e = at + lane / (kSize / kCount);
          // Only this thread has this entry of this tile. A sum starts from zero.
          if (partial != nullptr)
            partial[e] = sum;
          else
            static_cast<C*>(args.dvalues)[view.order != nullptr ? view.order[e] : e] = C(0) + sum;
        });
    if constexpr (kDx) {
      share_row<BT>(sums, lane, args.g.interleaved, shared + j * (BT + 1));
      __syncthreads();
      write_block<T, BT, kRows>(shared, args.feature_major, args.batch, view.rows, t * BT, first,
                                static_cast<T*>(args.dx));
    }
    __syncthreads();
  }
}

// The sums of tiles, added in order.
template <typename C>
__global__ void __launch_bounds__(kSumThreads, 8)
    sparse_sum_tiles_kernel(SddmmArgs args, bool begins, int tiles) {
  const C* const partial = static_cast<const C*>(args.partial);
  C* const dvalues = static_cast<C*>(args.dvalues);
  const int64_t nnz = args.view.nnz, step = static_cast<int64_t>(gridDim.x) * kSumThreads;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x; e < nnz;
       e += step) {
    C parts[kPartialTiles];
#pragma unroll
    for (int t = 0; t < kPartialTiles; ++t) parts[t] = t < tiles ? partial[t * nnz + e] : C(0);
    const int64_t place = args.view.order != nullptr ? args.view.order[e] : e;
    C sum = begins ? C(0) : dvalues[place];
#pragma unroll
    for (int t = 0; t < kPartialTiles; ++t)
      if (t < tiles) sum += parts[t];
    dvalues[place] = sum;
  }
}

// Many blocks for each multiprocessor, which take rows of different lengths as they get free.
constexpr int kTeamBlocks = 32;

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
      RK_LAUNCH((sparse_pack_kernel<T, BT>), grid_blocks(units, 8), kPackThreads, 0, stream, args);
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
          ceil_div(args.batch, int64_t{BT}) * count_groups<kGroupRows<T, BT>>(args.view.rows);
      RK_LAUNCH((sparse_spmm_kernel<T, BT>), grid_blocks(units, kTeamBlocks), kTeamThreads, 0,
                stream, args);
    });
  });
}

void sparse_sddmm(const SddmmArgs& args, Context context) {
  if (args.whole_tiles) return sparse_sddmm_tiles(args, context);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    with_tile<C>(args.tile, [&](auto tile) {
      constexpr int BT = decltype(tile)::value;
      const int64_t tiles = ceil_div(args.batch, int64_t{BT});
      const int64_t groups = count_groups<kGroupRows<T, BT>>(args.view.rows);
      for (int64_t first = 0; first < tiles; first += kPartialTiles) {
        const int64_t some = tiles - first < kPartialTiles ? tiles - first : kPartialTiles;
        const int64_t blocks = grid_blocks(some * groups, kTeamBlocks);
        if (args.dx != nullptr)
          RK_LAUNCH((sparse_sddmm_kernel<T, BT, true>), blocks, kTeamThreads, 0, stream, args,
                    first, some);
        else
          RK_LAUNCH((sparse_sddmm_kernel<T, BT, false>), blocks, kTeamThreads, 0, stream, args,
                    first, some);
        if (args.partial == nullptr || args.view.nnz == 0) continue;
        RK_LAUNCH((sparse_sum_tiles_kernel<C>),
                  grid_blocks(ceil_div(args.view.nnz, int64_t{kSumThreads}), 8), kSumThreads, 0,
                  stream, args, first == 0, static_cast<int>(some));
      }
    });
  });
}

}  // namespace regkern::cuda
