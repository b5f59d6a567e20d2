#include "proximal/group_lanes.cuh"

namespace regkern::cuda {
namespace {

// Stripes of a long group that stay in registers.
template <typename T>
constexpr int kKeptStripes = sizeof(T) == 2 ? 2 : 4;

template <typename C>
__device__ __forceinline__ double number(const void* at) {
  return static_cast<double>(*static_cast<const C*>(at));
}

// Step and λ are read where they are needed: from group to group they would cost registers.
template <typename C>
__device__ __forceinline__ GroupShrunk shrink_row(const GroupLawArgs& args, const GroupRow& row,
                                                  int64_t group, bool mine, double norm) {
  const double weight =
      mine && args.weights != nullptr ? row.weight * args.weights[row.slice + group] : row.weight;
  return shrink_group<Law::soft>(norm, mine ? number<C>(args.step) * weight : 0.0,
                                 number<C>(args.lam), 0.0);
}

// Group soft threshold of contiguous groups: those that a team takes, or the longer ones.
template <Before kBefore, typename T, bool kTeams>
__global__ void __launch_bounds__(kGroupThreads<T>, kGroupBlocks<T, kTeams>)
    group_rows_kernel(const __grid_constant__ ListChunk<GroupRow> chunk, GroupRowsArgs args,
                      int tiles) {
  using C = compute_t<T>;
  constexpr int V = kNeighbours<T>, K = kTeamStripes<T>, kThreads = kGroupThreads<T>;
  constexpr int kKept = kKeptStripes<T>;
  RK_SHARED(double, shared, (kTeams ? 1 : kLanes));
  C* const norms = static_cast<C*>(args.law.norms);
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const GroupRow& row = chunk.rows[place.row];
    const int n = static_cast<int>(row.inner);
    const bool aligned = n % V == 0 && aligned_for_vectors(row.x) && aligned_for_vectors(row.y);
    const bool in_place = kBefore == Before::nothing && row.x == row.y;
    const auto all = prepared<kBefore, T>(row, args.sums.soft, args.sums.positive);
    if constexpr (kTeams) {
      const int team = team_of<T>(n);
      const int thread = static_cast<int>(threadIdx.x) & (team - 1);
      const int64_t group = place.tile * (kThreads / team) + static_cast<int>(threadIdx.x) / team;
      const bool mine = group < row.slices;
      const auto x = all.from(mine ? group * n : 0);
      C kept[K][V];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int e = (k * team + thread) * V;
        load_prepared<kBefore, T, V>(x, e, mine ? n : 0, aligned, kept[k]);
      }
      const double sum = team_square_sum<C, K, V>(team, kept);
      const GroupShrunk out = shrink_row<C>(args.law, row, group, mine, sqrt(sum));
      const bool first = mine && thread == 0;
      count_zeros(first && out.norm == 0.0, args.law.zeros);
      if (first) {
        norms[row.slice + group] = static_cast<C>(out.norm);
        if (args.law.before != nullptr) args.law.before[row.slice + group] = sqrt(sum);
      }
      const C factor = static_cast<C>(out.factor);
      if (!mine || (in_place && factor == C(1))) continue;
      T* const y = static_cast<T*>(row.y) + group * n;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int e = (k * team + thread) * V;
        store_scaled<T, V>(kept[k], factor, e, n, aligned, y);
      }
    } else {
      const int64_t group = place.tile;
      const int mine = static_cast<int>(threadIdx.x) * V;
      const auto x = all.from(group * n);
      C kept[kKept][V], lanes[V] = {};
#pragma unroll
      for (int k = 0; k < kKept; ++k) {
        load_prepared<kBefore, T, V>(x, mine + k * kLanes, n, aligned, kept[k]);
#pragma unroll
        for (int v = 0; v < V; ++v) lanes[v] += kept[k][v] * kept[k][v];
      }
#pragma unroll 1
      for (int e = mine + kKept * kLanes; e < n; e += kLanes) {
        C value[V];
        load_prepared<kBefore, T, V>(x, e, n, aligned, value);
#pragma unroll
        for (int v = 0; v < V; ++v) lanes[v] += value[v] * value[v];
      }
      const C narrow_sum = fold_block<C, V>(lanes, reinterpret_cast<C*>(shared));
      double sum = static_cast<double>(narrow_sum);
      if (!square_sum_holds(narrow_sum))
        sum = block_sum<double, V>(n, shared, [&](int e, double (&wide)[V]) {
          C value[V];
          load_prepared<kBefore, T, V>(x, e, n, aligned, value);
#pragma unroll
          for (int v = 0; v < V; ++v)
            wide[v] += static_cast<double>(value[v]) * static_cast<double>(value[v]);
        });
      const GroupShrunk out = shrink_row<C>(args.law, row, group, true, sqrt(sum));
      count_zeros(threadIdx.x == 0 && out.norm == 0.0, args.law.zeros);
      if (threadIdx.x == 0) {
        norms[row.slice + group] = static_cast<C>(out.norm);
        if (args.law.before != nullptr) args.law.before[row.slice + group] = sqrt(sum);
      }
      const C factor = static_cast<C>(out.factor);
      if (in_place && factor == C(1)) continue;
      T* const y = static_cast<T*>(row.y) + group * n;
#pragma unroll
      for (int k = 0; k < kKept; ++k)
        store_scaled<T, V>(kept[k], factor, mine + k * kLanes, n, aligned, y);
#pragma unroll 1
      for (int e = mine + kKept * kLanes; e < n; e += kLanes) {
        C value[V];
        load_prepared<kBefore, T, V>(x, e, n, aligned, value);
        store_scaled<T, V>(value, factor, e, n, aligned, y);
      }
    }
  }
}

}  // namespace

void group_rows(const GroupRowsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_before(args.sums.before, args.sums.dtype, [&](auto before, auto zero) {
    using T = decltype(zero);
    constexpr int kThreads = kGroupThreads<T>;
    const auto launch = [&](auto teams, auto&& tiles_of) {
      for_each_group_chunk(
          args.sums.rows, args.sums.count, tiles_of,
          [&](const ListChunk<GroupRow>& chunk, int64_t tiles) {
            RK_LAUNCH((group_rows_kernel<decltype(before)::value, T, decltype(teams)::value>),
                      grid_blocks(tiles, 2048 / kThreads), kThreads, 0, stream, chunk, args,
                      static_cast<int>(tiles));
          });
    };
    launch(std::true_type{}, [](const GroupRow& row) {
      return row.inner <= kTeamMost<T>
                 ? ceil_div(row.slices, int64_t{kThreads / team_of<T>(row.inner)})
                 : 0;
    });
    launch(std::false_type{},
           [](const GroupRow& row) { return row.inner <= kTeamMost<T> ? 0 : row.slices; });
  });
}

}  // namespace regkern::cuda
