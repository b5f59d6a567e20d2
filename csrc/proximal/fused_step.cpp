#include "proximal/fused_step.h"

#include <cstring>

#include "core/parallel.h"
#include "proximal/adam_metric.h"
#include "proximal/group_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kStepGrain = int64_t{1} << 14;

// Elements that are stepped and shrunk in one go, while they are in L1: a stripe of lanes.
constexpr int64_t kTile = kLanes;

// What follows the step of an element at once.
struct Kept {
  template <typename C>
  C operator()(C x) const {
    return x;
  }
};
template <typename C>
struct Soft {
  C tau;
  C operator()(C x) const {
    const C magnitude = fabs(x);
    return copysign(magnitude <= tau ? C(0) : magnitude - tau, x);
  }
};

template <bool kHeld, typename C, typename Rule, typename Then>
void step_tile(const Rule& rule, const Then then, C* p, const C* g, C* const* states, int64_t n) {
  C* s0 = states[0];
  C* s1 = states[1];
  C* s2 = states[2];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    C a = C(0), b = C(0), c = C(0);
    if constexpr (Rule::kStates > 0) a = s0[i];
    if constexpr (Rule::kStates > 1) b = s1[i];
    if constexpr (Rule::kStates > 2) c = s2[i];
    const C before = p[i];
    const C after = rule(before, g[i], a, b, c);
    p[i] = then(kHeld && before == C(0) ? before : after);
    if constexpr (Rule::kStates > 0) s0[i] = a;
    if constexpr (Rule::kStates > 1) s1[i] = b;
    if constexpr (Rule::kStates > 2) s2[i] = c;
  }
}

// The plain soft threshold, which a step may apply at once.
template <typename C>
bool plain_soft(const Prox& prox, const Point<C>& point) {
  constexpr C kInfinity = static_cast<C>(__builtin_inf());
  return prox.law == Law::soft && point.low == -kInfinity && point.high == kInfinity &&
         point.t * point.lam > C(0) && point.t < kInfinity && point.lam < kInfinity;
}

template <typename C>
void shrink_elements(const Prox& prox, const Point<C>& point, C* x, int64_t n) {
  dispatch_law(prox.law, [&](auto law) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
      x[i] = shrunk_element<decltype(law)::value>(point, x[i], point.t, point.shape);
  });
}

// What the elements of groups become before their norms are taken.
template <typename C>
void prepare(const Prox& prox, C* x, int64_t n) {
  if (prox.soft != nullptr) {
    const C soft = load_number<C>(prox.soft);
    const bool positive = prox.positive;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const C y = soft_threshold(x[i], soft);
      x[i] = positive ? positive_part(y) : y;
    }
  } else if (prox.positive) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = positive_part(x[i]);
  }
}

// The factors of m ≤ kBatch groups from their sums of squares.
template <typename C>
void factors_of(const Prox& prox, double weight, const double* sums, int m, C* factors) {
  const double t = static_cast<double>(load_number<C>(prox.step)) * weight;
  const auto lam = static_cast<double>(load_number<C>(prox.lam));
  dispatch_law(prox.law, [&](auto law) {
#pragma omp simd
    for (int i = 0; i < m; ++i)
      factors[i] = static_cast<C>(
          shrink_group<decltype(law)::value>(sqrt(sums[i]), t, lam, prox.shape).factor);
  });
}

template <typename C>
void scale_run(C factor, C* x, int64_t n) {
  if (factor == C(1)) return;
  if (factor == C(0)) {
    memset(x, 0, static_cast<size_t>(n) * sizeof(C));
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] = factor * x[i];
}

// The prox of the groups of n neighbours, n a multiple of `run`.
template <typename C>
void shrink_runs(const Prox& prox, double weight, C* x, int64_t n, int64_t run) {
  prepare(prox, x, n);
  double sums[kBatch];
  C factors[kBatch];
  for (int64_t at = 0; at < n; at += kBatch * run) {
    C* const batch = x + at;
    const int m = static_cast<int>(smaller(kBatch, (n - at) / run));
    for (int i = 0; i < m; ++i) {
      const C* const group = batch + i * run;
      sums[i] = run_square_sum<C>(static_cast<int>(run), n - at - i * run,
                                  [=](int k) { return group[k]; });
    }
    factors_of(prox, weight, sums, m, factors);
    for (int i = 0; i < m; ++i) scale_run(factors[i], batch + i * run, run);
  }
}

