#pragma once

#include "transport/sparse_transport.h"

// The quasi-Newton iteration (L-BFGS) on the negative dual, which is convex, as a machine that is
// handed one evaluation at a time: nobody waits for its decisions, so a GPU is given all launches
// at once. A Team is whoever works on a problem: a thread, or a block of them. All of a team run
// this code with the same numbers.
//
// The search along a direction wants the slope to have fallen, and the value as well where the
// slope has changed its sign: a negative slope of a convex function says by itself that the value
// has fallen. Where the dual has a kink (k entries of a column may be taken from either of two
// rows), no step may do; the search then takes the last point that was better, or gives up.

namespace regkern::transport {

constexpr double kDecrease = 1e-4, kCurvature = 0.9;
constexpr int kMostTrials = 16;
// So many steps that, all together, neither change the value by its share nor the violation by
// that: the dual has a kink, at which it may be approached forever, or rounding is all that is
// left.
constexpr int kMostStalls = 20;
constexpr double kKinkProgress = 1e-5, kProgress = 1e-13, kLessViolation = 0.9;
// A value that is greater by less is not, where the slope says otherwise.
constexpr double kRounding = 1e-10;

// Of the trial.
template <typename Team>
REGKERN_HD double largest_potential(Team& team, const SparseTransportArgs& args, int64_t problem) {
  const double* a = args.a + problem * args.rows;
  const double* trial = vector_of(args, problem, kTrial);
  return team.most(args.rows,
                   [=](int64_t i) { return a[i] > 0.0 ? regkern::fabs(trial[i]) : 0.0; });
}

// The trial becomes x + step d, or x.
template <typename Team>
REGKERN_HD void set_trial(Team& team, const SparseTransportArgs& args, int64_t problem, double step,
                          SparseState& s) {
  const double* x = vector_of(args, problem, kPoint);
  const double* d = vector_of(args, problem, kDirection);
  const double* a = args.a + problem * args.rows;
  double* trial = vector_of(args, problem, kTrial);
  const auto next = [=](int64_t i) { return step == 0.0 ? x[i] : x[i] + step * d[i]; };
  const double least = nothing();
  s.drop =
      -team.most(args.rows, [=](int64_t i) { return a[i] > 0.0 ? trial[i] - next(i) : least; });
  team.each(variables_of(args), [=](int64_t i) { trial[i] = next(i); });
  s.largest = largest_potential(team, args, problem);
}

template <typename Team>
REGKERN_HD void start_problem(Team& team, const SparseTransportArgs& args, int64_t problem) {
  const int64_t n = args.rows, m = args.columns, size = variables_of(args);
  const double* b = args.b + problem * m;
  double* trial = vector_of(args, problem, kTrial);
  const double* alpha = args.alpha + problem * n;
  const double* beta = args.beta + problem * m;
  team.each(size, [=](int64_t i) { trial[i] = i < n ? alpha[i] : beta[i - n]; });
  team.each(n, [=](int64_t i) { args.row_sums[problem * n + i] = 0; });
  if (args.k > 0) {
    int32_t* index = args.index + problem * m * args.k;
    team.each(m * args.k, [=](int64_t i) { index[i] = -1; });
  }
  SparseState s{};
  s.mass = team.sum(m, [=](int64_t j) { return b[j]; });
  s.largest = largest_potential(team, args, problem);
  s.drop = nothing();
  s.least_error = __builtin_inf();
  // 2^e ≤ mass < 2^(e + 1) becomes 2^(60 - e): all rows together are below 2⁶¹.
  const int64_t exponent = (bit_cast<int64_t>(s.mass) >> 52 & 0x7FF) - 1023;
  const bool normal = s.mass > 1e-290 && s.mass < 1e290;
  s.unit = normal ? bit_cast<double>((60 - exponent + 1023) << 52) : 1.0;
  s.scale = args.gamma[problem];
  s.high = __builtin_inf();
  s.status = kStopped;
  const bool valid = normal && s.scale > 0.0 && s.scale < __builtin_inf();
  if (!valid) {
    s.status = kNotANumber;
    s.done = 1;
  }
  team.store(args.state + problem, s);
}

// Row i's violation in the trial; a point without weight has none.
REGKERN_HD double violation_at(const SparseTransportArgs& args, int64_t problem, double unit,
                               int64_t i) {
  const int64_t n = args.rows, m = args.columns;
  if (i < n) {
    const double weight = args.a[problem * n + i];
    if (!(weight > 0.0)) return weight == 0.0 ? 0.0 : __builtin_nan("");
    return static_cast<double>(args.row_sums[problem * n + i]) / unit - weight;
  }
  const double weight = args.b[problem * m + i - n];
  return args.column_sum[problem * m + i - n] - weight;
}

// −dual in the trial.
template <typename Team>
REGKERN_HD double trial_value(Team& team, const SparseTransportArgs& args, int64_t problem) {
  const int64_t n = args.rows, m = args.columns;
  const double* a = args.a + problem * n;
  const double* b = args.b + problem * m;
  const double* columns = args.column_value + problem * m;
  const double* trial = vector_of(args, problem, kTrial);
  double linear = team.sum(n, [=](int64_t i) { return a[i] > 0.0 ? a[i] * trial[i] : 0.0; });
  if (args.method == SparseMethod::dual)
    linear += team.sum(m, [=](int64_t j) { return b[j] * trial[n + j]; });
  return team.sum(m, [=](int64_t j) { return columns[j]; }) - linear;
}

// Not in nvcc's pass for the host, whose compiler does not know it.
#if defined(__CUDA_ARCH__)
#define REGKERN_UNROLL _Pragma("unroll")
#else
#define REGKERN_UNROLL
#endif

// The step of the pair of age q; the change of the gradient lies behind it.
REGKERN_HD int step_of(const SparseState& s, int q) {
  return kSteps + 2 * ((s.newest - q + kHistory) % kHistory);
}

// d = −H g by the two loops over the pairs, with H₀ = scale.
template <typename Team>
REGKERN_HD double choose_direction(Team& team, const SparseTransportArgs& args, int64_t problem,
                                   const SparseState& s) {
  const int64_t size = variables_of(args);
  const double* g = vector_of(args, problem, kGradient);
  double* d = vector_of(args, problem, kDirection);
  team.each(size, [=](int64_t i) { d[i] = -g[i]; });
  // Places known when this is compiled: an array that is not looked up in lies in registers.
  double shares[kHistory];
  REGKERN_UNROLL
  for (int q = 0; q < kHistory; ++q) {
    if (q >= s.stored) continue;
    const double* step = vector_of(args, problem, step_of(s, q));
    const double* change = step + size;
    const double share = s.curvature[q] * team.sum(size, [=](int64_t i) { return step[i] * d[i]; });
    shares[q] = share;
    team.each(size, [=](int64_t i) { d[i] -= share * change[i]; });
  }
  const double scale = s.scale;
  team.each(size, [=](int64_t i) { d[i] *= scale; });
  REGKERN_UNROLL
  for (int q = kHistory - 1; q >= 0; --q) {
    if (q >= s.stored) continue;
    const double* step = vector_of(args, problem, step_of(s, q));
    const double* change = step + size;
    const double back =
        shares[q] - s.curvature[q] * team.sum(size, [=](int64_t i) { return change[i] * d[i]; });
    team.each(size, [=](int64_t i) { d[i] += back * step[i]; });
  }
  return team.sum(size, [=](int64_t i) { return g[i] * d[i]; });
}

// The steepest descent of the beginning.
REGKERN_HD void forget(const SparseTransportArgs& args, int64_t problem, SparseState& s) {
  s.stored = 0;
  s.scale = args.gamma[problem];
}

template <typename Team>
REGKERN_HD void aim(Team& team, const SparseTransportArgs& args, int64_t problem, SparseState& s) {
  s.slope = choose_direction(team, args, problem, s);
  if (!(s.slope < 0.0) && s.stored > 0) {
    forget(args, problem, s);
    s.slope = choose_direction(team, args, problem, s);
  }
  s.step = 1.0;
  s.low = 0.0;
  s.low_slope = s.slope;
  s.high = __builtin_inf();
  s.trials = s.accept = 0;
  // At a point without violation there is nothing to do, and nowhere to go.
  if (!(s.slope < 0.0)) {
    s.done = 1;
    s.status = s.error <= args.tol ? kConverged : kStalled;
  }
}

template <typename Team>
REGKERN_HD void take_trial(Team& team, const SparseTransportArgs& args, int64_t problem,
                           SparseState& s, double value) {
  const int64_t size = variables_of(args);
  double* x = vector_of(args, problem, kPoint);
  double* g = vector_of(args, problem, kGradient);
  const double* trial = vector_of(args, problem, kTrial);
  const double* new_g = vector_of(args, problem, kTrialGradient);
  const bool first = s.evaluations == 1;
  if (!first) {
    const int slot = (s.newest + 1) % kHistory;
    double* step = vector_of(args, problem, kSteps + 2 * slot);
    double* change = vector_of(args, problem, kSteps + 2 * slot + 1);
    team.each(size, [=](int64_t i) {
      step[i] = trial[i] - x[i];
      change[i] = new_g[i] - g[i];
    });
    const double curved = team.sum(size, [=](int64_t i) { return step[i] * change[i]; });
    const double changed = team.sum(size, [=](int64_t i) { return change[i] * change[i]; });
    const double moved = team.sum(size, [=](int64_t i) { return step[i] * step[i]; });
    if (curved > 0.0 && curved * curved > 1e-20 * changed * moved) {
      s.newest = slot;
      s.stored = s.stored < kHistory ? s.stored + 1 : kHistory;
      REGKERN_UNROLL
      for (int q = kHistory - 1; q > 0; --q) s.curvature[q] = s.curvature[q - 1];
      s.curvature[0] = 1.0 / curved;
      s.scale = curved / changed;
    }
  }
  team.each(size, [=](int64_t i) {
    x[i] = trial[i];
    g[i] = new_g[i];
  });
  s.error = team.sum(size, [=](int64_t i) { return regkern::fabs(new_g[i]); }) / s.mass;
  const double share = args.k > 0 ? kKinkProgress : kProgress;
  const bool lower = first || s.held_value - value > share * regkern::fabs(value);
  const bool closer = s.error < kLessViolation * s.least_error;
  s.stalls = lower || closer ? 0 : s.stalls + 1;
  if (lower) s.held_value = value;
  if (closer) s.least_error = s.error;
  s.value = value;
  if (args.tol >= 0.0 && s.error <= args.tol) {
    s.status = kConverged;
    s.done = 1;
    return;
  }
  if (s.stalls >= kMostStalls) {
    s.status = kStalled;
    s.done = 1;
    return;
  }
  aim(team, args, problem, s);
}

// Halves an interval, or cuts it where the slope would be zero if it were linear.
REGKERN_HD double next_step(const SparseState& s) {
  if (!(s.high < __builtin_inf())) return 4.0 * s.step;
  const double width = s.high - s.low;
  if (s.trials % 3 == 2) return s.low + 0.5 * width;
  const double cut = s.low - s.low_slope * width / (s.high_slope - s.low_slope);
  const double least = s.low + 0.1 * width, most = s.high - 0.1 * width;
  return cut > least ? (cut < most ? cut : most) : least;
}

// What follows from the evaluation of the trial.
template <typename Team>
REGKERN_HD void step_problem(Team& team, const SparseTransportArgs& args, int64_t problem) {
  SparseState s = team.load(args.state + problem);
  if (s.done != 0) return;
  const int64_t n = args.rows, size = variables_of(args);
  double* new_g = vector_of(args, problem, kTrialGradient);
  const double unit = s.unit;
  team.each(size, [=](int64_t i) { new_g[i] = violation_at(args, problem, unit, i); });
  team.each(n, [=](int64_t i) { args.row_sums[problem * n + i] = 0; });
  const double value = trial_value(team, args, problem);
  ++s.evaluations;
  // +∞ comes of a cost of −∞.
  if (!(value < __builtin_inf())) {
    s.status = kNotANumber;
    s.done = 1;
  } else if (s.evaluations == 1 || s.accept != 0) {
    take_trial(team, args, problem, s, value);
  } else {
    const double* d = vector_of(args, problem, kDirection);
    const double slope = team.sum(size, [=](int64_t i) { return new_g[i] * d[i]; });
    const double noise = slope <= 0.0 ? kRounding * regkern::fabs(s.value) : 0.0;
    const double least = slope <= 0.0 ? 0.0 : kDecrease * s.step * s.slope;
    const bool lower = value <= s.value + least + noise;
    if (lower && slope >= kCurvature * s.slope) {
      take_trial(team, args, problem, s, value);
    } else {
      if (lower) {
        s.low = s.step;
        s.low_slope = slope;
      } else {
        s.high = s.step;
        s.high_slope = slope;
      }
      if (++s.trials < kMostTrials) {
        s.step = next_step(s);
      } else if (s.low > 0.0) {
        s.step = s.low;
        s.accept = 1;
      } else if (s.stored > 0) {
        forget(args, problem, s);
        aim(team, args, problem, s);
      } else {
        s.status = kStalled;
        s.done = 1;
      }
    }
  }
  if (s.done == 0) set_trial(team, args, problem, s.step, s);
  team.store(args.state + problem, s);
}

// The best point becomes the trial, which is evaluated once more.
template <typename Team>
REGKERN_HD void return_to_best(Team& team, const SparseTransportArgs& args, int64_t problem) {
  SparseState s = team.load(args.state + problem);
  if (s.evaluations > 0 && s.status != kNotANumber) set_trial(team, args, problem, 0.0, s);
  team.each(args.rows, [=](int64_t i) { args.row_sums[problem * args.rows + i] = 0; });
  team.store(args.state + problem, s);
}

// Potentials with ⟨a, α⟩ = ⟨b, β⟩, value and violation.
template <typename Team>
REGKERN_HD void finish_problem(Team& team, const SparseTransportArgs& args, int64_t problem) {
  const SparseState s = team.load(args.state + problem);
  const int64_t n = args.rows, m = args.columns, size = variables_of(args);
  const double* a = args.a + problem * n;
  const double* b = args.b + problem * m;
  const double* trial = vector_of(args, problem, kTrial);
  double* alpha = args.alpha + problem * n;
  double* beta = args.beta + problem * m;
  const double unit = s.unit;
  const bool bad = s.status == kNotANumber;
  const double nan = __builtin_nan("");
  const double value = trial_value(team, args, problem);
  const double error = team.sum(size, [=](int64_t i) {
    return regkern::fabs(violation_at(args, problem, unit, i));
  }) / s.mass;
  const bool dual = args.method == SparseMethod::dual;
  team.each(n, [=](int64_t i) { alpha[i] = trial[i]; });
  if (dual) team.each(m, [=](int64_t j) { beta[j] = trial[n + j]; });
  const double mine = team.sum(n, [=](int64_t i) { return a[i] > 0.0 ? a[i] * alpha[i] : 0.0; });
  const double theirs = team.sum(m, [=](int64_t j) { return b[j] > 0.0 ? b[j] * beta[j] : 0.0; });
  const double shift = (theirs - mine) / (2.0 * s.mass);
  const bool known = !bad && shift == shift;
  team.each(n, [=](int64_t i) { alpha[i] = known ? alpha[i] + shift : nan; });
  team.each(m, [=](int64_t j) { beta[j] = known ? beta[j] - shift : nan; });
  team.one([=] {
    args.value[problem] = bad ? nan : -value;
    args.error[problem] = bad ? nan : error;
    args.iterations[problem] = s.evaluations;
    args.status[problem] = static_cast<int8_t>(s.status);
  });
}

#undef REGKERN_UNROLL

}  // namespace regkern::transport
