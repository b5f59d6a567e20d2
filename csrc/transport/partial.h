#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/math.h"

// Half-steps of partial transport, where a plan has the mass m and at most the marginals a and b:
//
//     P_ij = a_i b_j e^((f_i + g_j + h − C_ij)/ε),   f ≤ F, g ≤ G,   Σ P = m
//
// With the soft c-transform f̂ of g a row has the mass a_i e^((f_i + h − f̂_i)/ε), so f and h that
// are optimal for g are
//
//     f_i = min(F_i, f̂_i − h),   Σ_i a_i min(1, e^((h − s_i)/ε)) = m,   s_i = f̂_i − F_i
//
// h is found from below: of the rows known to be full only the others grow with h. F = 0 is the
// entropy relative to a ⊗ b, F = −ε ln a the plain one.

namespace regkern::transport {

constexpr int kPartialLanes = 128;

struct PartialArgs {
  int64_t batch, size;
  const double* raw;           // f̂ (B, size)
  const double *weight, *cap;  // a, F (B, size)
  const double *mass, *eps;    // (B)
  double* potential;           // f (B, size): before and after
  double* level;               // h (B): likewise
  bool looks, moves, stops;    // at the error; whether f and h change; at `tol`
  double tol;
  int64_t iteration;
  // Of f and h before (B): what rows miss of what they want, and these of m, over m.
  double* error;
  int32_t* iterations;  // (B)
  int8_t* status;       // (B): as of every solver (transport/loop.h)
  uint8_t* done;        // (B)
};

// The mass of a point that is full from `start` on; none without weight or partners.
REGKERN_HD double partial_mass(double weight, double start, double level, double eps) {
  const double apart = (level - start) / eps;
  const double share = regkern::exp(apart < 0.0 ? apart : 0.0);
  return weight == 0.0 || start == static_cast<double>(__builtin_inf()) ? 0.0 : weight * share;
}

template <typename Team>
REGKERN_HD double partial_level(Team& team, const PartialArgs& args, int64_t p) {
  const int64_t n = args.size;
  const double* const raw = args.raw + p * n;
  const double* const weight = args.weight + p * n;
  const double* const cap = args.cap + p * n;
  const double mass = args.mass[p], eps = args.eps[p];
  const double infinity = static_cast<double>(__builtin_inf());
  if (team.sum(n, [=](int64_t i) { return weight[i] > 0.0 && raw[i] != raw[i] ? 1.0 : 0.0; }) > 0.0)
    return static_cast<double>(__builtin_nan(""));
  double level = -infinity, before = -1.0;
  for (int64_t step = 0; step <= n; ++step) {
    const double now = level;
    const auto open = [=](int64_t i) { return weight[i] > 0.0 && !(raw[i] - cap[i] <= now); };
    const double count = team.sum(n, [=](int64_t i) { return open(i) ? 0.0 : 1.0; });
    if (count == before) break;
    before = count;
    const double full = team.sum(n, [=](int64_t i) { return open(i) ? 0.0 : weight[i]; });
    const double first =
        -team.most(n, [=](int64_t i) { return open(i) ? cap[i] - raw[i] : -infinity; });
    if (first == infinity || !(mass > full)) break;
    const double rest = team.sum(n, [=](int64_t i) {
      return open(i) ? weight[i] * regkern::exp((first - (raw[i] - cap[i])) / eps) : 0.0;
    });
    const double next = first + eps * regkern::log((mass - full) / rest);
    if (!(next > level)) break;
    level = next;
  }
  return level == -infinity ? 0.0 : level;
}

template <typename Team>
REGKERN_HD void partial_half_step(Team& team, const PartialArgs& args, int64_t p) {
  if (args.done[p] != 0) return;
  const int64_t n = args.size;
  const double* const raw = args.raw + p * n;
  const double* const weight = args.weight + p * n;
  const double* const cap = args.cap + p * n;
  double* const potential = args.potential + p * n;
  const double mass = args.mass[p], eps = args.eps[p], old = args.level[p];
  const double level = partial_level(team, args, p);
  const double infinity = static_cast<double>(__builtin_inf());
  bool last = false;
  if (args.looks) {
    const double reached = team.sum(
        n, [=](int64_t i) { return partial_mass(weight[i], raw[i] - cap[i], level, eps); });
    const double moved = team.sum(n, [=](int64_t i) {
      const double want = partial_mass(weight[i], raw[i] - cap[i], level, eps);
      const double has = weight[i] == 0.0 || raw[i] == infinity
                             ? 0.0
                             : weight[i] * regkern::exp((potential[i] + old - raw[i]) / eps);
      return regkern::fabs(has - want);
    });
    const double error = (moved + regkern::fabs(reached - mass)) / mass;
    const bool broken = !(error < infinity);
    last = broken || (args.stops && error <= args.tol);
    team.one([=] {
      args.error[p] = error;
      args.iterations[p] = static_cast<int32_t>(args.iteration);
      args.status[p] = broken ? 2 : (last ? 0 : 1);
      if (last) args.done[p] = 1;
    });
  }
  team.wait();
  if (last || !args.moves) return;
  team.each(n, [=](int64_t i) {
    const double next = raw[i] - level;
    potential[i] = next < cap[i] || next != next ? next : cap[i];
  });
  team.one([=] { args.level[p] = level; });
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(transport_partial, transport::PartialArgs)
}
