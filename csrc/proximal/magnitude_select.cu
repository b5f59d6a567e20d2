#include "core/tensor_list.cuh"
#include "proximal/magnitude_select.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

using Count = unsigned long long;  // what atomicAdd takes
static_assert(kMagnitudeTile == kListTile);
static_assert(kBins == kListThreads * kListLanes);

template <typename T, bool kDifference>
using Keyed = std::conditional_t<kDifference, compute_t<T>, T>;

// Keys of a thread's lanes from element e on; where there is nothing they are 0.
template <typename T, bool kDifference, typename U>
__device__ __forceinline__ void load_keys(const MagnitudeRow& row, int64_t e, int64_t left,
                                          T x[kListLanes], U keys[kListLanes]) {
  const T* data = static_cast<const T*>(row.x);
  load_lanes(data + e, left, aligned_for_vectors(data), x);
  if constexpr (kDifference) {
    const T* minus = static_cast<const T*>(row.minus);
    T y[kListLanes];
    load_lanes(minus + e, left, aligned_for_vectors(minus), y);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) keys[i] = magnitude_key(widen(x[i]) - widen(y[i]));
  } else {
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) keys[i] = magnitude_key(x[i]);
  }
}

__global__ void __launch_bounds__(kListThreads)
    begin_search_kernel(const __grid_constant__ ListChunk<MagnitudeRow> chunk, Search* search) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= chunk.count) return;
  const MagnitudeRow& row = chunk.rows[i];
  Search& s = search[search_of(row)];
  if (row.search >= 0) {
    s.prefix = 0;
    s.k = s.rank = row.k;
    s.below = s.equal = 0;
    s.tiles_begin = row.tile;
  }
  // The last tensor of a search ends it; tensors come in order, launches too.
  const bool last = i + 1 == chunk.count || search_of(chunk.rows[i + 1]) != search_of(row);
  if (last) s.tiles_end = row.tile + tile_count(row.numel);
}

// A block takes neighbouring tiles and counts for itself, search by search.
template <typename T, bool kDifference>
__global__ void __launch_bounds__(kListThreads)
    count_kernel(const __grid_constant__ ListChunk<MagnitudeRow> chunk, const Search* search,
                 Count* counts, int pass, int tiles, int tiles_per_block) {
  using K = Keyed<T, kDifference>;
  using U = key_t<K>;
  RK_SHARED(uint32_t, mine, kBins);
  const Digit digit = digit_of<K>(pass);
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kBins; i += kListThreads) mine[i] = 0;
  __syncthreads();
  const int begin = static_cast<int>(blockIdx.x) * tiles_per_block;
  const int end = begin + tiles_per_block < tiles ? begin + tiles_per_block : tiles;
  int64_t current = -1;
  U prefix = 0;
  const auto flush = [&] {
    __syncthreads();
    for (int i = thread; i < kBins; i += kListThreads) {
      if (mine[i] != 0) atomicAdd(counts + current * kBins + i, static_cast<Count>(mine[i]));
      mine[i] = 0;
    }
    __syncthreads();
  };
  for (int tile = begin; tile < end; ++tile) {
    const ListPlace place = place_of(chunk, tile);
    const MagnitudeRow& row = chunk.rows[place.row];
    if (search_of(row) != current) {  // the same for the whole block
      if (current >= 0) flush();
      current = search_of(row);
      prefix = static_cast<U>(search[current].prefix);
    }
    const int64_t e = place.tile * kListTile + thread * kListLanes, left = row.numel - e;
    if (left <= 0) continue;
    T x[kListLanes];
    U keys[kListLanes];
    load_keys<T, kDifference>(row, e, left, x, keys);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      const uint32_t slot = slot_of(keys[i], prefix, digit);
      if (i < left && slot < kBins) atomicAdd(mine + slot, 1u);
    }
  }
  if (current >= 0) flush();
}

