#include "transport/normalize_team.cuh"
#include "transport/small.h"

namespace regkern::cuda {
namespace {

using namespace transport;

// A problem of a team of threads: 16 of a warp, or a block. What is decided is decided for all of a
// block, whose threads meet at __syncthreads.
template <typename C, bool kShort>
struct TeamWork {
  using T = Team<kShort>;
  using Number = C;
  static constexpr int kLanes = 1;
  static constexpr bool kPasses = false, kSpans = false;

  const SmallArgs& args;
  SmallSide<C> side[2];
  SmallLanes<1> lanes;
  double* terms;
  C *parts, *k;
  int ld;
  int64_t place;
  bool live;
  C unit;

  __device__ TeamWork(const SmallArgs& args, unsigned char* points, C* matrix)
      : args(args), lanes{}, k(matrix), ld(static_cast<int>(small_stride(args))), place(0) {
    const int n = args.n, m = args.m;
    double* doubles = reinterpret_cast<double*>(points);
    C* numbers = reinterpret_cast<C*>(doubles + 2 * (n + m) + (n > m ? n : m));
    for (int s = 0; s < 2; ++s) {
      const int size = s == 0 ? n : m;
      side[s] = {size,
                 numbers,
                 numbers + size,
                 numbers + 2 * size,
                 numbers + 3 * size,
                 numbers + 4 * size,
                 doubles,
                 doubles + size};
      numbers += 5 * size;
      doubles += 2 * size;
    }
    terms = doubles;
    parts = numbers;
  }

  __device__ void load(int64_t problem, bool is_live) {
    place = problem;
    live = is_live;
    unit = static_cast<C>(1.0 / args.eps[problem]);
  }
  __device__ __forceinline__ SmallSide<C> of(int s) const {
    const SmallSide<C>&x = side[0], &y = side[1];
    return {s == 0 ? x.size : y.size, s == 0 ? x.weight : y.weight,
            s == 0 ? x.pad : y.pad,   s == 0 ? x.scaling : y.scaling,
            s == 0 ? x.sum : y.sum,   s == 0 ? x.shift : y.shift,
            s == 0 ? x.mass : y.mass, s == 0 ? x.potential : y.potential};
  }
  __device__ __forceinline__ int64_t problem(int) const { return place; }
  __device__ __forceinline__ C cost(int i, int j) const {
    return read_element<C>(args.dtype, args.cost, (place * args.n + i) * args.m + j);
  }
  __device__ __forceinline__ C& at(int i, int j) const { return k[i * ld + j]; }

  template <typename F>
  __device__ __forceinline__ void points(int size, F f) const {
    T::each(size, [&](int i) { f(i, 0); });
  }
  template <typename F>
  __device__ __forceinline__ bool any(int size, F f) {
    bool some = false;
    for (int i = T::thread(); i < size; i += T::threads()) some = some || f(i, 0);
    if constexpr (kShort) {
      const unsigned votes = __ballot_sync(kWholeWarp, some);
      const unsigned first = threadIdx.x % kWarpLanes / kTeamThreads * kTeamThreads;
      lanes.flags[0] = (votes >> first & 0xFFFFu) != 0u;
      return any_lane();
    } else {
      lanes.flags[0] = __syncthreads_or(some) != 0;
      return lanes.flags[0] != 0;
    }
  }
  __device__ __forceinline__ bool any_lane() const { return __syncthreads_or(lanes.flags[0]) != 0; }
  __device__ __forceinline__ void total(int size) {
    double sum = 0.0;
    for (int i = 0; i < size; ++i) sum += terms[i];
    lanes.totals[0] = sum;
    __syncthreads();
  }
  template <typename F>
  __device__ __forceinline__ void sum(int size, F f) {
    double* const to = terms;
    points(size, [=](int i, int l) { to[i] = f(i, l); });
    total(size);
  }

  __device__ __forceinline__ void sums(int s) {
    const int n = args.n, m = args.m;
    const SmallSide<C>&rows = side[0], &columns = side[1];
    if (s == 0)
      T::template rows<C>(
          n, m, [&](int i, int j) { return at(i, j) * columns.scaling[j]; },
          [&](int i, C sum) { rows.sum[i] = sum; });
    else
      T::columns(
          n, m, parts, [&](int i, int j) { return at(i, j) * rows.scaling[i]; },
          [&](int j, C sum) { columns.sum[j] = sum; });
  }

