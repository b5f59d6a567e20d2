#include "transport/small.h"

#include <type_traits>

#include "transport/normalize_rows.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

// Arrays of one side and of W problems, from a space of vectors.
template <typename C>
void take_side(LaneSpace<C>& space, int size, int64_t vectors, SmallSide<C>* side) {
  const auto numbers = [&] { return reinterpret_cast<C*>(space.take(vectors)); };
  const auto doubles = [&] {
    return reinterpret_cast<double*>(space.take(vectors * static_cast<int64_t>(8 / sizeof(C))));
  };
  *side = {size, numbers(), numbers(), numbers(), numbers(), numbers(), doubles(), doubles()};
}
// Vectors of both sides and of the terms.
template <typename C>
constexpr int64_t kSideVectors = 5 + 3 * static_cast<int64_t>(8 / sizeof(C));

// ---- a problem in each lane of a vector: short sides ----

template <typename C>
class LaneWork {
  using V = Lanes<C>;
  using Range = SumRange<C>;

 public:
  using Number = C;
  static constexpr int kLanes = kLanesOf<C>;
  static constexpr bool kPasses = false, kSpans = true;

  explicit LaneWork(const SmallArgs& args)
      : args_(args),
        space_(args.n * args.m * 2 + args.m + kSideVectors<C> * (args.n + args.m)),
        buffer_(kLanes * args.n * args.m + kBlock) {
    cost_ = space_.take(args.n * args.m);
    k_ = space_.take(args.n * args.m);
    row_ = space_.take(args.m);
    take_side(space_, args.n, args.n, &side[0]);
    take_side(space_, args.m, args.m, &side[1]);
    const int64_t most = args.n > args.m ? args.n : args.m;
    terms = reinterpret_cast<double*>(space_.take(most * static_cast<int64_t>(8 / sizeof(C))));
  }

  void load(int64_t first) {
    first_ = first;
    live_ = static_cast<int>(args_.batch - first < kLanes ? args_.batch - first : kLanes);
    const int n = args_.n, m = args_.m;
    dispatch_floating(args_.dtype, [&](auto zero) {
      using T = decltype(zero);
      if constexpr (std::is_same_v<compute_t<T>, C>)
        load_lanes<T>(args_.cost, first, live_, static_cast<int64_t>(n) * m, n, m, m, 1, m,
                      buffer_.data(), cost_);
    });
    for (int l = 0; l < kLanes; ++l) unit_[l] = static_cast<C>(1.0 / args_.eps[problem(l)]);
  }

  const SmallSide<C>& of(int k) const { return side[k]; }
  int64_t problem(int l) const { return first_ + (l < live_ ? l : live_ - 1); }