// The next digit: a block per search. Leaves the counts at zero for the next pass.
__global__ void __launch_bounds__(kListThreads)
    pick_kernel(Search* search, int64_t* all_counts, int width) {
  RK_SHARED(int64_t, sums, kListThreads);
  Search& s = search[blockIdx.x];
  int64_t* counts = all_counts + static_cast<int64_t>(blockIdx.x) * kBins;
  const int thread = static_cast<int>(threadIdx.x);
  int64_t sum = 0;
  for (int i = 0; i < kListLanes; ++i) sum += counts[thread * kListLanes + i];
  sums[thread] = sum;
  __syncthreads();
  if (thread == 0) {
    const int bins = 1 << width;
    int64_t before = 0;
    int group = 0;
    while ((group + 1) * kListLanes < bins && before + sums[group] < s.rank)
      before += sums[group++];
    int bin = group * kListLanes;
    while (bin < bins - 1 && before + counts[bin] < s.rank) before += counts[bin++];
    s.prefix = s.prefix << width | static_cast<uint64_t>(bin);
    s.rank -= before;
    s.below += before;
    s.equal = counts[bin];
    // Until ties are cut: all of the equal ones are larger, or none.
    s.cut = dropped_equals(s) > 0 ? -1 : INT64_MAX;
    s.kept = 0;
  }
  __syncthreads();
  for (int i = 0; i < kListLanes; ++i) counts[thread * kListLanes + i] = 0;
}

template <typename K>
__global__ void results_kernel(const Search* search, int64_t searches, compute_t<K>* magnitude,
                               int64_t* ranks) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= searches) return;
  magnitude[i] = magnitude_of<K>(search[i].prefix);
  ranks[2 * i] = search[i].below;
  ranks[2 * i + 1] = search[i].equal;
}

// Equal magnitudes of every tile, where they have to be told apart.
template <typename T, bool kDifference>
__global__ void __launch_bounds__(kListThreads)
    ties_kernel(const __grid_constant__ ListChunk<MagnitudeRow> chunk, const Search* search,
                int32_t* ties, int tiles) {
  using U = key_t<Keyed<T, kDifference>>;
  RK_SHARED(int32_t, found, 1);
  const int thread = static_cast<int>(threadIdx.x);
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const MagnitudeRow& row = chunk.rows[place.row];
    const Search& s = search[search_of(row)];
    if (!cuts_ties(s)) continue;  // the same for the whole block
    if (thread == 0) found[0] = 0;
    __syncthreads();
    const int64_t e = place.tile * kListTile + thread * kListLanes, left = row.numel - e;
    int32_t mine = 0;
    if (left > 0) {
      T x[kListLanes];
      U keys[kListLanes];
      load_keys<T, kDifference>(row, e, left, x, keys);
#pragma unroll
      for (int i = 0; i < kListLanes; ++i)
        mine += i < left && keys[i] == static_cast<U>(s.prefix) ? 1 : 0;
    }
    mine = warp_sum(mine);
    if (thread % 32 == 0 && mine != 0) atomicAdd(found, mine);
    __syncthreads();
    if (thread == 0) ties[row.tile + place.tile] = found[0];
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kListThreads) cut_kernel(Search* search, const int32_t* ties) {
  RK_SHARED(int64_t, sums, kListThreads);
  Search& s = search[blockIdx.x];
  if (!cuts_ties(s)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t share = ceil_div(s.tiles_end - s.tiles_begin, int64_t{kListThreads});
  const int64_t begin = s.tiles_begin + thread * share;
  const int64_t end = begin + share < s.tiles_end ? begin + share : s.tiles_end;
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += ties[i];
  sums[thread] = sum;
  __syncthreads();
  int64_t left = s.equal - dropped_equals(s);
  for (int i = 0; i < thread; ++i) left -= sums[i];
  __syncthreads();
  if (left <= 0 || left > sum) return;
  int64_t tile = begin;
  while (left > ties[tile]) left -= ties[tile++];
  s.cut = tile;
  s.kept = left;
}

template <typename T, bool kDifference>
__global__ void __launch_bounds__(kListThreads)
    apply_kernel(const __grid_constant__ ListChunk<MagnitudeRow> chunk, const Search* search,
                 Selected selected, double factor, int tiles) {
  using U = key_t<Keyed<T, kDifference>>;
  RK_SHARED(int32_t, equals, kListThreads);
  const int thread = static_cast<int>(threadIdx.x);
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const MagnitudeRow& row = chunk.rows[place.row];
    const Search& s = search[search_of(row)];
    const U key = static_cast<U>(s.prefix);
    const int64_t number = row.tile + place.tile;
    const int64_t e = place.tile * kListTile + thread * kListLanes, left = row.numel - e;
    T x[kListLanes];
    U keys[kListLanes];
    load_keys<T, kDifference>(row, e, left, x, keys);
    int64_t kept = number < s.cut ? kListTile : 0;
    if (number == s.cut) {  // the same for the whole block
      int32_t mine = 0;
#pragma unroll
      for (int i = 0; i < kListLanes; ++i) mine += i < left && keys[i] == key ? 1 : 0;
      equals[thread] = mine;
      __syncthreads();
      kept = s.kept;
      for (int i = 0; i < thread; ++i) kept -= equals[i];
      __syncthreads();
    }
    if (left <= 0) continue;
    uint32_t alive = 0;
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      const bool equal = keys[i] == key;
      if (keys[i] > key || (equal && kept > 0)) alive |= 1u << i;
      kept -= equal ? 1 : 0;
    }
    if (selected == Selected::scaled) {
#pragma unroll
      for (int i = 0; i < kListLanes; ++i)
        x[i] = scaled_element(x[i], (alive >> i & 1u) == 0, factor);
      T* y = static_cast<T*>(row.out);
      store_lanes(x, left, aligned_for_vectors(y), y + e);
    } else if (selected == Selected::mask) {
      uint8_t* y = static_cast<uint8_t*>(row.out) + e;
#pragma unroll
      for (int i = 0; i < kListLanes; ++i)
        if (i < left) y[i] = static_cast<uint8_t>(alive >> i & 1u);
    } else {
      // Eight lanes are a byte of the words, which are zero behind the last element.
      const uint32_t valid = left >= kListLanes ? 0xFFu : (1u << left) - 1u;
      static_cast<uint8_t*>(row.out)[e / 8] = static_cast<uint8_t>(alive & valid);
    }
  }
}

