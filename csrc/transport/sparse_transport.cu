#include "core/vector.cuh"
#include "transport/block_team.cuh"
#include "transport/sparse_solver.h"
#include "transport/sparse_transport.h"

// A block of 32 columns and eight stripes of rows evaluates; a block per problem decides. All
// launches are queued at once: blocks of problems that are done return.

namespace regkern::cuda {
namespace {

using namespace transport;

constexpr int kLanes = kBlockColumns;
constexpr int kThreads = kLanes * kRowStripes;
constexpr int kAhead = 4;  // rows in flight
constexpr int kBlocksPerSm = 8;
using Units = unsigned long long;  // what atomicAdd takes

// A column, and a stripe of its rows.
template <typename T>
struct Column {
  using C = compute_t<T>;
  const SparseTransportArgs& args;
  int64_t problem, j;
  const T* cost;
  const double *alpha, *a;
  double b, gamma, shift, unit, largest, drop;
  bool dual;

  __device__ bool there() const { return j < args.columns; }
  __device__ int64_t place() const { return problem * args.columns + j; }

  // event(i, x) of whatever is not certainly below bound(), rows first to last.
  template <typename Bound, typename Event>
  __device__ __forceinline__ void scan(Bound&& bound, Event&& event) const {
    const int64_t n = args.rows;
    for (int64_t i = threadIdx.x / kLanes; i < n; i += kRowStripes * kAhead) {
      C c[kAhead];
      double exact[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int64_t row = i + u * kRowStripes;
        exact[u] = row < n ? row_potential(alpha, a, row) : nothing();
        c[u] = row < n && there() ? static_cast<C>(widen(cost[row * args.columns + j])) : C(0);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (!(exact[u] > nothing()) || !there()) continue;
        if (c[u] + bound() >= static_cast<C>(exact[u])) continue;
        event(i + u * kRowStripes, entry_at(exact[u], static_cast<double>(c[u]), shift));
      }
    }
  }

  __device__ void add_row(int64_t i, double p) const {
    atomicAdd(reinterpret_cast<Units*>(args.row_sums) + problem * args.rows + i,
              static_cast<Units>(row_units(p, unit)));
  }