  template <typename F>
  void points(int size, F f) const {
    for (int i = 0; i < size; ++i) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) f(i * kLanes + l, l);
    }
  }
  template <typename F>
  bool any(int size, F f) {
    int32_t found[kLanes] = {};
    for (int i = 0; i < size; ++i) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) found[l] |= f(i * kLanes + l, l) ? 1 : 0;
    }
    for (int l = 0; l < kLanes; ++l) lanes.flags[l] = found[l];
    return any_lane();
  }
  bool any_lane() const {
    int32_t some = 0;
    for (int l = 0; l < kLanes; ++l) some |= lanes.flags[l];
    return some != 0;
  }
  void total(int size) {
    const double* const from = terms;
    sum(size, [=](int at, int) { return from[at]; });
  }
  template <typename F>
  void sum(int size, F f) {
    double found[kLanes] = {};
    for (int i = 0; i < size; ++i) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) found[l] += f(i * kLanes + l, l);
    }
    for (int l = 0; l < kLanes; ++l) lanes.totals[l] = found[l];
  }

  void sums(int k) {
    const V* const by = at(side[1 - k].scaling);
    V* const sum = at(side[k].sum);
    for (int i = 0; i < side[k].size; ++i) sum[i] = product<0>(k, by, i);
  }

  bool plain(int k) {
    const bool four = args_.n == 4 && args_.m == 4;
    return four ? plain_side<4>(k) : plain_side<0>(k);
  }
  bool pass() { return false; }

  [[gnu::noinline]] bool span(int64_t count) {
    const bool padded = has_pads();
    if (!padded && args_.n == 4 && args_.m == 4) return span_as<4, false>(count);
    if (!padded && args_.n == 8 && args_.m == 8) return span_as<8, false>(count);
    return padded ? span_as<0, true>(count) : span_as<0, false>(count);
  }

  // What SmallSolver does, to the bit, of hard sides that begin at zero and do not stop early: less
  // what is the same for all such problems, in few passes.
  bool whole() {
    if (!weigh(0, args_.a) || !weigh(1, args_.b)) return false;
    for (int l = 0; l < kLanes; ++l) {
      lanes.eps[l] = args_.eps[problem(l)];
      lanes.done[l] = 0;
    }
    return center() && span(args_.max_iter) && conclude();
  }

  void peaks(int k) {
    const SmallSide<C>&mine = side[k], &other = side[1 - k];
    const V *scaling = at(other.scaling), *shift = at(other.shift);
    const V none = all_lanes(no_logit<C>());
    const int64_t step = k == 0 ? args_.m : 1, other_step = k == 0 ? 1 : args_.m;
    for (int i = 0; i < mine.size; ++i) {
      V most = none;
      for (int o = 0; o < other.size; ++o) {
        const V term = scaling[o] > V{} ? shift[o] - cost_[i * step + o * other_step] : none;
        most = term > most ? term : most;
      }
      const C* const found = reinterpret_cast<const C*>(&most);
#pragma omp simd
      for (int l = 0; l < kLanes; ++l)
        set_peak(mine, i * kLanes + l, lanes.flags[l] != 0, found[l]);
    }
  }

  void build() {
    const int n = args_.n, m = args_.m;
    bool all = true;
    for (int l = 0; l < kLanes; ++l) all = all && lanes.flags[l];
    const V *f = at(side[0].shift), *g = at(side[1].shift);
    const V *a = at(side[0].weight), *b = at(side[1].weight);
    V unit, flagged;
    for (int l = 0; l < kLanes; ++l) {
      unit[l] = unit_[l];
      flagged[l] = lanes.flags[l] ? C(1) : C(0);
    }
    C* const e = reinterpret_cast<C*>(row_);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < m; ++j) row_[j] = ((f[i] - cost_[i * m + j]) + g[j]) * unit;
