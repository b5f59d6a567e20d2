#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/tensor_list.h"
#include "quantize/rounded_element.h"
#include "quantize/stochastic_bfloat16.h"

// dst ← src, rounded stochastically, for a whole list of tensors.

namespace regkern::quantize {

struct CopyRow {
  void* dst;
  const void* src;
  int64_t numel, first;
};

// All pairs of one pair of dtypes.
struct CopyStochasticArgs {
  Dtype from, to;  // to: bfloat16 or float16
  const CopyRow* rows;
  int64_t count;
  const int64_t* seed;
};

// Calls f with zeros of the source's and of the destination's type.
template <typename F>
static inline void dispatch_copy(const CopyStochasticArgs& args, F&& f) {
  dispatch_floating(args.from, [&](auto from) {
    if (args.to == Dtype::bfloat16)
      f(from, bfloat16{});
    else
      f(from, float16{});
  });
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(copy_stochastic, quantize::CopyStochasticArgs)
}
