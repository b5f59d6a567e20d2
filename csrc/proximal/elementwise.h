#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/list_sums.h"
#include "core/tensor_list.h"
#include "proximal/laws.h"

// The shrinkage laws on single elements: y = sgn(x) r(|x|), with t = step × weight an element's own
// where there are weights, and the shape of the law where there are shapes; and their penalties.

namespace regkern::proximal {

// What the elements of a call share. t and lam are one number of the compute type in memory.
struct LawArgs {
  Law law;
  const void* t;
  const void* lam;
  double shape;
  double low, high;  // the penalty is infinite outside of [low, high], which contains 0
};

template <typename C>
struct Point {
  C t, lam, shape, low, high;
};

template <typename C>
REGKERN_HD Point<C> load_point(const LawArgs& a) {
  return {a.t != nullptr ? *static_cast<const C*>(a.t) : C(1), *static_cast<const C*>(a.lam),
          static_cast<C>(a.shape), static_cast<C>(a.low), static_cast<C>(a.high)};
}

template <typename C>
REGKERN_HD C clamped(C y, C low, C high) {
  return y < low ? low : y > high ? high : y;
}

template <Law kLaw, typename C>
REGKERN_HD C shrunk_element(const Point<C>& p, C x, C t, C shape) {
  return clamped(copysign(shrink<kLaw>(fabs(x), t, p.lam, shape).r, x), p.low, p.high);
}

// The derivatives of y, times g.
template <typename C>
struct ElementGradient {
  C x, t, lam;
};

template <Law kLaw, typename C>
REGKERN_HD ElementGradient<C> shrunk_gradient(const Point<C>& p, C g, C x, C t, C shape) {
  const Shrunk<C> d = shrink<kLaw>(fabs(x), t, p.lam, shape);
  const C y = copysign(d.r, x);
  const bool off = (y < p.low) | (y > p.high);
  const C signed_g = x == C(0) ? C(0) : x < C(0) ? -g : g;
  return {off ? C(0) : g * d.by_s, off ? C(0) : signed_g * d.by_t,
          off ? C(0) : signed_g * d.by_lam};
}

struct ShrinkRow {
  const void* x;
  void* y;              // may be x
  const void* weights;  // of the compute type, one an element, or null
  const void* shapes;
  int64_t numel, first;
};

struct ProxElementwiseArgs {
  Dtype dtype;
  LawArgs law;
  const ShrinkRow* rows;
  int64_t count;
  int64_t* zeros;  // elements that are 0 afterwards
};

struct ShrinkGradientRow {
  const void* g;
  const void* x;
  const void* weights;
  const void* shapes;
  void* dx;
  void* dweights;  // of the compute type, or null
  int64_t numel, span;
};

constexpr int kShrinkSums = 2;  // by t, by λ

struct ProxElementwiseBackwardArgs {
  Dtype dtype;
  LawArgs law;
  const ShrinkGradientRow* rows;
  int64_t count, all_spans;
  double* spans;  // (all_spans, kShrinkSums), scratch
  void* out;      // (kShrinkSums) of the compute type
};

// Σ w φ_λ(|x|) and its derivative by λ; dx = scale w φ_λ'(|x|) sgn x where it is asked for.
struct PenaltyRow {
  const void* x;
  const void* weights;
  void* dx;  // or null
  int64_t numel, span;
};

struct PenaltyElementwiseArgs {
  Dtype dtype;
  LawArgs law;      // t is the scale of dx, 1 where it is null
  bool only_dx;     // without sums
  bool accumulate;  // dx is added to what is there
  const PenaltyRow* rows;
  int64_t count, all_spans;
  double* spans;  // (all_spans, kShrinkSums)
  void* out;      // (kShrinkSums): the value, and its derivative by λ
};

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(prox_elementwise, proximal::ProxElementwiseArgs)
REGKERN_DECLARE_KERNEL(prox_elementwise_backward, proximal::ProxElementwiseBackwardArgs)
REGKERN_DECLARE_KERNEL(penalty_elementwise, proximal::PenaltyElementwiseArgs)
}  // namespace regkern
