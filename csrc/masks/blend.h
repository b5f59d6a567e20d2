#pragma once

#include <cstdint>

#include "core/tensor_list.h"
#include "masks/dropout.h"

// What an element becomes by an event of a mask that is never stored: one tensor or another, a
// mixture of both, nothing, or the event itself; for one tensor or a whole list. The event of
// element e has probability p, or one of its own, and falls with the bits that drop e in dropout.

namespace regkern::masks {

// With f the factor of the element: 1 (or 1/(1 − p) if `scaled`) where it is on, else 0.
enum class Blend {
  mix,      // y = b + (a − b) · f
  product,  // y = a · f: a NaN stays NaN where f = 0
  select,   // y = a where f = 1, else b, or 0 without b
  other,    // y = 0 where f = 1, else a
  sample,   // y = f; a holds the probabilities
};

struct BlendRow {
  const void* a;
  const void* b;  // null: zeros
  void* y;        // may be a or b
  int64_t numel, first;
};

struct BlendArgs {
  Dtype dtype;
  Blend blend;
  const BlendRow* rows;
  int64_t count;
  const int64_t* seed;
  double p;            // with probabilities of elements: their factor
  const double* p_at;  // null, or where p stands instead
  // With one row alone:
  const float* each;  // null, or the elements' probabilities
  const void* own;    // null, or the same in the tensors' dtype
  const uint8_t* given;
  // Whether an element is on where the event happens, or is given; else where it does not happen,
  // and is given (if there is something given).
  bool draw;
  bool scaled;  // without `draw` and probabilities of elements
};

// k is what is kept of an element that the event drops.
template <typename C>
REGKERN_HD C on_factor(C k, bool draw, bool has_given, bool given) {
  if (draw) return has_given && given ? C(1) : C(1) - k;
  return has_given && !given ? C(0) : k;
}

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(blend, masks::BlendArgs)
}  // namespace regkern
