#pragma once

#include "proximal/groups.h"

// What is computed group by group.

namespace regkern::proximal {

// Calls f with a zero of the type that kernels of the dtype compute in.
template <typename F>
static inline void dispatch_compute(Dtype dtype, F&& f) {
  if (dtype == Dtype::float64) return f(double{});
  f(float{});
}

// y = x r(s)/s, so with u = x/s: dx = r/s g + (r′ − r/s) u ⟨u, g⟩, and dr = ⟨u, g⟩. A zero group
// has no direction; its gradient is 0 where the law shrinks.
template <Law kLaw, typename C>
REGKERN_HD void slopes_of(const GroupSlopesArgs& args, int64_t g) {
  const double s = args.norms[g], weight = args.weights != nullptr ? args.weights[g] : 1.0;
  const double step = static_cast<double>(*static_cast<const C*>(args.step));
  const double lam = static_cast<double>(*static_cast<const C*>(args.lam));
  const double t = step * weight;
  const Shrunk<double> out = shrink<kLaw>(s, t, lam, args.shape);
  const bool none = (t == 0.0) | (lam == 0.0);
  const double a = none ? 1.0 : s == 0.0 ? 0.0 : out.r / s;
  const double inverse = s == 0.0 ? 0.0 : 1.0 / s;
  double* const slopes = args.slopes + g;
  slopes[0] = a;
  slopes[args.groups] = (none | (s == 0.0)) ? 0.0 : ((out.by_s - a) * inverse) * inverse;
  slopes[2 * args.groups] = s == 0.0 ? 0.0 : (out.by_t * weight) * inverse;
  slopes[3 * args.groups] = s == 0.0 ? 0.0 : out.by_lam * inverse;
}

template <Law kLaw, typename C>
REGKERN_HD void penalty_of(const GroupPenaltyArgs& args, int64_t g) {
  const double s = args.norms[g], weight = args.weights != nullptr ? args.weights[g] : 1.0;
  const double lam = static_cast<double>(*static_cast<const C*>(args.lam));
  const Penalised<double> out = penalty<kLaw>(s, lam, args.shape);
  args.out[g] = weight * out.value;
  args.out[args.groups + g] = s == 0.0 ? 0.0 : weight * out.by_r / s;
  args.out[2 * args.groups + g] = weight * out.by_lam;
}

}  // namespace regkern::proximal
