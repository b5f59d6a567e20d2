#include "proximal/group_lanes.cuh"

namespace regkern::cuda {
namespace {

constexpr int kThreads = 256;

// Where the partial sums of a row go; a row of one segment has its sums in them.
__device__ __forceinline__ double* partials_at(const GroupSumsArgs& args, const GroupRow& row) {
  return in_one_pass(row) ? args.sums + row.slice : args.partials + row.partial;
}

// Products with z, in double.
template <typename T>
struct Product {
  const T* x;
  const T* z;
  __device__ __forceinline__ double operator()(int64_t i) const {
    return static_cast<double>(widen(x[i])) * static_cast<double>(widen(z[i]));
  }
};

// A run of a segment or less for each team, or for each block where they are long.
template <Before kBefore, typename T, bool kProducts, bool kTeams>
__global__ void __launch_bounds__(kGroupThreads<T>, kGroupBlocks<T, kTeams>)
    group_runs_kernel(const __grid_constant__ ListChunk<GroupRow> chunk, GroupSumsArgs args,
                      int tiles) {
  using C = compute_t<T>;
  constexpr int V = kNeighbours<T>, K = kTeamStripes<T>, kBlock = kGroupThreads<T>;
  RK_SHARED(double, shared, (kTeams ? 1 : kLanes));
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const GroupRow& row = chunk.rows[place.row];
    double* const out = partials_at(args, row);
    const auto all = prepared<kBefore, T>(row, args.soft, args.positive);
    const T* const z = static_cast<const T*>(row.z);
    if constexpr (kTeams) {
      const int team = team_of<T>(row.inner);
      const int thread = static_cast<int>(threadIdx.x) & (team - 1);
      const int64_t run = place.tile * (kBlock / team) + static_cast<int>(threadIdx.x) / team;
      const bool mine = run < row.outer * row.slices;
      const int64_t first = mine ? run * row.inner : 0;
      const int n = mine ? static_cast<int>(row.inner) : 0;
      double sum;
      if constexpr (kProducts) {
        const Product<T> term{all.x + first, z + first};
        sum = fold_team<double, K, V>(team, [&](int k, int v) {
          const int e = (k * team + thread) * V + v;
          return e < n ? term(e) : 0.0;
        });
      } else {
        const auto x = all.from(first);
        const bool aligned = row.inner % V == 0 && aligned_for_vectors(row.x);
        C kept[K][V];
#pragma unroll
        for (int k = 0; k < K; ++k)
          load_prepared<kBefore, T, V>(x, (k * team + thread) * V, n, aligned, kept[k]);
        sum = team_square_sum<C, K, V>(team, kept);
      }
      if (mine && thread == 0) out[run] = sum;
    } else {
      const int64_t segments = segments_of(row);
      const int64_t run = place.tile / segments, at = (place.tile - run * segments) * kSegment;
      const int64_t first = run * row.inner + at;
      const int n = static_cast<int>(row.inner - at < kSegment ? row.inner - at : kSegment);
      double sum;
      if constexpr (kProducts) {
        const Product<T> term{all.x + first, z + first};
        sum = block_sum<double, V>(n, shared, [&](int e, double (&lanes)[V]) {
#pragma unroll
          for (int v = 0; v < V; ++v)
            if (e + v < n) lanes[v] += term(e + v);
        });
      } else {
        const auto x = all.from(first);
        const bool aligned = n % V == 0 && first % V == 0 && aligned_for_vectors(row.x);
        const auto add = [&](int e, auto& lanes) {
          using A = std::remove_reference_t<decltype(lanes[0])>;
          C value[V];
          load_prepared<kBefore, T, V>(x, e, n, aligned, value);
#pragma unroll
          for (int v = 0; v < V; ++v)
            lanes[v] += static_cast<A>(value[v]) * static_cast<A>(value[v]);
        };
        const C narrow_sum = block_sum<C, V>(n, shared, add);
        sum = static_cast<double>(narrow_sum);
        if (!square_sum_holds(narrow_sum)) sum = block_sum<double, V>(n, shared, add);
      }
      if (threadIdx.x == 0) out[place.tile] = sum;
    }
  }
}

template <typename T>
constexpr int64_t kTileColumns = int64_t{kThreads} * kNeighbours<T>;

// A thread has V columns of a chunk of rows.
template <Before kBefore, typename T, bool kProducts>
__global__ void __launch_bounds__(kThreads)
    group_columns_kernel(const __grid_constant__ ListChunk<GroupRow> chunk, GroupSumsArgs args,
                         int tiles) {
  using C = compute_t<T>;
  constexpr int V = kNeighbours<T>;
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const GroupRow& row = chunk.rows[place.row];
    const int64_t columns = row.slices * row.inner;
    const int64_t across = ceil_div(columns, kTileColumns<T>);
    const int64_t part = place.tile / across;
    const int64_t j =
        (place.tile - part * across) * kTileColumns<T> + static_cast<int64_t>(threadIdx.x) * V;
    if (j >= columns) continue;
    const auto x = prepared<kBefore, T>(row, args.soft, args.positive);
    const Product<T> term{static_cast<const T*>(row.x), static_cast<const T*>(row.z)};
    const bool aligned = columns % V == 0 && aligned_for_vectors(row.x);
    const int64_t first = part * kChunkRows;
    const int64_t stop = first + kChunkRows < row.outer ? first + kChunkRows : row.outer;
    double sums[V] = {};
#pragma unroll 4
    for (int64_t o = first; o < stop; ++o) {
      if constexpr (kProducts) {
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (j + v < columns) sums[v] += term(o * columns + j + v);
      } else {
        C value[V];
        load_prepared<kBefore, T, V>(x, o * columns + j, (o + 1) * columns, aligned, value);
#pragma unroll
        for (int v = 0; v < V; ++v)
          sums[v] += static_cast<double>(value[v]) * static_cast<double>(value[v]);
      }
    }
    double* const out = args.partials + row.partial + part * columns + j;
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (j + v < columns) out[v] = sums[v];
  }
}

