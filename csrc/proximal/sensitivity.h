#pragma once

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"
#include "core/tensor_list.h"

// Weights to which the loss is not sensitive are shrunk, with the step of plain SGD in the same
// pass:
//
//     w ← w − η g − c w φ(S),    0 where a mask does not keep w
//
// S is the sensitivity of the weight, |g|, or one given for its row.

namespace regkern::proximal {

enum class Sensitivity : int32_t {
  lobster,      // φ = (1 − |g|)₊
  rescaled,     // φ = 1 − |g| / max |g|, of the tensor
  rows,         // φ = (1 − S)₊, S given for every row
  irrelevance,  // φ = exp(−|g|)
};

enum class Keep : int32_t { all, bytes, bits };

template <typename C>
struct SensitivityPoint {
  C shrink, lr, most;  // most: max |g|
};

// 0/0 is a tensor without gradient: nothing is sensitive.
template <Sensitivity kKind, typename C>
REGKERN_HD C insensitivity(C s, C most) {
  if constexpr (kKind == Sensitivity::irrelevance) return exp(-s);
  const C rest = C(1) - (kKind == Sensitivity::rescaled ? (most == C(0) ? C(0) : s / most) : s);
  return kKind != Sensitivity::rescaled && rest < C(0) ? C(0) : rest;
}

// s is |g| or the row's sensitivity.
template <Sensitivity kKind, typename C>
REGKERN_HD C shrunk_weight(const SensitivityPoint<C>& p, C w, C g, C s) {
  return w - (p.lr * g + p.shrink * (w * insensitivity<kKind>(s, p.most)));
}

struct SensitivityRow {
  void* w;
  const void* g;
  const void* s;  // (numel / row_size) of the compute type, for Sensitivity::rows
  const void* keep;
  int64_t numel, first, row_size;
  int64_t index;  // among the tensors
};

struct SensitivityShrinkArgs {
  Dtype dtype;
  Sensitivity kind;
  Keep keep;
  const SensitivityRow* rows;
  int64_t count, tensors;
  const void* shrink;  // c, one number of the compute type
  const void* lr;      // η, or null
  // (tensors), scratch: the bits of max |g| in the compute type, which are in the order of the
  // magnitudes; NaN is the greatest.
  uint64_t* most;
};

template <typename C>
REGKERN_HD uint64_t magnitude_bits(C g) {
  if constexpr (sizeof(C) == 4)
    return bit_cast<uint32_t>(fabs(g));
  else
    return bit_cast<uint64_t>(fabs(g));
}
template <typename C>
REGKERN_HD C from_magnitude_bits(uint64_t bits) {
  if constexpr (sizeof(C) == 4)
    return bit_cast<float>(static_cast<uint32_t>(bits));
  else
    return bit_cast<double>(bits);
}

template <typename C>
REGKERN_HD SensitivityPoint<C> load_sensitivity(const SensitivityShrinkArgs& a, int64_t index) {
  return {*static_cast<const C*>(a.shrink), a.lr != nullptr ? *static_cast<const C*>(a.lr) : C(0),
          a.kind == Sensitivity::rescaled ? from_magnitude_bits<C>(a.most[index]) : C(1)};
}

REGKERN_HD bool is_kept(Keep keep, const void* mask, int64_t e) {
  if (keep == Keep::all) return true;
  if (keep == Keep::bytes) return static_cast<const uint8_t*>(mask)[e] != 0;
  return (static_cast<const uint32_t*>(mask)[e / 32] >> (e % 32) & 1u) != 0;
}

template <typename F>
static inline void dispatch_sensitivity(Sensitivity kind, F&& f) {
  using K = Sensitivity;
  if (kind == K::lobster) return f(std::integral_constant<K, K::lobster>{});
  if (kind == K::rescaled) return f(std::integral_constant<K, K::rescaled>{});
  if (kind == K::rows) return f(std::integral_constant<K, K::rows>{});
  f(std::integral_constant<K, K::irrelevance>{});
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(sensitivity_shrink, proximal::SensitivityShrinkArgs)
}
