#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/math.h"

// What Sinkhorn's iteration does with potentials, apart from the transforms themselves, which an
// engine computes (transport/solve.h). Everything of size n or m is in double, for B problems at
// once.
//
//     damped   f ← ρ/(ρ + ε) f̂,                   f̂ the soft c-transform of g; ρ = ∞ is hard
//     relaxed  f ← f + ω (damped − f)
//     error    Σ_i a_i |e^((f_i − f̂_i)/ε) − e^(−f_i/ρ)| / Σ a, and the same of the other side
//
// The first term of the error is the marginal of the plan of (f, g), as f̂ makes it a: nothing is
// summed over pairs for it. The second is what a soft side wants its marginal to be.

namespace regkern::transport {

enum class Acceleration : int { none, relaxed, adaptive, anderson };

constexpr int kMemory = 5;  // differences that Anderson's extrapolation combines
// The products of the residuals' differences, a copy that the solver overwrites, the weights,
// whether there are any, and for how many iterations the last failure was followed by plain ones.
constexpr int kProducts = 2 * kMemory * kMemory + kMemory + 2;
// Images, residuals, the last ones of both, and the image of the least error.
constexpr int kHistory = 2 * kMemory + 3;
// An error that is so many times the least one is a failure.
constexpr double kFailure = 10.0;
constexpr double kLongestWait = 64.0;

// Adaptive over-relaxation: the errors of the last iterations, two windows of them; how many there
// were, how many since ω was set, the error then, and how many plain ones are to be first.
constexpr int kWindow = 5, kErrors = 2 * kWindow + 1;
constexpr int kCount = kErrors, kSince = kErrors + 1, kBegan = kErrors + 2, kWait = kErrors + 3;
static_assert(kWait < kProducts);

struct RelaxArgs {
  int64_t batch, size;
  const double* raw;    // (B, size)
  const double* old;    // (B, size)
  double* next;         // (B, size)
  const double* eps;    // (B)
  const double* rho;    // (B)
  const double* omega;  // (B)
  const uint8_t* done;  // (B)
};

struct StepArgs {
  int64_t batch, n, m, iteration, max_iter, check_every;
  Acceleration acceleration;
  bool stops;  // at `tol`
  double tol, scaling;
  const double *a, *b;          // (B, n), (B, m)
  const double *rho_a, *rho_b;  // (B)
  const double* eps_end;        // (B)
  double* eps;                  // (B): what this iteration had; what the next one has
  double *f, *g;                // the potentials before the iteration, then those after it
  const double *f_raw, *f_next, *g_raw;
  double* omega;        // (B)
  double* error;        // (B)
  double* last_error;   // (B); of Anderson's iterations the least one
  int32_t* iterations;  // (B)
  int8_t* status;       // (B)
  uint8_t* done;        // (B)
  // Anderson's: (B, kHistory, m), (B, kProducts), which the adaptive ω has too, and how many images
  // there were since the start, or less than 0, how many there are to be before it (B).
  double* history;
  double* products;
  int32_t* images;
};

struct EndArgs {
  int64_t batch, n, m;
  bool stops;
  double tol;
  const double *a, *b;
  const double *rho_a, *rho_b;
  const double* eps;
  const double* f_raw;
  double *f, *g;
  double* error;
  int8_t* status;
};

constexpr int8_t kConverged = 0, kStopped = 1, kBroken = 2;

REGKERN_HD bool is_finite(double x) { return x - x == 0.0; }

// ρ/(ρ + ε), 1 for a hard side.
REGKERN_HD double damping_of(double rho, double eps) {
  return is_finite(rho) ? rho / (rho + eps) : 1.0;
}

REGKERN_HD double relaxed(double old, double raw, double damping, double omega) {
  const double damped = damping * raw;
  if (omega == 1.0 || !is_finite(old) || !is_finite(raw)) return damped;
  return old + omega * (damped - old);
}

// The share of one point in the error. A point without partners (f̂ = ∞) misses all of its mass.
REGKERN_HD double violation(double weight, double next, double raw, double eps, double rho) {
  const bool hard = !is_finite(rho);
  const double alone = hard ? weight : 0.0;
  const double has = regkern::exp((next - raw) / eps);
  const double wants = hard ? 1.0 : regkern::exp(-next / rho);
  const double found = weight * regkern::fabs(has - wants);
  const double some = raw == static_cast<double>(__builtin_inf()) ? alone : found;
  return weight == 0.0 ? 0.0 : some;
}

// Solves A x = rhs for a symmetric positive definite A of order `count`, which it overwrites.
// false where A is not that.
REGKERN_HD bool solve_definite(int count, double* matrix, int stride, double* x) {
  for (int k = 0; k < count; ++k) {
    double pivot = matrix[k * stride + k];
    for (int i = 0; i < k; ++i) pivot -= matrix[k * stride + i] * matrix[k * stride + i];
    if (!(pivot > 0.0)) return false;
    pivot = regkern::sqrt(pivot);
    matrix[k * stride + k] = pivot;
    for (int r = k + 1; r < count; ++r) {
      double value = matrix[r * stride + k];
      for (int i = 0; i < k; ++i) value -= matrix[r * stride + i] * matrix[k * stride + i];
      matrix[r * stride + k] = value / pivot;
    }
  }
  for (int k = 0; k < count; ++k) {
    for (int i = 0; i < k; ++i) x[k] -= matrix[k * stride + i] * x[i];
    x[k] /= matrix[k * stride + k];
  }
  for (int k = count - 1; k >= 0; --k) {
    for (int i = k + 1; i < count; ++i) x[k] -= matrix[i * stride + k] * x[i];
    x[k] /= matrix[k * stride + k];
  }
  return true;
}

// The ω that is best for a plain iteration of this rate.
REGKERN_HD double best_omega(double rate) {
  return 2.0 / (1.0 + regkern::sqrt(1.0 - (rate < 0.99999 ? rate : 0.99999)));
}

// ω of the next iteration, after one under ω that had this error. Plain iterations, until two
// windows agree on their rate λ; then 2/(1 + √(1 − λ)), of which the error's ratio should be ω − 1.
// Where it is more, Young's relation gives a greater λ. Where the error grows instead, there are
// plain iterations again, twice as many every time.
REGKERN_HD double next_omega(double* state, double error, double omega) {
  const int count = static_cast<int>(state[kCount]);
  state[kCount] = count + 1;
  state[count % kErrors] = error;
  const double since = state[kSince] += 1.0;
  const double older = state[(count + kErrors - kWindow) % kErrors];
  const double oldest = state[(count + 1) % kErrors];
  if (!(error > 0.0)) return omega;
  const auto restarted = [=](double next) {
    state[kSince] = 0.0;
    state[kBegan] = error;
    return next;
  };
  const auto ratio = [](double now, double before, int steps) {
    return regkern::exp(regkern::log(now / before) / steps);
  };
  if (omega == 1.0) {
    if (since < kErrors || since < state[kWait]) return 1.0;
    const double last = ratio(error, older, kWindow), first = ratio(older, oldest, kWindow);
    const bool agree = last < 1.0 && regkern::fabs(first - last) <= 0.25 * (1.0 - first);
    return agree ? restarted(best_omega(last)) : 1.0;
  }
  const bool settled = since >= 2 * kWindow && count % kWindow == 0;
  const double rate = ratio(error, oldest, 2 * kWindow);
  if (error > kFailure * state[kBegan] || (since >= 4 * kWindow && settled && !(rate < 1.0))) {
    const double wait = 2.0 * state[kWait] + kErrors;
    state[kWait] = wait < kLongestWait ? wait : kLongestWait;
    return restarted(1.0);
  }
  if (!settled || !(rate < 1.0) || rate <= omega - 1.0) return omega;
  const double s = rate + omega - 1.0;
  const double best = best_omega(s * s / (rate * omega * omega));
  return best > omega + 0.01 ? restarted(best) : omega;
}

// A team runs one problem: a block of threads on the GPU, the lanes of one thread on the CPU.
//     double sum(n, f)   Σ f(i) in the order of core/list_sums.h's spans, known to all
//     void each(n, f)    f(i) for all i, seen by all afterwards
//     void once(f)       f() by one, seen by all afterwards

REGKERN_CALLS_ARGUMENT
template <typename Team>
REGKERN_HD double violations(Team& team, int64_t size, const double* weight, const double* next,
                             const double* raw, double eps, double rho) {
  return team.sum(size, [=](int64_t i) { return violation(weight[i], next[i], raw[i], eps, rho); });
}

// One step of Anderson's extrapolation on g, of type II: among the affine combinations of the last
// images that of the least residual, weighted by b. An extrapolation that led far off is undone: g
// is the image of the least error again, and plain iterations follow, twice as many every time.
REGKERN_CALLS_ARGUMENT
template <typename Team>
REGKERN_HD void extrapolate(Team& team, const StepArgs& args, int64_t p, double damping,
                            double error, double least) {
  const int64_t m = args.m;
  double* const g = args.g + p * m;
  const double* const raw = args.g_raw + p * m;
  const double* const weight = args.b + p * m;
  double* const images = args.history + p * kHistory * m;
  double* const residuals = images + kMemory * m;
  double* const last_image = residuals + kMemory * m;
  double* const last_residual = last_image + m;
  double* const best = last_residual + m;
  double* const products = args.products + p * kProducts;
  double* const matrix = products + kMemory * kMemory;
  double* const x = matrix + kMemory * kMemory;
  double* const wait = x + kMemory + 1;
  if (error <= least) team.each(m, [=](int64_t j) { best[j] = damping * raw[j]; });
  if (error > kFailure * least) {
    team.each(m, [=](int64_t j) { g[j] = best[j]; });
    team.once([=] {
      *wait = *wait * 2.0 + 2.0 < kLongestWait ? *wait * 2.0 + 2.0 : kLongestWait;
      args.images[p] = -static_cast<int32_t>(*wait);
    });
    return;
  }
  const int seen = args.images[p];
  if (seen < 0) {
    team.each(m, [=](int64_t j) { g[j] = damping * raw[j]; });
    team.once([=] { args.images[p] = seen + 1; });
    return;
  }
  const int slot = seen > 0 ? (seen - 1) % kMemory : 0;
  const int count = seen < kMemory ? seen : kMemory;
  team.each(m, [=](int64_t j) {
    const bool there = weight[j] != 0.0 && is_finite(raw[j]) && is_finite(g[j]);
    const double image = damping * raw[j], residual = there ? image - g[j] : 0.0;
    if (seen > 0) {
      images[slot * m + j] = there ? image - last_image[j] : 0.0;
      residuals[slot * m + j] = residual - last_residual[j];
    }
    last_image[j] = there ? image : 0.0;
    last_residual[j] = residual;
  });
  for (int k = 0; k < count; ++k) {
    const double* const mine = residuals + k * m;
    const double* const added = residuals + slot * m;
    const double product = team.sum(m, [=](int64_t j) { return weight[j] * mine[j] * added[j]; });
    const double right =
        team.sum(m, [=](int64_t j) { return weight[j] * mine[j] * last_residual[j]; });
    team.once([=] {
      products[k * kMemory + slot] = product;
      products[slot * kMemory + k] = product;
      x[k] = right;
    });
  }
  team.once([=] {
    for (int k = 0; k < kMemory * kMemory; ++k) matrix[k] = products[k];
    // Residuals that hardly differ any more would be combined with weights of any size.
    for (int k = 0; k < count; ++k) matrix[k * (kMemory + 1)] *= 1.0 + 1e-12;
    x[kMemory] = solve_definite(count, matrix, kMemory, x) ? 1.0 : 0.0;
  });
  const bool solved = x[kMemory] != 0.0;
  team.each(m, [=](int64_t j) {
    double image = damping * raw[j];
    for (int k = 0; solved && k < count; ++k) image -= x[k] * images[k * m + j];
    g[j] = image;
  });
  team.once([=] { args.images[p] = solved ? seen + 1 : 1; });
}

// The end of an iteration of problem p.
REGKERN_CALLS_ARGUMENT
template <typename Team>
REGKERN_HD void step(Team& team, const StepArgs& args, int64_t p) {
  if (args.done[p] != 0) return;
  const int64_t n = args.n, m = args.m;
  const double eps = args.eps[p], last = args.last_error[p];
  const double damping = damping_of(args.rho_b[p], eps);
  const double omega = args.omega[p];
  double error = last;
  const bool due = args.iteration % args.check_every == 0;
  const bool scaled = eps == args.eps_end[p];
  const bool anderson = args.acceleration == Acceleration::anderson && scaled;
  const bool adaptive = args.acceleration == Acceleration::adaptive && scaled;
  const bool measures = anderson || adaptive || (due && args.stops);
  if (measures) {
    const double mass = team.sum(n, [=](int64_t i) { return args.a[p * n + i]; });
    error = (violations(team, n, args.a + p * n, args.f_next + p * n, args.f_raw + p * n, eps,
                        args.rho_a[p]) +
             violations(team, m, args.b + p * m, args.g + p * m, args.g_raw + p * m, eps,
                        args.rho_b[p])) /
            (mass > 0.0 ? mass : 1.0);
  }
  team.each(n, [=](int64_t i) { args.f[p * n + i] = args.f_next[p * n + i]; });
  if (anderson) {
    extrapolate(team, args, p, damping, error, last);
  } else {
    team.each(m, [=](int64_t j) {
      double* const g = args.g + p * m;
      g[j] = relaxed(g[j], args.g_raw[p * m + j], damping, omega);
    });
  }
  team.once([=] {
    args.iterations[p] = static_cast<int32_t>(args.iteration);
    args.omega[p] = adaptive ? next_omega(args.products + p * kProducts, error, omega) : omega;
    args.last_error[p] = anderson && last < error ? last : error;
    const double cooled = eps * args.scaling;
    args.eps[p] = cooled > args.eps_end[p] ? cooled : args.eps_end[p];
    if (measures && due && args.stops && scaled) {
      if (error < args.tol) args.status[p] = kConverged;
      if (error != error) args.status[p] = kBroken;
      args.done[p] = args.status[p] != kStopped;
    }
  });
}

// The end of the solution of problem p, with f̂ of the final g: the error that it has, potentials of
// points without mass, and ⟨a, f⟩ = ⟨b, g⟩ where both sides are hard.
REGKERN_CALLS_ARGUMENT
template <typename Team>
REGKERN_HD void finish(Team& team, const EndArgs& args, int64_t p) {
  const int64_t n = args.n, m = args.m;
  const double eps = args.eps[p], rho_a = args.rho_a[p], rho_b = args.rho_b[p];
  const double* const a = args.a + p * n;
  const double* const b = args.b + p * m;
  const double* const raw = args.f_raw + p * n;
  double* const f = args.f + p * n;
  double* const g = args.g + p * m;
  const double mass = team.sum(n, [=](int64_t i) { return a[i]; });
  const double missed = violations(team, n, a, f, raw, eps, rho_a);
  const double infinity = static_cast<double>(__builtin_inf());
  const bool hard_a = !is_finite(rho_a), hard_b = !is_finite(rho_b);
  const double alone_a = team.sum(
      n, [=](int64_t i) { return hard_a && raw[i] == infinity && a[i] != 0.0 ? 1.0 : 0.0; });
  const double alone_b = team.sum(
      m, [=](int64_t j) { return hard_b && g[j] == infinity && b[j] != 0.0 ? b[j] : 0.0; });
  const double error = (missed + alone_b) / (mass > 0.0 ? mass : 1.0);
  const double damping = damping_of(rho_a, eps);
  team.each(n, [=](int64_t i) { f[i] = a[i] == 0.0 ? damping * raw[i] : f[i]; });
  if (hard_a && hard_b) {
    const double of_a =
        team.sum(n, [=](int64_t i) { return a[i] != 0.0 && is_finite(f[i]) ? a[i] * f[i] : 0.0; });
    const double of_b =
        team.sum(m, [=](int64_t j) { return b[j] != 0.0 && is_finite(g[j]) ? b[j] * g[j] : 0.0; });
    const double other = team.sum(m, [=](int64_t j) { return b[j]; });
    const double both = mass + other;
    const double shift = both > 0.0 ? (of_b - of_a) / both : 0.0;
    team.each(n, [=](int64_t i) { f[i] += shift; });
    team.each(m, [=](int64_t j) { g[j] -= shift; });
  }
  team.once([=] {
    args.error[p] = error;
    if (args.stops && error < args.tol) args.status[p] = kConverged;
    if (!is_finite(error) || alone_a > 0.0 || alone_b > 0.0) args.status[p] = kBroken;
  });
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(transport_relax, transport::RelaxArgs)
REGKERN_DECLARE_KERNEL(transport_step, transport::StepArgs)
REGKERN_DECLARE_KERNEL(transport_end, transport::EndArgs)
}  // namespace regkern
