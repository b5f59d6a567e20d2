#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/optimizer_step.h"
#include "core/tensor_list.h"
#include "proximal/elementwise.h"
#include "proximal/groups.h"
#include "proximal/laws.h"

// A step of an optimizer over a list of parameters, and the proximal operator of a penalty on what
// it leaves, while that is in the cache.

namespace regkern::proximal {

// What follows the step.
enum class After : int32_t {
  nothing,
  elements,  // a law for every element
  groups,    // a law for the norms of runs of neighbours
  metric,    // the l2 norms of runs, or of elements, in the diagonal metric of Adam
};

struct ProxRow : StepRow {
  void* out;      // what the prox leaves goes here, or null: to the parameter
  int64_t run;    // neighbours in a group
  double weight;  // of its groups, or elements
};

struct Prox {
  After after;
  Law law;
  double shape;
  double low, high;  // elements stay within
  bool positive;     // groups: elements below 0 go to 0 before norms are taken
  bool held;         // what is 0 before the step stays 0
  const void* step;  // 0-d, in the compute type
  const void* lam;
  const void* soft;  // groups: the soft threshold before, or null
};

template <typename C>
REGKERN_HD C load_number(const void* at) {
  return *static_cast<const C*>(at);
}

// The law's prox of elements with one weight.
template <typename C>
REGKERN_HD Point<C> point_of(const Prox& prox, double weight) {
  return {load_number<C>(prox.step) * static_cast<C>(weight), load_number<C>(prox.lam),
          static_cast<C>(prox.shape), static_cast<C>(prox.low), static_cast<C>(prox.high)};
}

struct ProxAdamWArgs : AdamWHyper {
  Dtype dtype;
  const ProxRow* rows;
  int64_t count;
  Prox prox;
  float* const* steps;  // t of every row, counted up here
  void* scalars;        // scratch: AdamWScalars for each row
};

struct ProxSgdArgs : SgdHyper {
  Dtype dtype;
  const ProxRow* rows;
  int64_t count;
  Prox prox;
};

// Calls f with a zero of the type: float or double.
template <typename F>
static inline void dispatch_step_type(Dtype dtype, F&& f) {
  if (dtype == Dtype::float64)
    f(double{});
  else
    f(float{});
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(prox_adamw, proximal::ProxAdamWArgs)
REGKERN_DECLARE_KERNEL(prox_sgd, proximal::ProxSgdArgs)
}  // namespace regkern
