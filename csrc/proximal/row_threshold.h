#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"
#include "proximal/order_free_sum.h"
#include "proximal/slices.h"

// Projections and proximal operators of a slice that come down to one threshold τ, the root of a
// monotone function of the elements beyond it:
//
//     simplex     y = [x − τ]₊                  Σ y = t
//     l1_ball     y = sign(x) [|x| − w τ]₊      Σ w |y| = t, or y = x where Σ w |x| ≤ t
//     linf        y = clamp(x, −τ, τ)           Σ [|x| − τ]₊ = t, or 0 where Σ |x| ≤ t
//     exclusive   y = sign(x) [|x| − w τ]₊      Σ w |y| = τ / t
//     capped      y = clamp(x − τ, 0, cap)      Σ y = t
//     entmax15    y = [x / 2 − τ]₊²             Σ y = 1
//
// The first four by Michelot's active sets: τ of all candidates is too small, what it does not
// reach is dropped, and so on until nothing is. Every τ is a lower bound of the next, so the sets
// do not depend on how they are stored. `capped` drops at either end (Bitran and Hax), `entmax15`
// is Newton's iteration from the left on a convex function.

namespace regkern::proximal {

enum class RowLaw { simplex, l1_ball, linf, exclusive, capped, entmax15 };

REGKERN_HD bool uses_magnitudes(RowLaw law) {
  return law == RowLaw::l1_ball || law == RowLaw::linf || law == RowLaw::exclusive;
}

// One tensor of a list.
struct RowThresholdItem {
  const void* x;
  void* y;           // may be x
  const double* t;   // of the slices, or one for all of them
  int64_t t_stride;  // 1 or 0
  void* theta;       // τ per slice: float, or double where x is
  Slices slices;
  int64_t first;  // number of the first slice in the list
};

struct RowThresholdArgs {
  Dtype dtype;
  RowLaw law;
  const RowThresholdItem* items;
  int64_t count;
  const void* weights;  // (slice size), in the compute type, or null
  double cap;
  int64_t* zeros;  // the number of slices that became zero, added up; or null
  // Losses of Fenchel and Young, of one item; y becomes their gradient.
  void* loss;            // per slice, or null
  const int64_t* label;  // an index per slice, or null
  const void* target;    // as x, or null
  int64_t ignore;
};

// |x| bits without sign, and bits in the order of the numbers.
template <typename C>
struct RowBits;
template <>
struct RowBits<float> {
  using type = int32_t;
  static constexpr int32_t kInfinity = 0x7F800000;
  static constexpr int32_t kMagnitude = 0x7FFFFFFF;
};
template <>
struct RowBits<double> {
  using type = int64_t;
  static constexpr int64_t kInfinity = 0x7FF0000000000000;
  static constexpr int64_t kMagnitude = 0x7FFFFFFFFFFFFFFF;
};
template <typename C>
using row_bits_t = typename RowBits<C>::type;

template <typename C>
REGKERN_HD row_bits_t<C> magnitude_bits(C x) {
  return bit_cast<row_bits_t<C>>(x) & RowBits<C>::kMagnitude;
}
// Its own inverse, as bits.
template <typename C>
REGKERN_HD row_bits_t<C> ordered_bits(row_bits_t<C> bits) {
  constexpr int kSign = 8 * static_cast<int>(sizeof(C)) - 1;
  return bits ^ ((bits >> kSign) & RowBits<C>::kMagnitude);
}
template <typename C>
constexpr row_bits_t<C> kLowestOrdered = ~RowBits<C>::kMagnitude;

// What a first pass finds: the largest magnitude and, of signed laws, the largest number.
template <typename C>
struct RowTop {
  row_bits_t<C> magnitude = 0;                // as bits: NaN lies above infinity
  row_bits_t<C> ordered = kLowestOrdered<C>;  // as ordered bits
};

template <typename C>
REGKERN_HD C not_a_number() {
  return bit_cast<C>(
      static_cast<row_bits_t<C>>(RowBits<C>::kInfinity | 1 | (RowBits<C>::kInfinity >> 1)));
}
template <typename C>
REGKERN_HD C infinity() {
  return bit_cast<C>(RowBits<C>::kInfinity);
}

// How a slice is to be solved. Elements count as a = |x| − shift or x − shift.
template <typename C>
struct RowPlan {
  bool solved;     // level is known
  bool all;        // the first set is the whole slice
  C shift, level;  // level: a lower bound of τ − shift, or that itself
  C bound;         // of the magnitudes of all candidates
  double t;        // right-hand side
  double extra;    // added to the number of elements
};

// Where t is small against the largest element M, only elements in [M/2, M] count, and their
// differences from M are exact: the threshold is as good for M = 10³⁰ as for 1.
template <typename C>
REGKERN_HD RowPlan<C> plan_row(RowLaw law, RowTop<C> top, double t, bool weighted) {
  const C largest_magnitude = bit_cast<C>(top.magnitude);
  const C nan = not_a_number<C>();
  RowPlan<C> plan{true, false, C(0), nan, largest_magnitude, t, 0.0};
  const bool prox = law == RowLaw::linf || law == RowLaw::exclusive;
  const double inf = infinity<double>();
  // The identity, whatever the slice holds.
  if (t == 0.0 && prox) {
    plan.level = law == RowLaw::linf ? infinity<C>() : C(0);
    return plan;
  }
  if (law == RowLaw::l1_ball && t == inf) {
    plan.level = C(0);
    return plan;
  }
  if (!(t >= 0.0)) return plan;
  if (uses_magnitudes(law) || law == RowLaw::capped) {
    if (top.magnitude >= RowBits<C>::kInfinity) return plan;
    if (law == RowLaw::capped) {
      plan.solved = false;
      return plan;
    }
    const C most = largest_magnitude;
    if (most == C(0)) {  // zeros stay
      plan.level = C(0);
      return plan;
    }
    if (law == RowLaw::exclusive) {
      plan.extra = 1.0 / t;
      plan.t = 0.0;
      plan.level = C(0);
      plan.solved = t == inf;
      if (plan.solved) plan.level = infinity<C>();
      plan.all = true;
      return plan;
    }
    if (weighted) {
      plan.solved = false;
      plan.all = true;
      plan.level = C(0);
      return plan;
    }
    if (t >= static_cast<double>(most)) {
      plan.solved = t == inf;
      plan.all = true;
      plan.level = C(0);
      return plan;
    }
  }
  if (top.magnitude > RowBits<C>::kInfinity || t == inf) return plan;
  const C most =
      uses_magnitudes(law) ? largest_magnitude : bit_cast<C>(ordered_bits<C>(top.ordered));
  if (bit_cast<row_bits_t<C>>(most) == RowBits<C>::kInfinity || most == -infinity<C>()) return plan;
  if (law == RowLaw::entmax15) {
    plan.solved = false;
    plan.shift = most;
    return plan;
  }
  const double size = static_cast<double>(most < C(0) ? -most : most);
  if (t == 0.0) {
    plan.shift = most;
    plan.level = C(0);
    return plan;
  }
  plan.solved = false;
  if (2.0 * t < size) {
    plan.shift = most;
    plan.level = static_cast<C>(-t);
    plan.bound = static_cast<C>(t);
  } else {
    plan.level = static_cast<C>(static_cast<double>(most) - t);
    const C low = plan.level < C(0) ? -plan.level : plan.level;
    plan.bound = static_cast<C>(size) > low ? static_cast<C>(size) : low;
  }
  return plan;
}

// Over the elements with a > τ w: Σ w a and Σ w² (their number, where there are no weights).
struct ActiveSums {
  double sum, weight;
  int64_t count;
};

// The pass is given the threshold, and whether all elements are meant instead. `exact` gets what is
// returned, not rounded.
REGKERN_CALLS_ARGUMENT
template <typename C, typename Pass>
REGKERN_HD C michelot(const RowPlan<C>& plan, double* exact, Pass&& pass) {
  C tau = plan.level;
  ActiveSums active = pass(tau, plan.all);
  while (active.count > 0) {
    const double root = (active.sum - plan.t) / (active.weight + plan.extra);
    const C next = static_cast<C>(root);
    if (!(next > tau)) break;
    tau = next;
    *exact = root;
    const int64_t before = active.count;
    active = pass(tau, false);
    if (active.count == before) break;
  }
  return tau;
}

// Over the elements in (lowest, highest): those up to τ, those from τ + cap on, and all of them.
struct CappedSums {
  double low, high, all;
  int64_t low_count, high_count, count;
};

REGKERN_CALLS_ARGUMENT
template <typename Pass>
REGKERN_HD double bitran_hax(double t, double cap, int64_t n, Pass&& pass) {
  const double inf = infinity<double>();
  // Beyond what the caps leave room for there is no solution.
  if (!(t <= cap * static_cast<double>(n))) return not_a_number<double>();
  double lowest = -inf, highest = inf, tau = 0.0, rest = t;
  CappedSums s = pass(lowest, highest, -inf);
  double sum = s.all;
  int64_t count = s.count;
  while (count > 0) {
    tau = (sum - rest) / static_cast<double>(count);
    s = pass(lowest, highest, tau);
    if (s.low_count == 0 && s.high_count == 0) break;
    const double below = tau * static_cast<double>(s.low_count) - s.low;
    const double above = s.high - (tau + cap) * static_cast<double>(s.high_count);
    if (below == above) break;
    const int64_t dropped = below > above ? s.low_count : s.high_count;
    if (dropped == 0) break;
    if (below > above) {
      lowest = tau;
      sum -= s.low;
    } else {
      highest = tau + cap;
      sum -= s.high;
      rest -= cap * static_cast<double>(s.high_count);
    }
    count -= dropped;
  }
  return tau;
}

// Over the elements above τ: Σ d and Σ d² with d = a − τ, a = (x − M) / 2.
struct SquareSums {
  double sum, squares;
};

REGKERN_CALLS_ARGUMENT
template <typename Pass>
REGKERN_HD double entmax_newton(Pass&& pass) {
  double tau = -1.0;
  constexpr int kMost = 64;  // four to eight are usual
  for (int i = 0; i < kMost; ++i) {
    const SquareSums s = pass(tau);
    const double next = tau + (s.squares - 1.0) / (2.0 * s.sum);
    if (!(next > tau)) break;
    tau = next;
  }
  return tau;
}

// What is written, from the solution. `level` is a double in the laws that compute in it.
template <typename C>
struct RowSolution {
  C shift, level;
  double exact;
  C theta;  // what is returned as τ
  C top;    // the largest element, in laws of signed ones
};

// The number returned for a solution: of the identity prox_linf it is the norm.
template <typename C>
REGKERN_HD C returned_threshold(RowLaw law, const RowSolution<C>& s, RowTop<C> top, double t) {
  if (law == RowLaw::linf && t == 0.0) return bit_cast<C>(top.magnitude);
  return law == RowLaw::entmax15 ? s.level : s.shift + s.level;
}

template <typename C>
REGKERN_HD C row_result(RowLaw law, const RowSolution<C>& s, C x, C weight, double cap) {
  if (law == RowLaw::simplex) {
    const C m = (x - s.shift) - s.level;
    return m <= C(0) ? C(0) : m;
  }
  if (law == RowLaw::linf) {
    const C high = s.shift + s.level;
    const C cut = x > high ? high : (x < -high ? -high : x);
    return high == high ? cut : high;
  }
  if (law == RowLaw::capped) {
    const double m = static_cast<double>(x) - s.exact;
    return static_cast<C>(m <= 0.0 ? 0.0 : (m >= cap ? cap : m));
  }
  if (law == RowLaw::entmax15) {
    const double d = (static_cast<double>(x) - static_cast<double>(s.shift)) * 0.5 - s.exact;
    return static_cast<C>(d <= 0.0 ? 0.0 : d * d);
  }
  // A threshold of zero is the identity, sign of zero and all.
  if (s.shift + s.level == C(0)) return x;
  // An infinite threshold leaves what has no weight.
  const C cut = weight == C(0) ? C(0) : s.level * weight;
  C m = ((x < C(0) ? -x : x) - s.shift) - cut;
  // The threshold is about as large as x, and what is left may be small.
  if (law == RowLaw::exclusive)
    m = static_cast<C>(static_cast<double>(x < C(0) ? -x : x) -
                       (weight == C(0) ? 0.0 : s.exact * static_cast<double>(weight)));
  const C signed_m = x < C(0) ? -m : m;
  return m <= C(0) ? C(0) : signed_m;
}

// ---- losses ----

// L(z; q) = Ω(q) − Ω(p) + ⟨p − q, z⟩ with Ω = ½ ‖·‖² of sparsemax and (Σ ·^{3/2} − 1) / ¾ of
// entmax. Since p and q add up to the same, z may be taken from its maximum M.
REGKERN_HD double loss_term(RowLaw law, double p, double q, double z) {
  const double d = p - q;
  const double linear = d == 0.0 ? 0.0 : d * z;
  if (law == RowLaw::simplex) return 0.5 * (q * q - p * p) + linear;
  return (q * regkern::sqrt(q) - p * regkern::sqrt(p)) / 0.75 + linear;
}

constexpr int kLossLanes = 32;

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(row_threshold, proximal::RowThresholdArgs)
}