#pragma omp simd
      for (int x = 0; x < m * kLanes; ++x) e[x] = exp_or_zero(e[x]);
      for (int j = 0; j < m; ++j) {
        const auto none = ((a[i] == V{}) | (b[j] == V{})) & (row_[j] == row_[j]);
        const V found = none ? V{} : row_[j];
        V& k = k_[i * m + j];
        k = all ? found : (flagged == V{} ? k : found);
      }
    }
  }

  double softmin(int k, int point, int l) const {
    const int i = point / kLanes, step = k == 0 ? args_.m : 1, other = k == 0 ? 1 : args_.m;
    return small_softmin<kLanes>(side[1 - k], l, unit_[l], lanes.eps[l],
                                 [=, this](int o) { return cost_[i * step + o * other][l]; });
  }

  void store() const {
    for (int k = 0; k < 2; ++k) {
      const int size = side[k].size;
      double* const potential = side[k].potential;
      for (int i = 0; i < size; ++i)
#pragma omp simd
        for (int l = 0; l < kLanes; ++l)
          potential[i * kLanes + l] += k == 0 ? lanes.totals[l] : -lanes.totals[l];
      double* const out = (k == 0 ? args_.f : args_.g) + first_ * size;
      constexpr int kD = kLanesOf<double>;
      if (size % kD != 0) {
        for (int l = 0; l < live_; ++l)
          for (int i = 0; i < size; ++i) out[l * size + i] = potential[i * kLanes + l];
        continue;
      }
      for (int i = 0; i < size; i += kD)
        for (int at = 0; at < kLanes; at += kD) {
          Lanes<double> block[kD];
#pragma GCC unroll 8
          for (int l = 0; l < kD; ++l) block[l] = load_vector(potential + (i + l) * kLanes + at);
          transpose_lanes<double>(block);
          for (int l = 0; l < kD && at + l < live_; ++l)
            store_vector(block[l], out + (at + l) * size + i);
        }
    }
    for (int l = 0; l < live_; ++l) {
      args_.value[first_ + l] = lanes.value[l];
      args_.error[first_ + l] = lanes.error[l];
      args_.iterations[first_ + l] = lanes.iterations[l];
      args_.status[first_ + l] = static_cast<int8_t>(lanes.status[l]);
    }
  }

  SmallSide<C> side[2];
  SmallLanes<kLanes> lanes;
  double* terms;

 private:
  static V* at(C* data) { return reinterpret_cast<V*>(data); }

  // Weights, of which none is so small that it counts as none, and scalings to begin with.
  bool weigh(int k, const double* given) {
    const int size = side[k].size;
    double* const mass = side[k].mass;
    V *const weight = at(side[k].weight), *const pad = at(side[k].pad);
    V *const scaling = at(side[k].scaling), *const shift = at(side[k].shift);
    const V least = all_lanes(C(1e-20));
    V small{};
    if (given == nullptr) {
      const double uniform = 1.0 / size;
      for (int e = 0; e < size * kLanes; ++e) mass[e] = uniform;
      for (int i = 0; i < size; ++i) weight[i] = all_lanes(static_cast<C>(uniform));
    } else {
      for (int i = 0; i < size; ++i) {
        for (int l = 0; l < kLanes; ++l) {
          mass[i * kLanes + l] = given[problem(l) * size + i];
          weight[i][l] = static_cast<C>(mass[i * kLanes + l]);
        }
        small = weight[i] > least ? small : all_lanes(C(1));
      }
    }
    for (int i = 0; i < size; ++i) {
      pad[i] = shift[i] = V{};
      scaling[i] = weight[i];
    }
    return !any_of(small);
  }

  static bool any_of(const V& flags) {
    bool some = false;
    for (int l = 0; l < kLanes; ++l) some = some || flags[l] != C(0);
    return some;
  }

  // K around the smallest costs of rows; false where a row has none.
  bool center() {
    const int n = args_.n, m = args_.m;
    const V none = all_lanes(no_logit<C>()), one = all_lanes(C(1));
    V unit, alone{};
    for (int l = 0; l < kLanes; ++l) unit[l] = unit_[l];
    V* const shift = at(side[0].shift);
    for (int i = 0; i < n; ++i) {
      const V* const cost = cost_ + i * m;
      V most = none;
      for (int j = 0; j < m; ++j) {
        const V term = V{} - cost[j];
        most = term > most ? term : most;
      }
      alone = most == none ? one : alone;
      shift[i] = -most;
      for (int j = 0; j < m; ++j) k_[i * m + j] = (shift[i] - cost[j]) * unit;
    }
    C* const e = reinterpret_cast<C*>(k_);
#pragma omp simd
    for (int x = 0; x < n * m * kLanes; ++x) e[x] = exp_or_zero(e[x]);
    return !any_of(alone);
  }

  // Potentials, values and errors from the scalings; false where they are unusual.
  bool conclude() {
    double mass[2][kLanes], dual[2][kLanes], error[kLanes];
    for (int k = 0; k < 2; ++k) {
      const SmallSide<C>& mine = side[k];
      const C *scaling = mine.scaling, *weight = mine.weight, *shift = mine.shift;
      const double *eps = lanes.eps, *masses = mine.mass;
      double *const potential = mine.potential, *const all = mass[k], *const sum = dual[k];
      for (int l = 0; l < kLanes; ++l) all[l] = sum[l] = 0.0;
      for (int i = 0; i < mine.size; ++i) {
#pragma omp simd
        for (int l = 0; l < kLanes; ++l) {
          const int at = i * kLanes + l;
          const double found =
              static_cast<double>(shift[at]) + eps[l] * ratio_log(scaling[at] / weight[at]);
          potential[at] = found;
          all[l] += masses[at];
          sum[l] += masses[at] * found;
        }
      }
    }
    const V* const by = at(side[1].scaling);
    V low = all_lanes(C(1)), high = low;
    for (int l = 0; l < kLanes; ++l) error[l] = 0.0;
    for (int i = 0; i < args_.n; ++i) {
      const V sum = product<0>(0, by, i);
      low = sum < low ? sum : low;
      high = sum > high ? sum : high;
      C has[kLanes];
      store_vector(sum, has);
      const C *scaling = side[0].scaling + i * kLanes, *weight = side[0].weight + i * kLanes;
      const double* const masses = side[0].mass + i * kLanes;
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const double there = static_cast<double>(scaling[l]) * static_cast<double>(has[l]) /
                             static_cast<double>(weight[l]);
        error[l] += masses[l] * regkern::fabs(there - 1.0);
      }
    }
    bool usual = true;
    for (int l = 0; l < kLanes; ++l) {
      const double ours = mass[0][l], theirs = mass[1][l], both = ours + theirs;
      const double shift = both > 0.0 ? (dual[1][l] - dual[0][l]) / both : 0.0;
      lanes.error[l] = error[l] / (ours > 0.0 ? ours : 1.0);
      lanes.totals[l] = shift;
      lanes.value[l] = (dual[0][l] + shift * ours) + (dual[1][l] - shift * theirs) -
                       lanes.eps[l] * (theirs - ours * theirs);
      lanes.iterations[l] = static_cast<int32_t>(args_.max_iter);
      lanes.status[l] = kStopped;
      // An infinite potential, or NaN, is seen in the sum over all of them.
      usual = usual && is_finite(lanes.error[l]) && is_finite(dual[0][l]) && is_finite(dual[1][l]);
      usual = usual && !(low[l] < Range::kLeast) && !(high[l] > Range::kMost);
    }
    if (usual) store();
    return usual;
  }

  template <int N>
  V product(int k, const V* by, int i) const {
    const int m = N > 0 ? N : args_.m, size = N > 0 ? N : side[1 - k].size;
    const V* const from = k_ + (k == 0 ? i * m : i);
    const int step = k == 0 ? 1 : m;
    V sum = from[0] * by[0];
#pragma GCC unroll 4
    for (int o = 1; o < size; ++o) sum = sum + from[o * step] * by[o];
    return sum;
  }

  bool has_pads() const {
    V some{};
    for (int k = 0; k < 2; ++k) {
      const V* const pad = at(side[k].pad);
      for (int i = 0; i < side[k].size; ++i) some = some + pad[i];
    }
    C all = C(0);
    for (int l = 0; l < kLanes; ++l) all += some[l];
    return all != C(0);
  }

  // Scalings are in registers as far as they go, and what has been is looked at in the end.
  template <int N, bool kPadded>
  bool span_as(int64_t count) {
    constexpr int kMost = N > 0 ? N : kNormalizeSide;
    const int n = N > 0 ? N : args_.n, m = N > 0 ? N : args_.m;
    V *const y = at(side[0].scaling), *const x = at(side[1].scaling);
    const V *const a = at(side[0].weight), *const b = at(side[1].weight);
    const V *const pad_a = at(side[0].pad), *const pad_b = at(side[1].pad), *const k = k_;
    V u[kMost], v[kMost];
    V low = all_lanes(C(1)), high = low;
    for (int i = 0; i < n; ++i) u[i] = V{};
    for (int j = 0; j < m; ++j) v[j] = x[j];
    for (int64_t t = 0; t < count; ++t) {
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) {
        V sum = k[i * m] * v[0];
#pragma GCC unroll 8
        for (int j = 1; j < m; ++j) sum = sum + k[i * m + j] * v[j];
        if (kPadded) sum = sum + pad_a[i];
        low = sum < low ? sum : low;
        high = sum > high ? sum : high;
        u[i] = a[i] / sum;
      }
#pragma GCC unroll 8
      for (int j = 0; j < m; ++j) {
        V sum = k[j] * u[0];
#pragma GCC unroll 8
        for (int i = 1; i < n; ++i) sum = sum + k[i * m + j] * u[i];
        if (kPadded) sum = sum + pad_b[j];
        low = sum < low ? sum : low;
        high = sum > high ? sum : high;
        v[j] = b[j] / sum;
      }
    }
    const auto out = (low < all_lanes(Range::kLeast)) | (high > all_lanes(Range::kMost));
    V kept{};
    for (int l = 0; l < kLanes; ++l) {
      if (out[l] != 0 && lanes.done[l] == 0) return false;
      kept[l] = lanes.done[l] ? C(1) : C(0);
    }
    for (int i = 0; i < n; ++i) y[i] = kept == V{} ? u[i] : y[i];
    for (int j = 0; j < m; ++j) x[j] = kept == V{} ? v[j] : x[j];
    return true;
  }

  template <int N>
  bool plain_side(int k) {
    const int size = N > 0 ? N : side[k].size;
    const V *by = at(side[1 - k].scaling), *weight = at(side[k].weight), *pad = at(side[k].pad);
    V* const scaling = at(side[k].scaling);
    const V least = all_lanes(SumRange<C>::kLeast), most = all_lanes(SumRange<C>::kMost);
    int32_t done = 0;
    for (int l = 0; l < kLanes; ++l) done |= lanes.done[l];
    V low = all_lanes(C(1)), high = low, kept{};
    if (done != 0)
      for (int l = 0; l < kLanes; ++l) kept[l] = lanes.done[l] ? C(1) : C(0);
#pragma GCC unroll 4
    for (int i = 0; i < size; ++i) {
      const V padded = product<N>(k, by, i) + pad[i];
      low = padded < low ? padded : low;
      high = padded > high ? padded : high;
      const V next = weight[i] / padded;
      scaling[i] = done != 0 ? (kept == V{} ? next : scaling[i]) : next;
    }
    const auto out = (low < least) | (high > most);
    uint64_t words[sizeof(V) / 8], some = 0;
    memcpy(words, &out, sizeof(V));
    for (const uint64_t word : words) some |= word;
    if (some == 0) return true;
    for (int l = 0; l < kLanes; ++l) lanes.flags[l] = out[l] != 0 && lanes.done[l] == 0;
    return !any_lane();
  }

  const SmallArgs& args_;
  LaneSpace<C> space_;
  Scratch<C> buffer_;
  Lanes<C>*cost_, *k_, *row_;
  C unit_[kLanes];
  int64_t first_ = 0;
  int live_ = 0;
};

