#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/optimizer_step.h"
#include "core/tensor_list.h"
#include "quantize/rounded_element.h"
#include "quantize/stochastic_bfloat16.h"

// One step of an optimizer over a list of parameters. Arithmetic is in float32; what is stored in
// bfloat16 or float16, the weight and the states, is rounded stochastically, each with random bits
// of its own.

namespace regkern::quantize {

struct AdamWArgs : AdamWHyper {
  Dtype param, grad, state;
  const StepRow* rows;
  int64_t count;
  float* const* steps;           // t of every row, counted up here
  AdamWScalars<float>* scalars;  // scratch: one for each row
  const int64_t* seed;
};

struct SgdArgs : SgdHyper {
  Dtype param, grad, state;
  const StepRow* rows;
  int64_t count;
  const int64_t* seed;
};

// Calls f with zeros of the parameters' and of the states' type, float where there are no states.
template <typename Rule, typename F>
static inline void dispatch_step(Dtype param, Dtype state, F&& f) {
  const auto with_state = [&](auto p) {
    if constexpr (Rule::kStates > 0)
      if (state == Dtype::bfloat16) return f(p, bfloat16{});
    f(p, float{});
  };
  if (param == Dtype::bfloat16)
    with_state(bfloat16{});
  else if (param == Dtype::float16)
    with_state(float16{});
  else
    with_state(float{});
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(adamw_stochastic, quantize::AdamWArgs)
REGKERN_DECLARE_KERNEL(sgd_stochastic, quantize::SgdArgs)
}  // namespace regkern