  __device__ void keep(const ColumnSums& sums, bool bad) const {
    args.column_value[place()] = bad ? __builtin_nan("") : sums.value;
    if (dual)
      args.column_sum[place()] = sums.sum;
    else
      args.beta[place()] = -sums.threshold;
  }
};

template <typename T>
__device__ __forceinline__ Column<T> column_of(const SparseTransportArgs& args, int64_t problem,
                                               int64_t tile) {
  const SparseState& s = args.state[problem];
  const double* trial = vector_of(args, problem, kTrial);
  const bool dual = args.method == SparseMethod::dual;
  const int64_t j = tile * kLanes + threadIdx.x % kLanes;
  const bool there = j < args.columns;
  return {args,
          problem,
          j,
          static_cast<const T*>(args.cost) + problem * args.cost_stride,
          trial,
          args.a + problem * args.rows,
          there ? args.b[problem * args.columns + j] : 0.0,
          args.gamma[problem],
          dual && there ? trial[args.rows + j] : 0.0,
          s.unit,
          s.largest,
          s.drop,
          dual};
}

// Short lists are sorted, in shared memory. Long ones are heaps and the block's own words of
// global memory; neighbouring threads have neighbouring words of either.
template <bool kHeap, typename T>
__device__ __forceinline__ void best_entries(const Column<T>& t) {
  using C = compute_t<T>;
  const int64_t k = t.args.k;
  const int most = static_cast<int>(kHeap ? entries_of(t.args) : k);
  // A stripe that has all its rows in its list has nothing more to keep out.
  const int mine = static_cast<int>(kHeap ? stripe_entries_of(t.args) : k);
  RK_DYNAMIC_SHARED(double, shared);
  double* const values = kHeap ? t.args.list_values + blockIdx.x * list_words(t.args) : shared;
  int32_t* const indices = kHeap ? t.args.list_index + blockIdx.x * list_words(t.args)
                                 : reinterpret_cast<int32_t*>(shared + mine * kThreads);
  int32_t* const counts = kHeap ? reinterpret_cast<int32_t*>(shared) : indices + mine * kThreads;
  const int me = static_cast<int>(threadIdx.x);
  Best best{values + me, indices + me, kThreads, 0};
  const double range = t.dual ? __builtin_inf() : t.gamma * t.b;
  double least = __builtin_inf(), top = nothing();
  for (int r = 0; t.there() && r < most; ++r) {
    const int32_t last = t.args.index[t.place() * k + r];
    if (kHeap && last < 0) {  // and none after it
      least = nothing();
      break;
    }
    double x = nothing();
    if (last >= 0)
      x = entry_at(row_potential(t.alpha, t.a, last),
                   static_cast<double>(widen(t.cost[last * t.args.columns + t.j])), t.shift);
    least = x < least ? x : least;
    if constexpr (kHeap) top = x > top ? x : top;
  }
  least = t.dual && !(least > 0.0) ? 0.0 : least;
  C bound = filter_bound<C>(least - t.shift, t.largest);
  const auto raise = [&](C other) { bound = other > bound ? other : bound; };
  if (kHeap && !t.dual) raise(filter_bound<C>(top - range, t.largest + range));
  bool bad = false;
  t.scan([&] { return bound; },
         [&](int64_t i, double x) {
           const auto row = static_cast<int32_t>(i);
           if (!(kHeap ? enters_heap(best, mine, x, row) : enters(best, mine, x, row))) {
             bad = bad || is_nan(x);
             return;
           }
           if (t.dual && !(x > 0.0)) return;
           bad = bad || x == __builtin_inf();
           if constexpr (kHeap) {
             if (falls_short(x, top, range)) return;
             insert_heap(best, mine, x, row);
             if (x > top) {
               top = x;
               if (!t.dual) raise(filter_bound<C>(top - range, t.largest + range));
             }
           } else {
             insert_best(best, mine, x, row);
           }
           if (best.count == mine) {
             const double last = best.value[kHeap ? 0 : (mine - 1) * kThreads];
             raise(filter_bound<C>(last - t.shift, t.largest));
           }
         });
  // The lists of the stripes go into the first one's, or into the column's.
  counts[me] = bad ? ~best.count : best.count;
  __syncthreads();
  if (me < kLanes && t.there()) {
    if constexpr (kHeap)
      best = {values + mine * kThreads + me, indices + mine * kThreads + me, kLanes, 0};
    for (int other = kHeap ? me : me + kLanes; other < kThreads; other += kLanes) {
      const bool wrong = counts[other] < 0;
      const int count = wrong ? ~counts[other] : counts[other];
      bad = bad || wrong;
      for (int r = 0; r < count; ++r) {
        const double x = values[other + r * kThreads];
        const int32_t row = indices[other + r * kThreads];
        if constexpr (kHeap) {
          if (falls_short(x, top, range)) continue;
          if (enters_heap(best, most, x, row)) insert_heap(best, most, x, row);
          top = x > top ? x : top;
        } else {
          if (!enters(best, most, x, row)) break;
          insert_best(best, most, x, row);
        }
      }
    }
    if constexpr (kHeap) sort_heap(best, top, range);
    t.keep(t.dual ? cap_best(best, t.b, t.gamma) : project_best(best, t.b, t.gamma), bad);
    for (int r = 0; r < k; ++r) {
      const bool there = r < best.count;
      const int32_t row = there ? best.index[r * best.stride] : -1;
      const double p = there ? best.value[r * best.stride] : 0.0;
      t.args.index[t.place() * k + r] = row;
      t.args.entries[t.place() * k + r] = p;
      if (p > 0.0) t.add_row(row, p);
    }
  }
  __syncthreads();
}

template <typename T>
__device__ __forceinline__ void capped_entries(const Column<T>& t) {
  using C = compute_t<T>;
  const C bound = filter_bound<C>(-t.shift, t.largest);
  RK_SHARED(double, values, kThreads);
  RK_SHARED(double, sums, kThreads);
  double value = 0.0, sum = 0.0;
  t.scan([&] { return bound; },
         [&](int64_t i, double x) {
           const double p = dual_entry(x, t.b, t.gamma);
           if (p == 0.0) return;
           value += dual_value(x, p, t.gamma);
           sum += p;
           if (p > 0.0) t.add_row(i, p);
         });
  const int me = static_cast<int>(threadIdx.x);
  values[me] = value;
  sums[me] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half >= kLanes; half /= 2) {
    if (me < half) {
      values[me] += values[me + half];
      sums[me] += sums[me + half];
    }
    __syncthreads();
  }
  if (me < kLanes && t.there()) t.keep({values[me], sums[me], 0.0}, false);
  __syncthreads();
}

// A thread has every eighth group.
template <typename T>
__device__ __forceinline__ void grouped_entries(const Column<T>& t) {
  using C = compute_t<T>;
  const C bound = filter_bound<C>(-t.shift, t.largest);
  const double mu = t.args.mu[t.problem];
  RK_SHARED(double, values, kThreads);
  RK_SHARED(double, sums, kThreads);
  double value = 0.0, sum = 0.0;
  for (int64_t g = threadIdx.x / kLanes; g < t.args.rows; g += kRowStripes) {
    const int64_t first = t.args.group_starts[g], end = t.args.group_starts[g + 1];
    const auto each = [&](auto&& event) {
      for (int64_t r = first; r < end && t.there(); ++r) {
        const int64_t i = t.args.group_rows[r];
        const double exact = row_potential(t.alpha, t.a, i);
        if (!(exact > nothing())) continue;
        const C c = widen(t.cost[i * t.args.columns + t.j]);
        if (c + bound >= static_cast<C>(exact)) continue;
        event(i, entry_at(exact, static_cast<double>(c), t.shift));
      }
    };
    double squares = 0.0;
    each([&](int64_t, double x) { squares += x <= 0.0 ? 0.0 : x * x; });
    const GroupEntry entry = group_entry(squares, t.b, t.gamma, mu);
    value += entry.value;
    if (!(entry.share > 0.0)) continue;
    each([&](int64_t i, double x) {
      if (!(x > 0.0)) return;
      const double p = entry.share * x;
      sum += p;
      t.add_row(i, p);
    });
  }
  const int me = static_cast<int>(threadIdx.x);
  values[me] = value;
  sums[me] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half >= kLanes; half /= 2) {
    if (me < half) {
      values[me] += values[me + half];
      sums[me] += sums[me + half];
    }
    __syncthreads();
  }
  if (me < kLanes && t.there()) t.keep({values[me], sums[me], 0.0}, false);
  __syncthreads();
}