// ---- a problem at a time ----

template <typename C>
class RowWork {
 public:
  using Number = C;
  static constexpr int kLanes = 1;
  static constexpr bool kPasses = true, kSpans = false;

  explicit RowWork(const SmallArgs& args)
      : args_(args),
        ld_(padded_columns(args.m)),
        space_(vectors(args.n * ld_) + 2 * vectors(ld_) +
               kSideVectors<C> * (vectors(args.n) + vectors(ld_))),
        buffer_(args.n * args.m + kBlock) {
    k_ = reinterpret_cast<C*>(space_.take(vectors(args.n * ld_)));
    chunk_ = reinterpret_cast<C*>(space_.take(vectors(ld_)));
    total_ = reinterpret_cast<C*>(space_.take(vectors(ld_)));
    take_side(space_, args.n, vectors(args.n), &side[0]);
    take_side(space_, args.m, vectors(ld_), &side[1]);
    const int64_t most = vectors(args.n) > vectors(ld_) ? vectors(args.n) : vectors(ld_);
    terms = reinterpret_cast<double*>(space_.take(most * static_cast<int64_t>(8 / sizeof(C))));
    for (int64_t e = 0; e < args.n * ld_; ++e) k_[e] = C(0);
    for (int64_t j = 0; j < ld_; ++j) side[1].scaling[j] = C(0);
  }

