#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"
#include "core/random_bits.h"

// Elementwise gates of weights and of gradients.
//
//     score gate         y = w · 1[s > τ]
//     gradient dropout   P = ½ (1 + sgn(g) (g + r) / (|g| + |r| + ε)),   u ~ U(0, 1)
//                        y = g where P > u, else (1 − λ) g
//
// P is the share of the two gradients g and r that has the sign of g: 1 where they agree, ½ where
// they cancel. NaN of any argument is NaN of the result.

namespace regkern::sparse {

struct ScoreGateArgs {
  Dtype dtype;
  int64_t numel;
  const void* w;
  const void* s;
  double threshold;
  void* y;
};

template <typename C>
REGKERN_HD C gated(C w, C s, C threshold) {
  // A gate that is NaN where the score is.
  const C gate = choose(s > threshold, C(1), s == s ? C(0) : s);
  return w * gate;
}

struct GradientDropoutArgs {
  Dtype dtype;
  int64_t numel;
  const void* g;
  const void* reference;
  const int64_t* seed;
  double strength, epsilon;
  void* y;
};

// In (0, 1).
template <typename C>
REGKERN_HD C unit_uniform(uint32_t word) {
  return (static_cast<C>(static_cast<int32_t>(word >> 8)) + C(0.5)) * C(1.0 / 16777216.0);
}

template <typename C>
REGKERN_HD C dropped_gradient(C g, C r, C u, C kept, C epsilon) {
  const C total = fabs(g) + fabs(r) + epsilon;
  const C sum = g + r;
  const C signed_sum = choose(g < C(0), -sum, choose(g == C(0), C(0) * sum, sum));
  const C p = C(0.5) * (C(1) + signed_sum / total);
  const C y = choose(p > u, g, kept * g);
  return choose(p == p, y, p);
}

}  // namespace regkern::sparse

namespace regkern {
REGKERN_DECLARE_KERNEL(score_gate, sparse::ScoreGateArgs)
REGKERN_DECLARE_KERNEL(gradient_dropout, sparse::GradientDropoutArgs)
}  // namespace regkern