// Σ x of at most kSegment elements, in the order of core/square_sum.h.
template <typename C>
C lane_sum(const C* x, int64_t n) {
  alignas(64) C lanes[kLanes] = {};
  for (int64_t e = 0; e < n; e += kLanes) {
    const int64_t some = n - e < kLanes ? n - e : kLanes;
#pragma omp simd
    for (int64_t i = 0; i < some; ++i) lanes[i] += x[e + i];
  }
  return fold_lanes(lanes, kLanes);
}

// The prox of a group in Adam's metric. Three buffers of n.
template <typename C, typename Rule>
void shrink_metric_run(const Rule& rule, C t, C* x, const C* most, int64_t n, C* shift, C* u,
                       C* w) {
  if (t == C(0)) return;
  C largest = C(0);
  const int m = static_cast<int>(n);
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < m; ++i) {
    const C d = rule.denominator(most[i]);
    w[i] = d * x[i];
    shift[i] = metric_shift(t, d);
    largest = d > largest ? d : largest;
  }
  const double norm = regkern::sqrt(square_sum(w, n));
  if (norm <= static_cast<double>(t)) {
    memset(x, 0, static_cast<size_t>(n) * sizeof(C));
    return;
  }
  C theta = static_cast<C>((norm - static_cast<double>(t)) / static_cast<double>(largest));
  for (int step = 0; step < kMetricSteps; ++step) {
#pragma omp simd
    for (int i = 0; i < m; ++i) {
      u[i] = metric_ratio(x[i], theta, shift[i]);
      u[i] *= u[i];
      w[i] = metric_ratio(u[i], theta, shift[i]);
    }
    const C squares = lane_sum(u, n);
    const C cubes = lane_sum(w, n);
    const C next = metric_newton(theta, squares, cubes);
    if (metric_arrived(theta, next)) break;
    theta = next;
  }
#pragma omp simd
  for (int i = 0; i < m; ++i) x[i] = theta * metric_ratio(x[i], theta, shift[i]);
}

// The memory of a tensor's elements from e on.
template <typename C, typename Rule>
struct Place {
  C* param;
  const C* grad;
  C* out;
  C* states[kMostStates] = {};

  Place(const ProxRow& row, int64_t e)
      : param(static_cast<C*>(row.param) + e),
        grad(static_cast<const C*>(row.grad) + e),
        out(row.out == nullptr ? param : static_cast<C*>(row.out) + e) {
    for (int k = 0; k < Rule::kStates; ++k) states[k] = static_cast<C*>(row.states[k]) + e;
  }
};

// Asks for the memory of the n elements to be stepped next: it would rest while groups are shrunk
// that are in the cache. Some lines of each stream; the hardware follows.
constexpr int64_t kAhead = 160;
template <typename C, typename Rule>
void fetch_place(const Place<C, Rule>& at, int64_t n) {
  fetch(at.param, n, n);
  fetch<false>(at.grad, n, n);
  for (int k = 0; k < Rule::kStates; ++k) fetch(at.states[k], n, n);
}

// The step of n neighbours, the result in `out`.
template <typename C, typename Rule, typename Then = Kept>
Place<C, Rule> stepped(const Rule& rule, const Prox& prox, const ProxRow& row, int64_t e, int64_t n,
                       const Then then = {}) {
  const Place<C, Rule> at(row, e);
  if (prox.held)
    step_tile<true>(rule, then, at.param, at.grad, at.states, n);
  else
    step_tile<false>(rule, then, at.param, at.grad, at.states, n);
  if (at.out != at.param) memcpy(at.out, at.param, static_cast<size_t>(n) * sizeof(C));
  return at;
}

// A group that is longer than a tile. Its squares are added stripe by stripe as the step goes on,
// which is the order of core/square_sum.h.
template <typename C, typename Rule>
void update_long_run(const Rule& rule, const Prox& prox, const ProxRow& row, int64_t begin) {
  alignas(64) C lanes[kLanes] = {};
  const int64_t run = row.run;
  for (int64_t e = 0; e < run; e += kTile) {
    const int64_t n = smaller(kTile, run - e);
    C* const x = stepped<C>(rule, prox, row, begin + e, n).out;
    prepare(prox, x, n);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) lanes[i] += x[i] * x[i];
  }
  C* const x = Place<C, Rule>(row, begin).out;
  const C sum = fold_lanes(lanes, kLanes);
  const double squares = square_sum_holds(sum) ? static_cast<double>(sum) : square_sum(x, run);
  C factor;
  factors_of(prox, row.weight, &squares, 1, &factor);
  scale_run(factor, x, run);
}

