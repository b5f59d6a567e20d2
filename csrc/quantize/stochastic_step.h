#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"
#include "core/random.h"
#include "core/tensor_list.h"
#include "quantize/rounded_element.h"
#include "quantize/stochastic_bfloat16.h"

// One step of an optimizer over a list of parameters. Arithmetic is in float32; what is stored in
// bfloat16 or float16, the weight and the states, is rounded stochastically, each with random bits
// of its own.

namespace regkern::quantize {

// A rule has kStates states, the first of these three.
constexpr int kMostStates = 3;

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

REGKERN_HD float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
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
struct AdamWScalars {
  float decay;         // 1 − lr λ
  float step_size;     // −lr / (1 − β₁ᵗ)
  float inverse_root;  // 1 / √(1 − β₂ᵗ)
  float unused;
};

struct AdamWArgs {
  Dtype param, grad, state;
  const StepRow* rows;
  int64_t count;
  float* const* steps;    // t of every row, counted up here
  AdamWScalars* scalars;  // scratch: one for each row
  const int64_t* seed;
  LearningRate rate;
  double beta1, beta2, eps, weight_decay;
  bool maximize, amsgrad;
};

// βᵗ for 0 <= β < 1, t >= 1.
REGKERN_HD double power(double beta, double t) {
  return beta > 0.0 ? regkern::exp(t * regkern::log(beta)) : 0.0;
}

REGKERN_HD AdamWScalars adamw_scalars(const AdamWArgs& a, double t) {
  const double rate = load_rate(a.rate);
  return {static_cast<float>(1.0 - rate * a.weight_decay),
          static_cast<float>(-(rate / (1.0 - power(a.beta1, t)))),
          static_cast<float>(1.0 / sqrt_rn(1.0 - power(a.beta2, t))), 0.0f};
}

template <bool kAmsgrad>
struct AdamWRule {
  static constexpr int kStates = kAmsgrad ? 3 : 2;
  float sign, decay, step_size, inverse_root, weight, beta2, weight2, eps;
  bool near;

  REGKERN_HD AdamWRule(const AdamWArgs& a, const AdamWScalars& s)
      : sign(a.maximize ? -1.0f : 1.0f),
        decay(s.decay),
        step_size(s.step_size),
        inverse_root(s.inverse_root),
        beta2(static_cast<float>(a.beta2)),
        weight2(static_cast<float>(1.0 - a.beta2)),
        eps(static_cast<float>(a.eps)) {
    // As torch's lerp: from the nearer end, so that β₁ = 0 gives g itself.
    const auto w = static_cast<float>(1.0 - a.beta1);
    near = w < 0.5f;
    weight = near ? w : -(1.0f - w);
  }

  REGKERN_HD float operator()(float p, float g, float& m, float& v, float& most) const {
    g *= sign;
    m = (near ? m : g) + weight * (g - m);
    v = v * beta2 + weight2 * g * g;
    float largest = v;
    if constexpr (kAmsgrad) {
      // A NaN of either stays.
      largest = most > v || most != most ? most : v;
      most = largest;
    }
    return p * decay + step_size * m / (square_root(largest) * inverse_root + eps);
  }
};

// ---- SGD ----
//
//     g ← g + λ p
//     b ← μ b + (1 − dampening) g     (b ← g in the first step)
//     p ← p − lr b                    (Nesterov: p − lr (g + μ b))

struct SgdArgs {
  Dtype param, grad, state;
  const StepRow* rows;
  int64_t count;
  const int64_t* seed;
  LearningRate rate;
  double momentum, dampening, weight_decay;
  bool has_momentum, nesterov, maximize, fresh;
};

template <bool kMomentum>
struct SgdRule {
  static constexpr int kStates = kMomentum ? 1 : 0;
  float sign, step_size, weight_decay, momentum, share;
  bool nesterov, fresh;

  REGKERN_HD explicit SgdRule(const SgdArgs& a)
      : sign(a.maximize ? -1.0f : 1.0f),
        step_size(static_cast<float>(-load_rate(a.rate))),
        weight_decay(static_cast<float>(a.weight_decay)),
        momentum(static_cast<float>(a.momentum)),
        share(static_cast<float>(1.0 - a.dampening)),
        nesterov(a.nesterov),
        fresh(a.fresh) {}

  REGKERN_HD float operator()(float p, float g, float& buffer, float&, float&) const {
    g *= sign;
    // Without decay an infinite weight must not spoil the gradient.
    g = weight_decay != 0.0f ? g + weight_decay * p : g;
    float update = g;
    if constexpr (kMomentum) {
      const float b = fresh ? g : buffer * momentum + share * g;
      buffer = b;
      update = nesterov ? g + momentum * b : b;
    }
    return p + step_size * update;
  }
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
