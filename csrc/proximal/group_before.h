#pragma once

#include "core/dtype.h"
#include "proximal/groups.h"

namespace regkern::proximal {

// Reads elements in the compute type as `before` makes them.
template <Before kBefore, typename T>
struct Prepared {
  using C = compute_t<T>;
  const T* x;
  const C* l1;
  C soft;
  bool positive;

  REGKERN_HD C of(C value, int64_t i) const {
    if constexpr (kBefore == Before::positive) value = positive_part(value);
    if constexpr (kBefore == Before::soft) value = soft_threshold(value, soft);
    if constexpr (kBefore == Before::weighted) value = soft_threshold(value, soft * l1[i]);
    if constexpr (kBefore == Before::soft || kBefore == Before::weighted)
      value = (positive & (value < C(0))) ? C(0) : value;
    return value;
  }
  REGKERN_HD C operator()(int64_t i) const { return of(widen(x[i]), i); }
  REGKERN_HD Prepared from(int64_t i) const {
    return {x + i, kBefore == Before::weighted ? l1 + i : l1, soft, positive};
  }
};

template <Before kBefore, typename T>
REGKERN_HD Prepared<kBefore, T> prepared(const GroupRow& row, const void* soft, bool positive) {
  using C = compute_t<T>;
  return {static_cast<const T*>(row.x), static_cast<const C*>(row.l1),
          soft != nullptr ? *static_cast<const C*>(soft) : C(0), positive};
}

template <Before kBefore>
struct BeforeConstant {
  static constexpr Before value = kBefore;
};

// Calls f with a constant of `before` and a zero of the storage type.
template <typename F>
static inline void dispatch_before(Before before, Dtype dtype, F&& f) {
  dispatch_floating(dtype, [&](auto zero) {
    switch (before) {
      case Before::nothing:
        return f(BeforeConstant<Before::nothing>{}, zero);
      case Before::positive:
        return f(BeforeConstant<Before::positive>{}, zero);
      case Before::soft:
        return f(BeforeConstant<Before::soft>{}, zero);
      case Before::weighted:
        return f(BeforeConstant<Before::weighted>{}, zero);
    }
  });
}

}  // namespace regkern::proximal