template <typename T, bool kDifference>
void select_as(const MagnitudeSelectArgs& args, cudaStream_t stream) {
  using K = Keyed<T, kDifference>;
  const auto searches = static_cast<int64_t>(args.searches);
  auto* counts = reinterpret_cast<Count*>(args.counts);
  zero_async(args.counts, static_cast<std::size_t>(searches) * kBins * sizeof(int64_t), stream);
  for_each_chunk(args.rows, args.count,
                 [&](const ListChunk<MagnitudeRow>& chunk, int64_t, int64_t) {
                   RK_LAUNCH((begin_search_kernel), 1, kListThreads, 0, stream, chunk, args.search);
                 });
  for (int pass = 0; pass < digit_count<K>(); ++pass) {
    for_each_chunk(args.rows, args.count,
                   [&](const ListChunk<MagnitudeRow>& chunk, int64_t, int64_t tiles) {
                     const int64_t per_block = ceil_div(tiles, grid_blocks(tiles, 8));
                     RK_LAUNCH((count_kernel<T, kDifference>), ceil_div(tiles, per_block),
                               kListThreads, 0, stream, chunk, args.search, counts, pass,
                               static_cast<int>(tiles), static_cast<int>(per_block));
                   });
    RK_LAUNCH((pick_kernel), searches, kListThreads, 0, stream, args.search, args.counts,
              digit_of<K>(pass).width);
  }
  RK_LAUNCH((results_kernel<K>), ceil_div(searches, int64_t{128}), 128, 0, stream, args.search,
            searches, static_cast<compute_t<K>*>(args.magnitude), args.ranks);
  if (args.selected == Selected::nothing) return;
  for_each_chunk(args.rows, args.count,
                 [&](const ListChunk<MagnitudeRow>& chunk, int64_t, int64_t tiles) {
                   RK_LAUNCH((ties_kernel<T, kDifference>), grid_blocks(tiles, 8), kListThreads, 0,
                             stream, chunk, args.search, args.ties, static_cast<int>(tiles));
                 });
  RK_LAUNCH((cut_kernel), searches, kListThreads, 0, stream, args.search, args.ties);
  for_each_chunk(
      args.rows, args.count, [&](const ListChunk<MagnitudeRow>& chunk, int64_t, int64_t tiles) {
        RK_LAUNCH((apply_kernel<T, kDifference>), grid_blocks(tiles, 8), kListThreads, 0, stream,
                  chunk, args.search, args.selected, args.factor, static_cast<int>(tiles));
      });
}

}  // namespace

void magnitude_select(const MagnitudeSelectArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.difference ? select_as<T, true>(args, stream) : select_as<T, false>(args, stream);
  });
}

}  // namespace regkern::cuda
