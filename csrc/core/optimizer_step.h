#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"
#include "core/math.h"

// The rules of the optimizers, for one element each. C is what a kernel computes in.

namespace regkern {

// A rule has kStates states, the first of these three.
constexpr int kMostStates = 3;

// One tensor of a list.
struct StepRow {
  void* param;
  const void* grad;
  void* states[kMostStates];
  int64_t numel, first;
};

// A learning rate that a schedule changes may be a number on the device.
struct LearningRate {
  double value;
  const double* at;  // null: the value
};
REGKERN_HD double load_rate(const LearningRate& rate) {
  return rate.at != nullptr ? *rate.at : rate.value;
}

// ---- AdamW ----
//
//     p ← (1 − lr λ) p
//     m ← m + (1 − β₁)(g − m)
//     v ← β₂ v + (1 − β₂) g²
//     p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//
// with AMSGrad the largest v so far in the last line.

// What depends on the step t, which each tensor counts for itself.
template <typename C>
struct AdamWScalars {
  C decay;         // 1 − lr λ
  C step_size;     // −lr / (1 − β₁ᵗ)
  C inverse_root;  // 1 / √(1 − β₂ᵗ)
  C unused;
};

struct AdamWHyper {
  LearningRate rate;
  double beta1, beta2, eps, weight_decay;
  bool maximize, amsgrad;
};

// βᵗ for 0 <= β < 1, t >= 1.
REGKERN_HD double power(double beta, double t) {
  return beta > 0.0 ? regkern::exp(t * regkern::log(beta)) : 0.0;
}

template <typename C>
REGKERN_HD AdamWScalars<C> adamw_scalars(const AdamWHyper& a, double t) {
  const double rate = load_rate(a.rate);
  return {static_cast<C>(1.0 - rate * a.weight_decay),
          static_cast<C>(-(rate / (1.0 - power(a.beta1, t)))),
          static_cast<C>(1.0 / regkern::sqrt(1.0 - power(a.beta2, t))), C(0)};
}

template <typename C, bool kAmsgrad>
struct AdamWRule {
  static constexpr int kStates = kAmsgrad ? 3 : 2;
  static constexpr bool kMetric = true;  // it has a denominator
  C sign, decay, step_size, inverse_root, weight, beta2, weight2, eps;
  bool near;

  REGKERN_HD AdamWRule(const AdamWHyper& a, const AdamWScalars<C>& s)
      : sign(a.maximize ? C(-1) : C(1)),
        decay(s.decay),
        step_size(s.step_size),
        inverse_root(s.inverse_root),
        beta2(static_cast<C>(a.beta2)),
        weight2(static_cast<C>(1.0 - a.beta2)),
        eps(static_cast<C>(a.eps)) {
    // As torch's lerp: from the nearer end, so that β₁ = 0 gives g itself.
    const auto w = static_cast<C>(1.0 - a.beta1);
    near = w < C(0.5);
    weight = near ? w : -(C(1) - w);
  }

  // √v̂ + ε of the largest v.
  REGKERN_HD C denominator(C largest) const { return regkern::sqrt(largest) * inverse_root + eps; }

  REGKERN_HD C operator()(C p, C g, C& m, C& v, C& most) const {
    g *= sign;
    m = (near ? m : g) + weight * (g - m);
    v = v * beta2 + weight2 * g * g;
    C largest = v;
    if constexpr (kAmsgrad) {
      // A NaN of either stays.
      largest = most > v || most != most ? most : v;
      most = largest;
    }
    return p * decay + step_size * m / denominator(largest);
  }
};

// ---- SGD ----
//
//     g ← g + λ p
//     b ← μ b + (1 − dampening) g     (b ← g in the first step)
//     p ← p − lr b                    (Nesterov: p − lr (g + μ b))

struct SgdHyper {
  LearningRate rate;
  double momentum, dampening, weight_decay;
  bool has_momentum, nesterov, maximize, fresh;
};

template <typename C, bool kMomentum>
struct SgdRule {
  static constexpr int kStates = kMomentum ? 1 : 0;
  static constexpr bool kMetric = false;
  C sign, step_size, weight_decay, momentum, share;
  bool nesterov, fresh;

  REGKERN_HD explicit SgdRule(const SgdHyper& a)
      : sign(a.maximize ? C(-1) : C(1)),
        step_size(static_cast<C>(-load_rate(a.rate))),
        weight_decay(static_cast<C>(a.weight_decay)),
        momentum(static_cast<C>(a.momentum)),
        share(static_cast<C>(1.0 - a.dampening)),
        nesterov(a.nesterov),
        fresh(a.fresh) {}

  REGKERN_HD C operator()(C p, C g, C& buffer, C&, C&) const {
    g *= sign;
    // Without decay an infinite weight must not spoil the gradient.
    g = weight_decay != C(0) ? g + weight_decay * p : g;
    C update = g;
    if constexpr (kMomentum) {
      const C b = fresh ? g : buffer * momentum + share * g;
      buffer = b;
      update = nesterov ? g + momentum * b : b;
    }
    return p + step_size * update;
  }
};

}  // namespace regkern