template <typename T>
__device__ __forceinline__ void projected_entries(const Column<T>& t) {
  using C = compute_t<T>;
  RK_SHARED(double, tops, kThreads);
  RK_SHARED(int64_t, units, kThreads);
  RK_SHARED(int64_t, counts, kThreads);
  const int me = static_cast<int>(threadIdx.x), lane = me % kLanes;
  const C open = -static_cast<C>(__builtin_inf());
  double top = nothing();
  int64_t wrong = 0;
  t.scan([&] { return open; },
         [&](int64_t, double x) {
           wrong += is_nan(x) || x == __builtin_inf() ? 1 : 0;
           top = x > top ? x : top;
         });
  tops[me] = top;
  units[me] = wrong;
  __syncthreads();
  bool bad = false;
  for (int s = 0; s < kRowStripes; ++s) {
    top = double_max(tops[lane + s * kLanes], top);
    bad = bad || units[lane + s * kLanes] > 0;
  }
  const double total = t.gamma * t.b;
  const bool warm = t.drop > nothing();
  const double least =
      warm && t.there() ? warm_threshold(-t.args.beta[t.place()], t.drop, t.largest) : nothing();
  const double base = double_max(top - total, least);
  const C bound = filter_bound<C>(base, t.largest + total);
  ShareSearch search(base, bad || !t.there() ? 0.0 : total);
  while (__syncthreads_or(search.done ? 0 : 1)) {
    ShareSum sum{0, 0};
    if (!search.done)
      t.scan([&] { return bound; },
             [&](int64_t, double x) {
               if (x > search.threshold) sum.add(search.share(x));
             });
    units[me] = sum.units;
    counts[me] = sum.count;
    __syncthreads();
    ShareSum all{0, 0};
    for (int s = 0; s < kRowStripes; ++s) {
      all.units += units[lane + s * kLanes];
      all.count += counts[lane + s * kLanes];
    }
    search.update(all);
  }
  int64_t squares = 0;
  if (!bad && total > 0.0)
    t.scan([&] { return bound; },
           [&](int64_t i, double x) {
             if (!(x > search.threshold)) return;
             const double p = share_entry(x, search.threshold, t.b, t.gamma);
             squares += share_units(p / t.b * (p / t.b));
             t.add_row(i, p);
           });
  units[me] = squares;
  __syncthreads();
  if (me < kLanes && t.there()) {
    int64_t all = 0;
    for (int s = 0; s < kRowStripes; ++s) all += units[lane + s * kLanes];
    t.keep(share_column(top, search.threshold, all, t.b, t.gamma), bad);
  }
  __syncthreads();
}

