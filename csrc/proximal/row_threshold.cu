#include "proximal/row_threshold.h"
#include "proximal/team.cuh"

namespace regkern::cuda {
namespace {

using namespace proximal;

// Laws with a kernel of their own: how the solution is found.
enum class Solver { sets, weighted, capped, entmax };

// Items of one launch.
struct ItemChunk {
  static constexpr int kMost = 32;
  RowThresholdItem items[kMost];
  int64_t begin[kMost + 1];  // slices of the launch before an item
  int count;
};

struct RowOptions {
  RowLaw law;
  const void* weights;
  double cap;
  int64_t* zeros;
  void* loss;
  const int64_t* label;
  const void* target;
  int64_t ignore;
  int64_t staged;  // elements of a slice that shared memory has room for
};

// The elements of a slice, in shared memory where they fit.
template <typename T>
struct Row {
  using C = compute_t<T>;
  const T* x;
  const C* stage;  // or null
  const Slices& slices;
  int64_t n;

  __device__ __forceinline__ C operator[](int64_t k) const {
    return stage != nullptr ? stage[k] : widen(x[slice_offset(slices, k)]);
  }
};

template <int kTeam, typename T>
__device__ __forceinline__ RowTop<compute_t<T>> top_of(const Row<T>& row) {
  using C = compute_t<T>;
  int64_t most[2] = {0, kLowestOrdered<C>};
  for (int64_t k = team_lane<kTeam>(); k < row.n; k += kTeam) {
    const C v = row[k];
    const int64_t magnitude = magnitude_bits(v);
    const int64_t ordered = ordered_bits<C>(bit_cast<row_bits_t<C>>(v));
    most[0] = magnitude > most[0] ? magnitude : most[0];
    most[1] = ordered > most[1] ? ordered : most[1];
  }
  team_max<kTeam>(most);
  return {static_cast<row_bits_t<C>>(most[0]), static_cast<row_bits_t<C>>(most[1])};
}

template <int kTeam, typename T>
__device__ __forceinline__ compute_t<T> solve_sets(const RowPlan<compute_t<T>>& plan, RowLaw law,
                                                   const Row<T>& row, double* exact) {
  using C = compute_t<T>;
  const bool magnitudes = uses_magnitudes(law);
  const double scale = inverse_power(static_cast<double>(plan.bound));
  bool narrow = false;
  if constexpr (sizeof(C) == 4) narrow = narrow_sum_holds(plan.bound);
  const float fine = narrow ? static_cast<float>(scale * (int64_t{1} << kNarrowBits)) : 0.0f;
  return michelot(plan, exact, [&](C tau, bool all) -> ActiveSums {
    WideSum sum;
    int64_t count = 0;
    for (int64_t k = team_lane<kTeam>(); k < row.n; k += kTeam) {
      const C v = row[k];
      const C a = (magnitudes && v < C(0) ? -v : v) - plan.shift;
      if (!all && !(a > tau)) continue;
      ++count;
      if (narrow)
        sum.high += narrow_term(static_cast<float>(a), fine);
      else
        sum.add(static_cast<double>(a) * scale);
    }
    int64_t sums[3] = {sum.high, sum.low, count};
    team_sum<kTeam>(sums);
    const WideSum total{sums[0], sums[1]};
    const double value = narrow ? static_cast<double>(total.high) / static_cast<double>(fine)
                                : total.value() / scale;
    return {value, static_cast<double>(sums[2]), sums[2]};
  });
}

template <int kTeam, typename T>
__device__ __forceinline__ compute_t<T> solve_weighted(const RowPlan<compute_t<T>>& plan,
                                                       const compute_t<T>* w, const Row<T>& row,
                                                       double* exact) {
  using C = compute_t<T>;
  int64_t heaviest[1] = {0};
  for (int64_t k = team_lane<kTeam>(); k < row.n; k += kTeam) {
    const int64_t bits = w[k] > C(0) ? magnitude_bits(w[k]) : 0;
    heaviest[0] = bits > heaviest[0] ? bits : heaviest[0];
  }
  team_max<kTeam>(heaviest);
  const double scale = inverse_power(static_cast<double>(plan.bound));
  const double unit =
      inverse_power(static_cast<double>(bit_cast<C>(static_cast<row_bits_t<C>>(heaviest[0]))));
  return michelot(plan, exact, [&](C tau, bool all) -> ActiveSums {
    WideSum sum, weight;
    int64_t count = 0;
    for (int64_t k = team_lane<kTeam>(); k < row.n; k += kTeam) {
      const C v = row[k];
      const C a = v < C(0) ? -v : v;
      if (!all && !(a > tau * w[k])) continue;
      const double u = static_cast<double>(w[k]) * unit;
      sum.add(static_cast<double>(a) * scale * u);
      weight.add(u * u);
      ++count;
    }
    int64_t sums[5] = {sum.high, sum.low, weight.high, weight.low, count};
    team_sum<kTeam>(sums);
    return {WideSum{sums[0], sums[1]}.value() / scale / unit,
            WideSum{sums[2], sums[3]}.value() / unit / unit, sums[4]};
  });
}

template <int kTeam, typename T>
__device__ __forceinline__ double solve_capped(const RowPlan<compute_t<T>>& plan, double cap,
                                               const Row<T>& row) {
  const double scale = inverse_power(static_cast<double>(plan.bound));
  return bitran_hax(plan.t, cap, row.n,
                    [&](double lowest, double highest, double tau) -> CappedSums {
                      WideSum low, high, all;
                      int64_t low_count = 0, high_count = 0, count = 0;
                      for (int64_t k = team_lane<kTeam>(); k < row.n; k += kTeam) {
                        const double a = static_cast<double>(row[k]);
                        if (!(a > lowest && a < highest)) continue;
                        all.add(a * scale);
                        ++count;
                        if (a <= tau) {
                          low.add(a * scale);
                          ++low_count;
                        } else if (a >= tau + cap) {
                          high.add(a * scale);
                          ++high_count;
                        }
                      }
                      int64_t sums[9] = {low.high, low.low,   high.high,  high.low, all.high,
                                         all.low,  low_count, high_count, count};
                      team_sum<kTeam>(sums);
                      return {WideSum{sums[0], sums[1]}.value() / scale,
                              WideSum{sums[2], sums[3]}.value() / scale,
                              WideSum{sums[4], sums[5]}.value() / scale,
                              sums[6],
                              sums[7],
                              sums[8]};
                    });
}

template <int kTeam, typename T>
__device__ __forceinline__ double solve_entmax(const RowPlan<compute_t<T>>& plan,
                                               const Row<T>& row) {
  return entmax_newton([&](double tau) -> SquareSums {
    WideSum sum, squares;
    for (int64_t k = team_lane<kTeam>(); k < row.n; k += kTeam) {
      const double a = (static_cast<double>(row[k]) - static_cast<double>(plan.shift)) * 0.5;
      const double d = a - tau;
      if (!(a > -1.0) || !(d > 0.0)) continue;
      sum.add(d);
      squares.add(d * d);
    }
    int64_t sums[4] = {sum.high, sum.low, squares.high, squares.low};
    team_sum<kTeam>(sums);
    return {WideSum{sums[0], sums[1]}.value(), WideSum{sums[2], sums[3]}.value()};
  });
}

// The first warp of the team adds up the loss, 32 lanes as the CPU has them.
template <int kTeam, typename T>
__device__ __forceinline__ void write_loss(const RowOptions& o, const RowThresholdItem& item,
                                           int64_t slice, int64_t start,
                                           const RowSolution<compute_t<T>>& s, const Row<T>& row) {
  using C = compute_t<T>;
  const T* target = static_cast<const T*>(o.target);
  const int64_t label = target == nullptr ? o.label[slice] : 0;
  const bool ignored = target == nullptr && label == o.ignore;
  const auto wanted = [&](int64_t k) -> double {
    if (target == nullptr) return k == label ? 1.0 : 0.0;
    return static_cast<double>(widen(target[start + slice_offset(item.slices, k)]));
  };
  T* y = static_cast<T*>(item.y) + start;
  for (int64_t k = team_lane<kTeam>(); k < row.n; k += kTeam) {
    const C p = row_result(o.law, s, row[k], C(1), o.cap);
    const C d = ignored ? C(0) : static_cast<C>(static_cast<double>(p) - wanted(k));
    narrow(d, y + slice_offset(item.slices, k));
  }
  if (team_lane<kTeam>() >= 32) return;
  double sum = 0.0;
  for (int64_t k = team_lane<kTeam>(); k < row.n; k += 32) {
    const C v = row[k];
    const double p = static_cast<double>(row_result(o.law, s, v, C(1), o.cap));
    sum += loss_term(o.law, p, wanted(k), static_cast<double>(v) - static_cast<double>(s.top));
  }
  sum = lane_sum(sum);
  const bool known = target != nullptr || (label >= 0 && label < row.n);
  if (team_lane<kTeam>() == 0)
    static_cast<C*>(o.loss)[slice] =
        ignored ? C(0) : (known ? static_cast<C>(sum) : not_a_number<C>());
}

template <typename T, int kTeam, Solver kSolver>
__global__ void __launch_bounds__(kTeamThreads, 2)
    row_threshold_kernel(const __grid_constant__ ItemChunk chunk, RowOptions o) {
  using C = compute_t<T>;
  RK_DYNAMIC_SHARED(C, shared);
  constexpr int kTeams = kTeamThreads / kTeam;
  const int team = static_cast<int>(threadIdx.x) / kTeam, lane = team_lane<kTeam>();
  C* stage = shared + team * o.staged;
  const int64_t slices = chunk.begin[chunk.count];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTeams;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kTeams + team; at < slices; at += step) {
    int i = 0;
    while (chunk.begin[i + 1] <= at) ++i;
    const RowThresholdItem& item = chunk.items[i];
    const int64_t slice = at - chunk.begin[i], start = slice_start(item.slices, slice);
    const int64_t n = slice_size(item.slices);
    const T* x = static_cast<const T*>(item.x) + start;
    T* y = static_cast<T*>(item.y) + start;
    Row<T> row{x, nullptr, item.slices, n};
    constexpr int V = kLanesOf<T>;
    const bool wide = item.slices.outer == 1 && n % V == 0 && o.loss == nullptr && n <= o.staged &&
                      reinterpret_cast<std::uintptr_t>(x) % kVectorBytes == 0 &&
                      reinterpret_cast<std::uintptr_t>(y) % kVectorBytes == 0;
    if (n <= o.staged) {
      if (wide) {
        for (int64_t k = int64_t{lane} * V; k < n; k += int64_t{kTeam} * V) {
          const Vector<T, V> in = load_vector<T, V>(x + k);
#pragma unroll
          for (int j = 0; j < V; ++j) stage[k + j] = widen(in.v[j]);
        }
      } else {
        for (int64_t k = lane; k < n; k += kTeam) stage[k] = widen(x[slice_offset(item.slices, k)]);
      }
      row.stage = stage;
      team_sync<kTeam>();
    }
    const double t = item.t[slice * item.t_stride];
    const C* w = static_cast<const C*>(o.weights);
    const RowTop<C> top = top_of<kTeam>(row);
    const RowPlan<C> plan = plan_row(o.law, top, t, w != nullptr);
    RowSolution<C> s{plan.shift, plan.level, static_cast<double>(plan.level), C(0),
                     bit_cast<C>(ordered_bits<C>(top.ordered))};
    if (!plan.solved) {
      if constexpr (kSolver == Solver::sets)
        s.level = solve_sets<kTeam>(plan, o.law, row, &s.exact);
      if constexpr (kSolver == Solver::weighted)
        s.level = solve_weighted<kTeam>(plan, w, row, &s.exact);
      if constexpr (kSolver == Solver::capped) s.exact = solve_capped<kTeam>(plan, o.cap, row);
      if constexpr (kSolver == Solver::entmax) s.exact = solve_entmax<kTeam>(plan, row);
      if constexpr (kSolver == Solver::capped || kSolver == Solver::entmax)
        s.level = static_cast<C>(s.exact);
    }
    s.theta = returned_threshold(o.law, s, top, t);
    if (lane == 0) static_cast<C*>(item.theta)[slice] = s.theta;
    int64_t alive[1] = {0};
    if (o.loss != nullptr) {
      write_loss<kTeam>(o, item, slice, start, s, row);
    } else if (wide) {
      for (int64_t k = int64_t{lane} * V; k < n; k += int64_t{kTeam} * V) {
        Vector<T, V> out;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const C value = row_result(o.law, s, stage[k + j], w != nullptr ? w[k + j] : C(1), o.cap);
          alive[0] += !(value == C(0));
          narrow(value, &out.v[j]);
        }
        store_vector(out, y + k);
      }
    } else {
      for (int64_t k = lane; k < n; k += kTeam) {
        const C value = row_result(o.law, s, row[k], w != nullptr ? w[k] : C(1), o.cap);
        alive[0] += !(value == C(0));
        narrow(value, y + slice_offset(item.slices, k));
      }
    }
    if (o.zeros != nullptr) {
      team_sum<kTeam>(alive);
      if (lane == 0 && alive[0] == 0)
        atomicAdd(reinterpret_cast<unsigned long long*>(o.zeros), 1ull);
    }
    team_sync<kTeam>();  // the next slice is staged in the same place
  }
}

