#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"

// Pairwise ranking of the rows p by the order of t, over the pairs of tokens that are both there
// and of different t. With z = p_j − p_i where t_i > t_j, and p_i − p_j where t_i < t_j,
//
//     loss    S   = Σ_{i, j} ln(1 + eᶻ)            of ordered pairs: each pair is there twice
//     slope   s_i = Σ_j ± σ(z)                      ∂S/∂p_i = 2 s_i; minus where t_i > t_j
//     curve   h_i = Σ_j σ(z) σ(−z) (v_i − v_j)      = Σ_j (∂s_i/∂p_j) v_j
//
// A row i has kPairLanes lanes: token j is for lane j mod kPairLanes, each adds up in order, and
// lanes are added by halves in double. The rows of S have their lanes likewise.

namespace regkern::masks {

constexpr int kPairLanes = 32;

struct PairRankingArgs {
  Dtype dtype;            // float32 or float64
  const void* predicted;  // (batch, n)
  const void* target;
  const uint8_t* mask;  // null, or (batch, n): not 0 for the tokens that are there
  int64_t batch, n;
  const void* direction;  // null, or v
  double* losses;         // (batch): S. Not with a direction
  int64_t* pairs;         // (batch): ordered pairs. Not with a direction
  double* row_losses;     // scratch on the GPU: (batch, n)
  void* out;              // (batch, n): s, or h with a direction
};

// z and what it is a function of, for one pair. A target that is NaN makes the pair NaN.
template <typename C>
REGKERN_HD C pair_gap(C p_i, C p_j, C t_i, C t_j) {
  const C d = p_i - p_j;
  const C z = regkern::choose(t_i > t_j, -d, d);
  return regkern::choose(t_i == t_i, regkern::choose(t_j == t_j, z, t_j), t_i);
}
template <typename C>
REGKERN_HD C pair_loss(C z, C e) {
  return regkern::choose(z > C(0), z, C(0)) + regkern::log1p(e);
}
// σ(z), with e = e^−|z|.
template <typename C>
REGKERN_HD C pair_sigmoid(C z, C e) {
  return regkern::choose(z < C(0), e, C(1)) / (C(1) + e);
}
template <typename C>
REGKERN_HD C pair_curve(C e) {
  return e / ((C(1) + e) * (C(1) + e));
}

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(pair_ranking, masks::PairRankingArgs)
}  // namespace regkern