  void load(int64_t problem) {
    problem_ = problem;
    const int64_t numel = static_cast<int64_t>(args_.n) * args_.m;
    dispatch_floating(args_.dtype, [&](auto zero) {
      using T = decltype(zero);
      const T* const cost = static_cast<const T*>(args_.cost) + problem * numel;
      if constexpr (std::is_same_v<T, C>) {
        cost_ = cost;
      } else if constexpr (std::is_same_v<compute_t<T>, C>) {
        load_elements(cost, numel, buffer_.data());
        cost_ = buffer_.data();
      }
    });
    unit_ = static_cast<C>(1.0 / args_.eps[problem]);
  }

  const SmallSide<C>& of(int k) const { return side[k]; }
  int64_t problem(int) const { return problem_; }

  template <typename F>
  void points(int size, F f) const {
#pragma omp simd
    for (int i = 0; i < size; ++i) f(i, 0);
  }
  template <typename F>
  bool any(int size, F f) {
    int32_t some = 0;
    for (int i = 0; i < size; ++i) some |= f(i, 0) ? 1 : 0;
    lanes.flags[0] = some;
    return some != 0;
  }
  bool any_lane() const { return lanes.flags[0] != 0; }
  void total(int size) {
    double sum = 0.0;
    for (int i = 0; i < size; ++i) sum += terms[i];
    lanes.totals[0] = sum;
  }
  template <typename F>
  void sum(int size, F f) {
    double* const to = terms;
    points(size, [=](int i, int l) { to[i] = f(i, l); });
    total(size);
  }