constexpr int64_t kWarpBytes = 4096;         // of a slice that a warp takes
constexpr int64_t kStageBytes = 192 * 1024;  // of a slice that a block stages

template <typename T, int kTeam, Solver kSolver>
void launch_chunk(const ItemChunk& chunk, const RowOptions& options, cudaStream_t stream) {
  using C = compute_t<T>;
  constexpr int64_t kTeams = kTeamThreads / kTeam;
  const auto bytes = static_cast<std::size_t>(options.staged * kTeams) * sizeof(C);
  const int64_t work = ceil_div(chunk.begin[chunk.count], kTeams);
  RK_LAUNCH((row_threshold_kernel<T, kTeam, kSolver>), grid_blocks(work, 16), kTeamThreads,
            large_shared(bytes), stream, chunk, options);
}

template <typename T, Solver kSolver>
void launch_items(const RowThresholdArgs& args, cudaStream_t stream) {
  using C = compute_t<T>;
  RowOptions options{args.law,   args.weights, args.cap,    args.zeros, args.loss,
                     args.label, args.target,  args.ignore, 0};
  const auto bytes_of = [](const RowThresholdItem& item) {
    return slice_size(item.slices) * static_cast<int64_t>(sizeof(C));
  };
  // Runs of items of one kind of team.
  for (int64_t i = 0; i < args.count;) {
    ItemChunk chunk;
    chunk.count = 0;
    chunk.begin[0] = 0;
    const bool small = bytes_of(args.items[i]) <= kWarpBytes;
    int64_t most = 0;
    for (; i < args.count && chunk.count < ItemChunk::kMost; ++i) {
      const RowThresholdItem& item = args.items[i];
      if ((bytes_of(item) <= kWarpBytes) != small) break;
      chunk.items[chunk.count] = item;
      chunk.begin[chunk.count + 1] = chunk.begin[chunk.count] + slice_count(item.slices);
      ++chunk.count;
      if (bytes_of(item) <= kStageBytes && bytes_of(item) > most) most = bytes_of(item);
    }
    if (chunk.begin[chunk.count] == 0) continue;
    // Whole vectors, for every team.
    constexpr int64_t kVectors = kVectorBytes / static_cast<int64_t>(sizeof(C));
    options.staged = ceil_div(most / static_cast<int64_t>(sizeof(C)), kVectors) * kVectors;
    if (small)
      launch_chunk<T, 32, kSolver>(chunk, options, stream);
    else
      launch_chunk<T, kTeamThreads, kSolver>(chunk, options, stream);
  }
}

}  // namespace

void row_threshold(const RowThresholdArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.weights != nullptr) return launch_items<T, Solver::weighted>(args, stream);
    if (args.law == RowLaw::capped) return launch_items<T, Solver::capped>(args, stream);
    if (args.law == RowLaw::entmax15) return launch_items<T, Solver::entmax>(args, stream);
    launch_items<T, Solver::sets>(args, stream);
  });
}

}  // namespace regkern::cuda
