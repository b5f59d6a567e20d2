#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/math.h"

// The shrinkage laws: how the proximal operator of a penalty φ that depends on a magnitude alone
// changes that magnitude,
//
//     r(s) = argmin_{r ≥ 0} ½ (r − s)² + t φ_λ(r),    s = |x|, or ‖x_g‖ of a group.
//
// t is step × weight. λ is the factor of the penalty, and part of its form where the penalty is not
// homogeneous in it (SCAD, MCP, CEL0). Every law is the global minimiser, in the domain where the
// problem is not convex too; where two minimisers are equally good, at a jump, it is the smaller.

namespace regkern::proximal {

enum class Law : int32_t {
  soft,         // λ r
  hard,         // λ 1[r ≠ 0]
  elastic_net,  // λ (ρ r + ½ (1 − ρ) r²)
  squared,      // ½ λ r²
  scad,         // λ r up to λ, concave up to a λ, constant beyond; a > 1
  mcp,          // λ r − r²/(2a) up to a λ, constant beyond; a > 0
  log_sum,      // λ ln(1 + r/ε)
  capped,       // λ min(r, θ)
  half,         // λ r^(1/2)
  two_thirds,   // λ r^(2/3)
  cel0,         // λ − ½ a² (r − √(2λ)/a)² up to √(2λ)/a, λ beyond; a ≥ 0
  power,        // λ r^ν, ν > 0: a penalty alone, its operator has no closed form
};
constexpr int kLaws = 12;
constexpr const char* kLawNames[kLaws] = {"soft", "hard",       "elastic_net", "squared",
                                          "scad", "mcp",        "log_sum",     "capped",
                                          "half", "two_thirds", "cel0",        "power"};

// r and its derivatives. At kinks they are those of the side that is zero or constant.
template <typename C>
struct Shrunk {
  C r, by_s, by_t, by_lam;
};

namespace laws {

// From the derivative by τ = t λ, all that a homogeneous penalty depends on.
template <typename C>
REGKERN_HD Shrunk<C> homogeneous(C r, C by_s, C by_tau, C t, C lam) {
  return {r, by_s, lam * by_tau, t * by_tau};
}

template <typename C>
REGKERN_HD Shrunk<C> soft(C s, C t, C lam, C) {
  const C tau = t * lam;
  const bool zero = s <= tau;
  return homogeneous(zero ? C(0) : s - tau, zero ? C(0) : C(1), zero ? C(0) : C(-1), t, lam);
}

// ½ s² against τ.
template <typename C>
REGKERN_HD Shrunk<C> hard(C s, C t, C lam, C) {
  const bool zero = s <= sqrt(C(2) * (t * lam));
  return {choose(zero, C(0), s), choose(zero, C(0), C(1)), C(0), C(0)};
}

// r + τ (ρ + (1 − ρ) r) = s.
template <typename C>
REGKERN_HD Shrunk<C> elastic_net(C s, C t, C lam, C rho) {
  const C tau = t * lam, l1 = tau * rho, scale = C(1) + tau * (C(1) - rho);
  const bool zero = s <= l1;
  const C r = zero ? C(0) : (s - l1) / scale;
  const C by_tau = zero ? C(0) : -(rho + (C(1) - rho) * r) / scale;
  return homogeneous(r, zero ? C(0) : C(1) / scale, by_tau, t, lam);
}

template <typename C>
REGKERN_HD Shrunk<C> squared(C s, C t, C lam, C) {
  const C scale = C(1) + t * lam, r = s / scale;
  return homogeneous(r, C(1) / scale, -r / scale, t, lam);
}

// The penalty l r − ½ c r² up to l/c, constant beyond. Convex with ½ r² for t c < 1: soft threshold
// and steeper than 1 up to l/c, the identity beyond. Otherwise concave up to l/c, so that 0 or s
// is best: ½ s² against t l²/(2c).
template <typename C>
REGKERN_HD Shrunk<C> concave_quadratic(C s, C t, C l, C c) {
  const C slack = C(1) - t * c;
  const bool convex = slack > C(0);
  const bool zero = s <= choose(convex, t * l, l * sqrt(t / c));
  const bool between = convex & (c * s <= l);
  const C steep = choose(convex, slack, C(1));
  const bool bent = between & (!zero);
  return {choose(zero, C(0), choose(between, (s - t * l) / steep, s)),
          choose(zero, C(0), choose(bent, C(1) / steep, C(1))),
          choose(bent, (c * s - l) / (steep * steep), C(0)), choose(bent, -t / steep, C(0))};
}

template <typename C>
REGKERN_HD Shrunk<C> mcp(C s, C t, C lam, C a) {
  return concave_quadratic(s, t, lam, C(1) / a);
}

// The same with l = a √(2λ), c = a².
template <typename C>
REGKERN_HD Shrunk<C> cel0(C s, C t, C lam, C a) {
  const C root = sqrt(C(2) * lam);
  Shrunk<C> out = concave_quadratic(s, t, a * root, a * a);
  out.by_lam = root > C(0) ? out.by_lam * (a / root) : C(0);
  return out;
}

// Convex for t < a − 1. Beyond, the middle piece has no minimum inside, and soft threshold by t λ
// (or 0) stands against s, with the constant λ² (a + 1)/2.
template <typename C>
REGKERN_HD Shrunk<C> scad(C s, C t, C lam, C a) {
  const C l1 = t * lam, slack = a - C(1) - t;
  const bool convex = slack > C(0);
  const C steep = convex ? slack : C(1);
  const bool far = t >= a + C(1);
  const C jump = far ? lam * sqrt(t * (a + C(1))) : C(0.5) * lam * (a + C(1) + t);
  const C soft_end = convex ? lam + l1 : jump;
  const bool keeps = s > (convex ? a * lam : jump);
  const bool zero = (!keeps) & (s <= l1);
  const bool soft = (!keeps) & (!zero) & (s <= soft_end);
  const bool bent = (!keeps) & (!zero) & (!soft) & (s == s);
  const C middle = ((a - C(1)) * s - a * l1) / steep;
  const C r = zero ? C(0) : soft ? s - l1 : bent ? middle : s;
  const C by_s = zero ? C(0) : bent ? (a - C(1)) / steep : C(1);
  const C by_t = soft ? -lam : bent ? (a - C(1)) * (s - a * lam) / (steep * steep) : C(0);
  const C by_lam = soft ? -t : bent ? -t * a / steep : C(0);
  return {r, by_s, by_t, by_lam};
}

// r + τ/(ε + r) = s: r = ½ (s − ε + D), D² = (s + ε)² − 4τ. Where s ≤ τ/ε that may be a local
// minimum, which stands against r = 0: ½ r − s + τ ln(1 + r/ε)/r < 0.
template <typename C>
REGKERN_HD Shrunk<C> log_sum(C s, C t, C lam, C eps) {
  const C tau = t * lam, root = C(2) * sqrt(tau), sum = s + eps;
  const C gap = choose(sum >= root, sum - root, C(0));
  const C d = sqrt(gap) * sqrt(sum + root);
  // Without cancellation on either side.
  const C small = C(2) * (s * eps - tau) / (d + (eps - s)), large = C(0.5) * ((s - eps) + d);
  const C found = choose(s < eps, small, large);
  const C r = choose(found > C(0), found, C(0));
  const C some = choose(r > C(0), r, C(1)), finite = choose(some < C(1e30), some, C(1e30));
  const C cost = C(0.5) * finite - s + tau * log1p(finite / eps) / finite;
  // In the convex domain, √τ ≤ ε, 0 is the minimum wherever it is one.
  const C worth = choose(root > C(2) * eps, C(0), static_cast<C>(-__builtin_inf()));
  const C inside = choose(r > C(0), cost, C(1));
  const bool alive = (s * eps > tau) | ((sum >= root) & (inside < worth));
  const C by_s = C(1) / (C(1) - (tau / (eps + r)) / (eps + r));
  return homogeneous(choose(s == s, choose(alive, r, C(0)), s), choose(alive, by_s, C(0)),
                     choose(alive, -by_s / (eps + r), C(0)), t, lam);
}

// Soft threshold stands against s, whose penalty is τ θ.
template <typename C>
REGKERN_HD Shrunk<C> capped(C s, C t, C lam, C theta) {
  const C tau = t * lam;
  const C jump = tau <= C(2) * theta ? theta + C(0.5) * tau : sqrt(C(2) * theta) * sqrt(tau);
  const bool keeps = s > jump;
  const bool zero = (!keeps) & (s <= tau), soft = (!keeps) & (!zero);
  return homogeneous(zero   ? C(0)
                     : soft ? s - tau
                            : s,
                     zero ? C(0) : C(1), soft ? C(-1) : C(0), t, lam);
}

// So many of Newton's steps from v = 1 reach the last bit: the error squares with a factor below 4,
// from 0.21 at most.
template <typename C>
constexpr int kNewtonSteps = 6;
template <>
constexpr int kNewtonSteps<double> = 7;

// r = s v² with v³ − v + q = 0, the greatest root, q = ½ τ s^(−3/2). As good as 0 at s = 3/2
// τ^(2/3), that is q² = 2/27.
template <typename C>
REGKERN_HD Shrunk<C> half(C s, C t, C lam, C) {
  const C tau = t * lam, root = sqrt(s), q = C(0.5) * ((tau / s) / root);
  const bool zero = (q >= C(0.27216552697590868)) | (s == C(0));
  const C p = zero ? C(0) : q;
  C v = C(1);
  for (int i = 0; i < kNewtonSteps<C>; ++i)
    v = v - (v * (v * v - C(1)) + p) / (C(3) * v * v - C(1));
  const C by_s = C(1) / (C(1) - p / (C(2) * v * v * v));
  const C by_tau = zero ? C(0) : C(-0.5) * by_s / (root * v);
  return homogeneous(zero ? C(0) : s * (v * v), zero ? C(0) : by_s, by_tau, t, lam);
}

// r = s v³ with v⁴ − v + q = 0, the greatest root, q = ⅔ τ s^(−4/3). As good as 0 at
// s = 2 (⅔ τ)^(3/4), that is q = 2^(−4/3).
template <typename C>
REGKERN_HD Shrunk<C> two_thirds(C s, C t, C lam, C) {
  const C tau = t * lam, root = cbrt(s), q = C(2) / C(3) * ((tau / s) / root);
  const bool zero = (q >= C(0.39685026299204987)) | (s == C(0));
  const C p = zero ? C(0) : q;
  C v = C(1);
  for (int i = 0; i < kNewtonSteps<C>; ++i) {
    const C cube = v * v * v;
    v = v - (v * (cube - C(1)) + p) / (C(4) * cube - C(1));
  }
  const C cube = v * v * v, by_s = C(1) / (C(1) - p / (C(3) * cube * v));
  const C by_tau = zero ? C(0) : C(-2) / C(3) * by_s / (root * v);
  return homogeneous(zero ? C(0) : s * cube, zero ? C(0) : by_s, by_tau, t, lam);
}

}  // namespace laws

// A law by its name at compile time, for 0 < t, λ < ∞.
template <Law kLaw, typename C>
REGKERN_HD Shrunk<C> shrink_inside(C s, C t, C lam, C shape) {
  Shrunk<C> out{};
  if constexpr (kLaw == Law::soft) out = laws::soft(s, t, lam, shape);
  if constexpr (kLaw == Law::hard) out = laws::hard(s, t, lam, shape);
  if constexpr (kLaw == Law::elastic_net) out = laws::elastic_net(s, t, lam, shape);
  if constexpr (kLaw == Law::squared) out = laws::squared(s, t, lam, shape);
  if constexpr (kLaw == Law::scad) out = laws::scad(s, t, lam, shape);
  if constexpr (kLaw == Law::mcp) out = laws::mcp(s, t, lam, shape);
  if constexpr (kLaw == Law::log_sum) out = laws::log_sum(s, t, lam, shape);
  if constexpr (kLaw == Law::capped) out = laws::capped(s, t, lam, shape);
  if constexpr (kLaw == Law::half) out = laws::half(s, t, lam, shape);
  if constexpr (kLaw == Law::two_thirds) out = laws::two_thirds(s, t, lam, shape);
  if constexpr (kLaw == Law::cel0) out = laws::cel0(s, t, lam, shape);
  if constexpr (kLaw == Law::power) out = {static_cast<C>(__builtin_nan("")), C(0), C(0), C(0)};
  return out;
}

template <typename C>
REGKERN_HD bool is_inside(C t, C lam) {
  constexpr C kInfinity = static_cast<C>(__builtin_inf());
  return (t > C(0)) & (t < kInfinity) & (lam > C(0)) & (lam < kInfinity);
}

// Everywhere, with the corners that are the same for all: a threshold of 0 (t or λ is 0) is the
// identity bit for bit, one of infinity gives 0, NaN (in s, t or λ) stays.
template <Law kLaw, typename C>
REGKERN_HD Shrunk<C> shrink(C s, C t, C lam, C shape) {
  Shrunk<C> out = shrink_inside<kLaw>(s, t, lam, shape);
  constexpr C kInfinity = static_cast<C>(__builtin_inf());
  const C tau = t * lam;
  const bool none = (t == C(0)) | (lam == C(0));
  const bool all = ((t == kInfinity) | (lam == kInfinity)) & (s == s);
  const bool nan = tau != tau;
  out.r = choose(none, s, choose(all, C(0), choose(nan, tau, out.r)));
  out.by_s = choose(none, C(1), choose(all, C(0), choose(nan, tau, out.by_s)));
  const bool flat = (none & (s == C(0))) | (all & (t != C(0)) & (lam != C(0)));
  out.by_t = choose(flat, C(0), choose(nan, tau, out.by_t));
  out.by_lam = choose(flat, C(0), choose(nan, tau, out.by_lam));
  return out;
}

// φ_λ(r) and its derivatives by r and λ; at r = 0 those of the penalty of |x| are between ± by_r,
// and by_r is 0, the one that moves nothing.
template <typename C>
struct Penalised {
  C value, by_r, by_lam;
};

template <Law kLaw, typename C>
REGKERN_HD Penalised<C> penalty(C r, C lam, C shape) {
  const bool zero = r == C(0);
  C value = C(0), by_r = C(0);  // of φ₁, where φ_λ = λ φ₁
  if constexpr (kLaw == Law::soft) {
    value = r;
    by_r = C(1);
  }
  if constexpr (kLaw == Law::hard) {
    value = zero ? C(0) : r == r ? C(1) : r;
  }
  if constexpr (kLaw == Law::elastic_net) {
    value = shape * r + C(0.5) * (C(1) - shape) * (r * r);
    by_r = shape + (C(1) - shape) * r;
  }
  if constexpr (kLaw == Law::squared) {
    value = C(0.5) * (r * r);
    by_r = r;
  }
  if constexpr (kLaw == Law::log_sum) {
    value = log1p(r / shape);
    by_r = C(1) / (shape + r);
  }
  if constexpr (kLaw == Law::capped) {
    value = r > shape ? shape : r;
    by_r = r > shape ? C(0) : C(1);
  }
  if constexpr (kLaw == Law::half) {
    value = sqrt(r);
    by_r = C(0.5) / value;
  }
  if constexpr (kLaw == Law::two_thirds) {
    const C root = cbrt(r);
    value = root * root;
    by_r = C(2) / C(3) / root;
  }
  if constexpr (kLaw == Law::scad) {
    const C a = shape;
    const bool inner = r <= lam, outer = r > a * lam;
    const C mid = (a * lam * r - C(0.5) * (r * r + lam * lam)) / (a - C(1));
    const C value_at = inner ? lam * r : outer ? C(0.5) * (lam * lam) * (a + C(1)) : mid;
    const C slope = inner ? lam : outer ? C(0) : (a * lam - r) / (a - C(1));
    const C by_lam = inner ? r : outer ? lam * (a + C(1)) : (a * r - lam) / (a - C(1));
    return {value_at, zero ? C(0) : slope, by_lam};
  }
  if constexpr (kLaw == Law::mcp) {
    const C a = shape;
    const bool outer = r > a * lam;
    return {outer ? C(0.5) * a * (lam * lam) : lam * r - C(0.5) * (r * r) / a,
            zero | outer ? C(0) : lam - r / a, outer ? a * lam : r};
  }
  if constexpr (kLaw == Law::cel0) {
    const C root = sqrt(C(2) * lam), slope = shape * r;
    const bool outer = slope >= root;
    const C some = root > C(0) ? root : C(1);
    // λ − ½ (√(2λ) − a r)², without cancellation.
    return {outer ? lam : slope * (root - C(0.5) * slope),
            zero | outer ? C(0) : shape * (root - slope), outer ? C(1) : slope / some};
  }
  if constexpr (kLaw == Law::power) {
    const bool some = !zero && r < static_cast<C>(__builtin_inf());
    const double nu = static_cast<double>(shape), ln = log(some ? static_cast<double>(r) : 1.0);
    value = some ? static_cast<C>(exp(nu * ln)) : r;
    by_r = some ? static_cast<C>(nu * exp((nu - 1.0) * ln)) : C(0);
  }
  return {lam * value, zero ? C(0) : lam * by_r, value};
}

// Calls f with an integral constant of the law.
template <Law kLaw>
struct LawConstant {
  static constexpr Law value = kLaw;
};

REGKERN_CALLS_ARGUMENT
template <typename F>
REGKERN_HD void dispatch_law(Law law, F&& f) {
  switch (law) {
    case Law::soft:
      return f(LawConstant<Law::soft>{});
    case Law::hard:
      return f(LawConstant<Law::hard>{});
    case Law::elastic_net:
      return f(LawConstant<Law::elastic_net>{});
    case Law::squared:
      return f(LawConstant<Law::squared>{});
    case Law::scad:
      return f(LawConstant<Law::scad>{});
    case Law::mcp:
      return f(LawConstant<Law::mcp>{});
    case Law::log_sum:
      return f(LawConstant<Law::log_sum>{});
    case Law::capped:
      return f(LawConstant<Law::capped>{});
    case Law::half:
      return f(LawConstant<Law::half>{});
    case Law::two_thirds:
      return f(LawConstant<Law::two_thirds>{});
    case Law::cel0:
      return f(LawConstant<Law::cel0>{});
    case Law::power:
      return f(LawConstant<Law::power>{});
  }
}

}  // namespace regkern::proximal