  __device__ __forceinline__ bool plain(int s) {
    sums(s);
    const SmallSide<C> mine = of(s);
    const bool done = lanes.done[0] != 0;
    bool out = false;
    for (int i = T::thread(); i < mine.size; i += T::threads()) {
      const C sum = mine.sum[i] + mine.pad[i];
      out = out || sum < SumRange<C>::kLeast || sum > SumRange<C>::kMost;
      if (!done) mine.scaling[i] = mine.weight[i] / sum;
    }
    out = out && !done;
    if constexpr (kShort) {
      const unsigned votes = __ballot_sync(kWholeWarp, out);
      const unsigned first = threadIdx.x % kWarpLanes / kTeamThreads * kTeamThreads;
      lanes.flags[0] = (votes >> first & 0xFFFFu) != 0u;
      return __syncthreads_or(out) == 0;
    } else {
      lanes.flags[0] = __syncthreads_or(out) != 0;
      return lanes.flags[0] == 0;
    }
  }
  __device__ __forceinline__ bool pass() { return false; }

  __device__ void peaks(int s) {
    const SmallSide<C> mine = of(s), other = of(1 - s);
    const bool flagged = lanes.flags[0] != 0;
    T::each(flagged ? mine.size : 0, [&](int i) {
      set_peak(mine, i, true,
               largest_term<1>(other, 0, [&](int o) { return s == 0 ? cost(i, o) : cost(o, i); }));
    });
  }

  __device__ void build() {
    const SmallSide<C> rows = side[0], columns = side[1];
    const int n = lanes.flags[0] != 0 ? args.n : 0;
    T::elements(n, args.m, [&](int i, int j) {
      const C x = small_power(rows.shift[i], cost(i, j), columns.shift[j], unit);
      const bool none = rows.weight[i] == C(0) || columns.weight[j] == C(0);
      at(i, j) = choose(none && x == x, C(0), x);
    });
  }

  __device__ double softmin(int s, int i, int) const {
    return small_softmin<1>(of(1 - s), 0, unit, lanes.eps[0],
                            [&](int o) { return s == 0 ? cost(i, o) : cost(o, i); });
  }

  __device__ void store() const {
    const double shift = lanes.totals[0];
    const int n = live ? args.n : 0, m = live ? args.m : 0;
    T::each(n, [&](int i) { args.f[place * n + i] = side[0].potential[i] + shift; });
    T::each(m, [&](int j) { args.g[place * m + j] = side[1].potential[j] - shift; });
    if (!live || T::thread() != 0) return;
    args.value[place] = lanes.value[0];
    args.error[place] = lanes.error[0];
    args.iterations[place] = lanes.iterations[0];
    args.status[place] = static_cast<int8_t>(lanes.status[0]);
  }
};

// A block of doubles has shared memory for itself.
template <typename C, bool kShort>
__global__ void __launch_bounds__(kShort ? kTeamThreads * kTeamsOfBlock : kLongThreads,
                                  sizeof(C) == sizeof(double) ? 1 : 2)
    transport_small_kernel(SmallArgs args) {
  RK_DYNAMIC_SHARED(unsigned char, shared);
  constexpr int kTeams = kShort ? kTeamsOfBlock : 1;
  const int team = kShort ? static_cast<int>(threadIdx.x) / kTeamThreads : 0;
  const bool fits = fits_shared(args);
  unsigned char* const own = shared + team * (fits ? small_bytes(args) : small_points(args));
  C* const matrix = fits ? reinterpret_cast<C*>(own + small_points(args))
                         : static_cast<C*>(args.space) + blockIdx.x * small_matrix(args);
  TeamWork<C, kShort> work(args, own, matrix);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTeams;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kTeams; base < args.batch; base += step) {
    const bool live = base + team < args.batch;
    work.load(live ? base + team : args.batch - 1, live);
    SmallSolver<TeamWork<C, kShort>>(work, args).run();
    __syncthreads();
  }
}

template <typename C, bool kShort>
void launch_small(const SmallArgs& args, cudaStream_t stream) {
  constexpr int kTeams = kShort ? kTeamsOfBlock : 1;
  const int64_t bytes = (fits_shared(args) ? small_bytes(args) : small_points(args)) * kTeams;
  RK_LAUNCH((transport_small_kernel<C, kShort>), ceil_div(small_teams(args), int64_t{kTeams}),
            (kShort ? kTeamThreads * kTeamsOfBlock : kLongThreads),
            large_shared(static_cast<std::size_t>(bytes)), stream, args);
}

}  // namespace

void transport_small(const SmallArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const bool sides = has_short_sides(args);
  if (args.dtype == Dtype::float64)
    sides ? launch_small<double, true>(args, stream) : launch_small<double, false>(args, stream);
  else
    sides ? launch_small<float, true>(args, stream) : launch_small<float, false>(args, stream);
}

}  // namespace regkern::cuda