  void sums(int k) {
    if (k == 0)
      row_sums();
    else
      column_sums();
  }

  bool plain(int k) {
    sums(k);
    const SmallSide<C> mine = side[k];
    points(mine.size, [=](int at, int) {
      mine.scaling[at] = mine.weight[at] / (mine.sum[at] + mine.pad[at]);
    });
    return holds(mine);
  }

  bool pass() {
    const SmallSide<C> rows = side[0];
    pass_rows(k_, args_.n, ld_, side[1].scaling, chunk_, total_, [=](int i, C sum) {
      rows.sum[i] = sum;
      return rows.scaling[i] = rows.weight[i] / (sum + rows.pad[i]);
    });
    for (int j = 0; j < args_.m; ++j) side[1].sum[j] = total_[j];
    return holds(rows);
  }

  void peaks(int k) {
    if (lanes.flags[0] == 0) return;
    const SmallSide<C>&mine = side[k], &other = side[1 - k];
    const int64_t step = k == 0 ? args_.m : 1, other_step = k == 0 ? 1 : args_.m;
    for (int i = 0; i < mine.size; ++i) {
      const C* const cost = cost_ + i * step;
      C most = no_logit<C>();
      if (k == 0)
        most = largest_of_row(cost);
      else
        most = largest_term<1>(other, 0, [=](int o) { return cost[o * other_step]; });
      set_peak(mine, i, true, most);
    }
  }

  void build() {
    if (lanes.flags[0] == 0) return;
    const int m = args_.m;
    const C unit = unit_;
    const C *g = side[1].shift, *b = side[1].weight;
    for (int i = 0; i < args_.n; ++i) {
      const C f = side[0].shift[i];
      const bool none = side[0].weight[i] == C(0);
      const C* const cost = cost_ + i * m;
      C* const k = k_ + i * ld_;
#pragma omp simd
      for (int j = 0; j < m; ++j) {
        const C x = small_power(f, cost[j], g[j], unit);
        k[j] = choose((none || b[j] == C(0)) && x == x, C(0), x);
      }
    }
  }

  double softmin(int k, int i, int) const {
    const int64_t step = k == 0 ? args_.m : 1, other_step = k == 0 ? 1 : args_.m;
    const C* const cost = cost_ + i * step;
    return small_softmin<1>(side[1 - k], 0, unit_, lanes.eps[0],
                            [=](int o) { return cost[o * other_step]; });
  }

  void store() const {
    double *const f = args_.f + problem_ * args_.n, *const g = args_.g + problem_ * args_.m;
    for (int i = 0; i < args_.n; ++i) f[i] = side[0].potential[i] + lanes.totals[0];
    for (int j = 0; j < args_.m; ++j) g[j] = side[1].potential[j] - lanes.totals[0];
    args_.value[problem_] = lanes.value[0];
    args_.error[problem_] = lanes.error[0];
    args_.iterations[problem_] = lanes.iterations[0];
    args_.status[problem_] = static_cast<int8_t>(lanes.status[0]);
  }

