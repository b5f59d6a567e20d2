#include "proximal/fused_step.h"

#include <cstring>

#include "core/parallel.h"
#include "proximal/adam_metric.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 14;

// Elements that are stepped and shrunk in one go: with gradient and states they fit in L1.
constexpr int64_t kTile = 1024;

template <typename C, typename Rule>
void step_tile(const Rule& rule, bool held, C* p, const C* g, C* const* states, int64_t n) {
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
    p[i] = held & (before == C(0)) ? before : after;
    if constexpr (Rule::kStates > 0) s0[i] = a;
    if constexpr (Rule::kStates > 1) s1[i] = b;
    if constexpr (Rule::kStates > 2) s2[i] = c;
  }
}

template <typename C>
void shrink_elements(const Prox& prox, double weight, C* x, int64_t n) {
  const C t = load_number<C>(prox.step) * static_cast<C>(weight);
  const C lam = load_number<C>(prox.lam), shape = static_cast<C>(prox.shape);
  const bool nonnegative = prox.nonnegative;
  dispatch_law(prox.law, [&](auto law) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
      x[i] = shrunk_element<decltype(law)::value>(x[i], t, lam, shape, nonnegative);
  });
}

template <typename C>
void shrink_run(const Prox& prox, double weight, C* x, int64_t n) {
  if (prox.soft != nullptr) {
    const C soft = load_number<C>(prox.soft);
    const bool nonnegative = prox.nonnegative;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const C y = soft_threshold(x[i], soft);
      x[i] = nonnegative ? positive_part(y) : y;
    }
  } else if (prox.positive) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = positive_part(x[i]);
  }
  const double s = regkern::sqrt(square_sum(x, n));
  const double t = static_cast<double>(load_number<C>(prox.step)) * weight;
  const auto lam = static_cast<double>(load_number<C>(prox.lam));
  C factor = C(1);
  dispatch_law(prox.law, [&](auto law) {
    factor = static_cast<C>(shrink_group<decltype(law)::value>(s, t, lam, prox.shape).factor);
  });
  if (factor == C(1)) return;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] = scaled_by(factor, x[i]);
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

// The step of the elements [begin, end) of a tensor, which are whole groups where there are groups,
// and what follows.
template <typename C, typename Rule>
void update_piece(const Rule& rule, const Prox& prox, const ProxRow& row, int64_t begin,
                  int64_t end) {
  C* const param = static_cast<C*>(row.param);
  const C* const grad = static_cast<const C*>(row.grad);
  C* const out = row.out == nullptr ? param : static_cast<C*>(row.out);
  const int64_t run = row.run;
  const bool grouped = prox.after == After::groups || (prox.after == After::metric && run > 1);
  int64_t tile = kTile;
  if (grouped) tile = run < kTile ? kTile / run * run : run;
  [[maybe_unused]] const Scratch<C> scratch(grouped && prox.after == After::metric ? 3 * run : 0);
  for (int64_t e = begin; e < end; e += tile) {
    const int64_t n = end - e < tile ? end - e : tile;
    C* states[kMostStates] = {};
    for (int k = 0; k < Rule::kStates; ++k) states[k] = static_cast<C*>(row.states[k]) + e;
    step_tile(rule, prox.held, param + e, grad + e, states, n);
    C* const x = out + e;
    if (out != param) memcpy(x, param + e, static_cast<size_t>(n) * sizeof(C));
    if (prox.after == After::elements) {
      shrink_elements(prox, row.weight, x, n);
    } else if (prox.after == After::groups) {
      for (int64_t i = 0; i < n; i += run) shrink_run(prox, row.weight, x + i, run);
    } else if (prox.after == After::metric) {
      if constexpr (Rule::kMetric) {
        const C* const most = states[Rule::kStates - 1];
        const double number = static_cast<double>(load_number<C>(prox.step)) * row.weight *
                              static_cast<double>(load_number<C>(prox.lam));
        const C t = static_cast<C>(number);
        if (!grouped) {
#pragma omp simd
          for (int64_t i = 0; i < n; ++i) x[i] = metric_element(x[i], t, rule.denominator(most[i]));
          continue;
        }
        for (int64_t i = 0; i < n; i += run)
          shrink_metric_run(rule, t, x + i, most + i, run, scratch.data(), scratch.data() + run,
                            scratch.data() + 2 * run);
      }
    }
  }
}

// rule_of(index of a row) is the rule of that row.
template <typename C, typename Args, typename RuleOf>
void update_all(const Args& args, RuleOf rule_of) {
  const Prox prox = args.prox;
  const bool grouped = prox.after == After::groups || prox.after == After::metric;
  parallel_for_list(args.rows, args.count, kGrain,
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
