#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"

// Reductions over the middle of (batch, length, columns), element after element in order, in
// double.

namespace regkern::proximal {

enum class Pool : int32_t {
  magnitude,  // mean of |x|
  sum,        // Σ ln(1 + x₊) over what the mask keeps
  max,        // the greatest of ln(1 + x₊), 0 where nothing is kept
};

struct ColumnPoolArgs {
  Dtype dtype;
  Pool pool;
  int64_t batch, length, columns;
  const void* x;
  const uint8_t* keep;  // (batch, length), or null
  void* y;              // (batch, columns)
  int32_t* place;       // (batch, columns): where the greatest is, −1 where nothing is positive
};

struct ColumnPoolBackwardArgs {
  Dtype dtype;
  Pool pool;
  int64_t batch, length, columns;
  const void* g;
  const void* x;
  const uint8_t* keep;
  const int32_t* place;
  void* dx;
};

REGKERN_HD bool keeps(const uint8_t* keep, int64_t at) { return keep == nullptr || keep[at] != 0; }

// NaN is greater than all, the first of equals the greatest.
template <typename C>
REGKERN_HD bool is_greater(C x, C best) {
  return (x > best) | ((x != x) & (best == best));
}

template <Pool kPool, typename C>
REGKERN_HD double pooled_term(C x) {
  if constexpr (kPool == Pool::magnitude) return static_cast<double>(fabs(x));
  return static_cast<double>(log1p(x < C(0) ? C(0) : x));
}

// The derivative by x, times g. `there` says whether the mask keeps it, or it is the greatest.
template <Pool kPool, typename C>
REGKERN_HD C pooled_gradient(C g, C x, bool there, C scale) {
  if constexpr (kPool == Pool::magnitude) {
    const C share = g * scale;
    return x > C(0) ? share : x < C(0) ? -share : C(0);
  }
  return there & (x > C(0)) ? g / (C(1) + x) : C(0);
}

template <typename C>
REGKERN_HD C share_of(int64_t length) {
  return C(1) / static_cast<C>(length > 0 ? length : 1);
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(column_pool, proximal::ColumnPoolArgs)
REGKERN_DECLARE_KERNEL(column_pool_backward, proximal::ColumnPoolBackwardArgs)
}  // namespace regkern