  SmallSide<C> side[2];
  SmallLanes<1> lanes;
  double* terms;

 private:
  static int64_t vectors(int64_t numbers) { return (numbers + kLanesOf<C> - 1) / kLanesOf<C>; }

  // largest_term of neighbours.
  C largest_of_row(const C* cost) const {
    const C *scaling = side[1].scaling, *shift = side[1].shift;
    const C none = no_logit<C>();
    C most = none;
#pragma omp simd reduction(max : most)
    for (int j = 0; j < args_.m; ++j) {
      const C term = scaling[j] > C(0) ? shift[j] - cost[j] : none;
      most = term > most ? term : most;
    }
    return most;
  }

  bool holds(const SmallSide<C>& mine) {
    int32_t out = 0;
#pragma omp simd reduction(| : out)
    for (int i = 0; i < mine.size; ++i) {
      const C sum = mine.sum[i] + mine.pad[i];
      out |= (sum < SumRange<C>::kLeast) | (sum > SumRange<C>::kMost);
    }
    lanes.flags[0] = out;
    return out == 0;
  }

  void row_sums() const {
    const C* const x = side[1].scaling;
    int i = 0;
    for (; i + kRowsAtOnce<C> <= args_.n; i += kRowsAtOnce<C>)
      dot_rows<kRowsAtOnce<C>>(k_ + i * ld_, ld_, x, side[0].sum + i);
    for (; i < args_.n; ++i) dot_rows<1>(k_ + i * ld_, ld_, x, side[0].sum + i);
  }

  void column_sums() const {
    C *chunk = chunk_, *total = total_;
    const C* const y = side[0].scaling;
    for (int64_t j = 0; j < ld_; ++j) total[j] = C(0);
    for (int begin = 0; begin < args_.n; begin += kNormalizeRows) {
      const int end = begin + kNormalizeRows < args_.n ? begin + kNormalizeRows : args_.n;
      for (int64_t j = 0; j < ld_; ++j) chunk[j] = C(0);
      for (int i = begin; i < end; ++i) {
        const C* const row = k_ + i * ld_;
        const C factor = y[i];
#pragma omp simd
        for (int64_t j = 0; j < ld_; ++j) chunk[j] = chunk[j] + factor * row[j];
      }
#pragma omp simd
      for (int64_t j = 0; j < ld_; ++j) total[j] = total[j] + chunk[j];
    }
    for (int j = 0; j < args_.m; ++j) side[1].sum[j] = total[j];
  }

  const SmallArgs& args_;
  const int64_t ld_;
  LaneSpace<C> space_;
  Scratch<C> buffer_;
  C *k_, *chunk_, *total_;
  const C* cost_ = nullptr;
  C unit_ = C(0);
  int64_t problem_ = 0;
};

template <typename Work>
void solve_all(const SmallArgs& args) {
  constexpr int kL = Work::kLanes;
  const int64_t blocks = (args.batch + kL - 1) / kL;
  const int64_t work = static_cast<int64_t>(args.n) * args.m * (args.max_iter + 8) * kL;
  parallel_for(blocks, 1 + (int64_t{1} << 17) / (work + 1), [&](int64_t begin, int64_t end) {
    Work problems(args);
    for (int64_t block = begin; block < end; ++block) {
      problems.load(block * kL);
      SmallSolver<Work>(problems, args).run();
    }
  });
}

template <typename C>
void solve_as(const SmallArgs& args) {
  if (args.n <= kNormalizeSide && args.m <= kNormalizeSide)
    solve_all<LaneWork<C>>(args);
  else
    solve_all<RowWork<C>>(args);
}

}  // namespace

void transport_small(const SmallArgs& args, Context) {
  if (args.dtype == Dtype::float64)
    solve_as<double>(args);
  else
    solve_as<float>(args);
}

}  // namespace regkern::REGKERN_ISA