// The step of the elements [begin, end) of a tensor, which are whole groups where there are groups,
// and what follows.
template <typename C, typename Rule>
void update_piece(const Rule& rule, const Prox& prox, const ProxRow& row, int64_t begin,
                  int64_t end) {
  const int64_t run = row.run;
  if (prox.after == After::groups) {
    const int64_t tile = run <= kTile ? kTile / run * run : run;
    for (int64_t e = begin; e < end; e += tile) {
      if (run > kTile) {
        update_long_run<C>(rule, prox, row, e);
        continue;
      }
      const int64_t n = smaller(tile, end - e);
      C* const x = stepped<C>(rule, prox, row, e, n).out;
      fetch_place(Place<C, Rule>(row, e + n), smaller(kAhead, end - e - n));
      shrink_runs(prox, row.weight, x, n, run);
    }
    return;
  }
  if constexpr (Rule::kMetric) {
    if (prox.after == After::metric) {
      const C t = static_cast<C>(static_cast<double>(load_number<C>(prox.step)) * row.weight *
                                 static_cast<double>(load_number<C>(prox.lam)));
      const int64_t tile = run <= kTile ? kTile / run * run : run;
      const Scratch<C> scratch(run > 1 ? 3 * run : 0);
      for (int64_t e = begin; e < end; e += tile) {
        const int64_t n = smaller(tile, end - e);
        const Place<C, Rule> at = stepped<C>(rule, prox, row, e, n);
        const C* const most = at.states[Rule::kStates - 1];
        C* const x = at.out;
        if (run == 1) {
#pragma omp simd
          for (int64_t i = 0; i < n; ++i) x[i] = metric_element(x[i], t, rule.denominator(most[i]));
          continue;
        }
        for (int64_t i = 0; i < n; i += run)
          shrink_metric_run(rule, t, x + i, most + i, run, scratch.data(), scratch.data() + run,
                            scratch.data() + 2 * run);
      }
      return;
    }
  }
  const bool elements = prox.after == After::elements;
  const Point<C> point = elements ? point_of<C>(prox, row.weight) : Point<C>{};
  // Where the parameter keeps what it was before the prox, that takes a pass of its own.
  if (elements && row.out == nullptr && plain_soft(prox, point)) {
    stepped<C>(rule, prox, row, begin, end - begin, Soft<C>{point.t * point.lam});
    return;
  }
  for (int64_t e = begin; e < end; e += kTile) {
    const int64_t n = smaller(kTile, end - e);
    C* const x = stepped<C>(rule, prox, row, e, n).out;
    if (elements) shrink_elements(prox, point, x, n);
  }
}

// rule_of(index of a row) is the rule of that row.
template <typename C, typename Args, typename RuleOf>
void update_all(const Args& args, RuleOf rule_of) {
  const Prox prox = args.prox;
  const bool grouped = prox.after == After::groups || prox.after == After::metric;
  parallel_for_list(args.rows, args.count, kStepGrain,
                    [&](const ProxRow& row, int64_t begin, int64_t end) {
                      if (grouped) {
                        // A group belongs to the piece that it begins in.
                        begin = (begin + row.run - 1) / row.run * row.run;
                        end = (end + row.run - 1) / row.run * row.run;
                      }
                      if (begin < end)
                        update_piece<C>(rule_of(&row - args.rows), prox, row, begin, end);
                    });
}

template <typename C>
void adamw(const ProxAdamWArgs& args) {
  auto* const scalars = static_cast<AdamWScalars<C>*>(args.scalars);
  double t = 0.0;
  for (int64_t i = 0; i < args.count; ++i) {
    *args.steps[i] += 1.0f;
    const auto now = static_cast<double>(*args.steps[i]);
    // Most tensors are at the same step.
    scalars[i] = i > 0 && now == t ? scalars[i - 1] : adamw_scalars<C>(args, now);
    t = now;
  }
  if (args.amsgrad)
    update_all<C>(args, [&](int64_t i) { return AdamWRule<C, true>(args, scalars[i]); });
  else
    update_all<C>(args, [&](int64_t i) { return AdamWRule<C, false>(args, scalars[i]); });
}

}  // namespace

void prox_adamw(const ProxAdamWArgs& args, Context) {
  dispatch_step_type(args.dtype, [&](auto zero) { adamw<decltype(zero)>(args); });
}

void prox_sgd(const ProxSgdArgs& args, Context) {
  dispatch_step_type(args.dtype, [&](auto zero) {
    using C = decltype(zero);
    if (args.has_momentum)
      update_all<C>(args, [&](int64_t) { return SgdRule<C, true>(args); });
    else
      update_all<C>(args, [&](int64_t) { return SgdRule<C, false>(args); });
  });
}

}  // namespace regkern::REGKERN_ISA