__global__ void __launch_bounds__(kThreads)
    group_finish_kernel(const __grid_constant__ ListChunk<GroupRow> chunk, GroupSumsArgs args,
                        int tiles) {
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const GroupRow& row = chunk.rows[place.row];
    const int64_t slice = place.tile * kThreads + threadIdx.x;
    if (slice < row.slices) args.sums[row.slice + slice] = sum_partials(row, args.partials, slice);
  }
}

template <Before kBefore, typename T, bool kProducts>
void launch_sums(const GroupSumsArgs& args, cudaStream_t stream) {
  constexpr int kBlock = kGroupThreads<T>;
  const auto launch_runs = [&](auto teams, auto&& tiles_of) {
    for_each_group_chunk(
        args.rows, args.count, tiles_of, [&](const ListChunk<GroupRow>& chunk, int64_t tiles) {
          RK_LAUNCH((group_runs_kernel<kBefore, T, kProducts, decltype(teams)::value>),
                    grid_blocks(tiles, 2048 / kBlock), kBlock, 0, stream, chunk, args,
                    static_cast<int>(tiles));
        });
  };
  launch_runs(std::true_type{}, [](const GroupRow& row) {
    return by_columns(row) || row.inner > kTeamMost<T>
               ? 0
               : ceil_div(row.outer * row.slices, int64_t{kBlock / team_of<T>(row.inner)});
  });
  launch_runs(std::false_type{}, [](const GroupRow& row) {
    return by_columns(row) || row.inner <= kTeamMost<T> ? 0
                                                        : row.outer * row.slices * segments_of(row);
  });
  for_each_group_chunk(
      args.rows, args.count,
      [](const GroupRow& row) {
        return by_columns(row) ? chunks_of(row) * ceil_div(row.slices * row.inner, kTileColumns<T>)
                               : 0;
      },
      [&](const ListChunk<GroupRow>& chunk, int64_t tiles) {
        RK_LAUNCH((group_columns_kernel<kBefore, T, kProducts>), grid_blocks(tiles, 8), kThreads, 0,
                  stream, chunk, args, static_cast<int>(tiles));
      });
  for_each_group_chunk(
      args.rows, args.count,
      [](const GroupRow& row) {
        return in_one_pass(row) ? 0 : ceil_div(row.slices, int64_t{kThreads});
      },
      [&](const ListChunk<GroupRow>& chunk, int64_t tiles) {
        RK_LAUNCH(group_finish_kernel, grid_blocks(tiles, 8), kThreads, 0, stream, chunk, args,
                  static_cast<int>(tiles));
      });
}

// A warp per group.
__global__ void __launch_bounds__(kThreads) group_fold_kernel(GroupFoldArgs args) {
  constexpr int kWarps = kThreads / kGroupLanes;
  const int lane = static_cast<int>(threadIdx.x) % kGroupLanes;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kGroupLanes;
       g < args.groups; g += stride) {
    double sum = 0.0;
    for (int64_t k = args.starts[g] + lane; k < args.starts[g + 1]; k += kGroupLanes)
      sum += args.slice_sums[args.members[k]];
    sum = fold_team<double, 1, 1>(kGroupLanes, [&](int, int) { return sum; });
    if (lane == 0) args.sums[g] = sum;
  }
}

}  // namespace

void group_sums(const GroupSumsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const bool products = args.count > 0 && args.rows[0].z != nullptr;
  if (products)
    return dispatch_floating(args.dtype, [&](auto zero) {
      launch_sums<Before::nothing, decltype(zero), true>(args, stream);
    });
  dispatch_before(args.before, args.dtype, [&](auto before, auto zero) {
    launch_sums<decltype(before)::value, decltype(zero), false>(args, stream);
  });
}

void group_fold(const GroupFoldArgs& args, Context context) {
  const int64_t blocks = ceil_div(args.groups, int64_t{kThreads / kGroupLanes});
  RK_LAUNCH(group_fold_kernel, grid_blocks(blocks, 8), kThreads, 0,
            static_cast<cudaStream_t>(context.stream), args);
}

}  // namespace regkern::cuda