enum class Entries { few, many, capped, grouped, projected };

template <typename T, Entries kEntries>
__global__ void __launch_bounds__(kThreads, 2)
    sparse_evaluate_kernel(SparseTransportArgs args, bool finished) {
  const int64_t tiles = (args.columns + kLanes - 1) / kLanes;
  for (int64_t task = blockIdx.x; task < tiles * args.batch; task += gridDim.x) {
    const int64_t problem = task / tiles;
    if (!finished && args.state[problem].done != 0) continue;
    const Column<T> t = column_of<T>(args, problem, task % tiles);
    if constexpr (kEntries == Entries::few)
      best_entries<false>(t);
    else if constexpr (kEntries == Entries::many)
      best_entries<true>(t);
    else if constexpr (kEntries == Entries::capped)
      capped_entries(t);
    else if constexpr (kEntries == Entries::grouped)
      grouped_entries(t);
    else
      projected_entries(t);
  }
}

enum class Stage { start, step, back, finish };

template <Stage kStage>
__global__ void __launch_bounds__(kTeamLanes) sparse_stage_kernel(SparseTransportArgs args) {
  RK_SHARED(double, space, kTeamLanes);
  BlockTeam<kTeamLanes> team{space};
  for (int64_t problem = blockIdx.x; problem < args.batch; problem += gridDim.x) {
    if constexpr (kStage == Stage::start) start_problem(team, args, problem);
    if constexpr (kStage == Stage::step) step_problem(team, args, problem);
    if constexpr (kStage == Stage::back) return_to_best(team, args, problem);
    if constexpr (kStage == Stage::finish) finish_problem(team, args, problem);
  }
}

template <typename T, Entries kEntries>
void solve(const SparseTransportArgs& args, cudaStream_t stream) {
  const int64_t tiles = ceil_div(args.columns, int64_t{kLanes});
  constexpr bool kFew = kEntries == Entries::few, kMany = kEntries == Entries::many;
  const int64_t all = grid_blocks(tiles * args.batch, kBlocksPerSm);
  const int64_t grid = kMany ? least_of(all, args.list_blocks) : all;
  const int64_t teams = grid_blocks(args.batch, kBlocksPerSm);
  // A list for each thread, and its length.
  const int64_t list = kFew ? args.k * static_cast<int64_t>(sizeof(double) + sizeof(int32_t)) : 0;
  const int64_t length = sizeof(int32_t);
  const int64_t shared = kFew || kMany ? kThreads * (list + length) : 0;
  const auto evaluate = [&](bool finished) {
    RK_LAUNCH((sparse_evaluate_kernel<T, kEntries>), grid, kThreads,
              large_shared(static_cast<std::size_t>(shared)), stream, args, finished);
  };
  RK_LAUNCH((sparse_stage_kernel<Stage::start>), teams, kTeamLanes, 0, stream, args);
  for (int64_t e = 0; e < args.max_evaluations; ++e) {
    evaluate(false);
    RK_LAUNCH((sparse_stage_kernel<Stage::step>), teams, kTeamLanes, 0, stream, args);
  }
  RK_LAUNCH((sparse_stage_kernel<Stage::back>), teams, kTeamLanes, 0, stream, args);
  evaluate(true);
  RK_LAUNCH((sparse_stage_kernel<Stage::finish>), teams, kTeamLanes, 0, stream, args);
}

}  // namespace

void sparse_transport(const SparseTransportArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.mu != nullptr) return solve<T, Entries::grouped>(args, stream);
    if (args.k > kSortedEntries) return solve<T, Entries::many>(args, stream);
    if (args.k > 0) return solve<T, Entries::few>(args, stream);
    if (args.method == SparseMethod::dual) return solve<T, Entries::capped>(args, stream);
    solve<T, Entries::projected>(args, stream);
  });
}

}  // namespace regkern::cuda
