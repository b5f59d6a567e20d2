#pragma once

#include "core/isa.h"
#include "core/math.h"
#include "spectral/sample_pieces.h"

// KL(P ‖ Q) of the softmax of each row of two tensors of logits. With d = ln Q − ln P,
//
//     KL = Σ P (e^d − 1 − d),      ∂KL/∂q = Q − P = P (e^d − 1),      ∂KL/∂p = −P (d + KL)
//
// The terms of the first sum are not negative, and where d is small they and e^d − 1 come from
// series in d: nothing cancels, so that a perturbation of 1e-6 has a divergence of about 1e-12 in
// float32 and not the rounding errors of two cross-entropies.
//
// −∞ in both is a class that both have ruled out, and adds nothing. −∞ in q alone makes KL
// infinite. A row that p rules out altogether has KL and gradients 0.

namespace regkern::spectral {

struct SoftmaxKLArgs {
  Dtype dtype;
  int64_t rows, size;
  const void* p;
  const void* q;
  void* value;  // (rows), of the compute type
  void* stats;  // (kRowStats, rows), of the compute type
};

struct SoftmaxKLBackwardArgs {
  Dtype dtype;
  int64_t rows, size;
  const void* g;  // (rows), of the compute type
  const void* p;
  const void* q;
  const void* value;
  const void* stats;
  void* dp;  // or null
  void* dq;  // or null
};

// The maximum, ln Σ e^(x − maximum) and 1 / Σ of a row of p, then those of q.
constexpr int kRowStats = 6;

template <typename C>
struct Softmax {
  C maximum, log_sum, inverse;
};

// A row without a finite logit has no probabilities: they are 0.
template <typename C>
REGKERN_HD Softmax<C> softmax_of(C maximum, double sum) {
  const double log_sum = sum > 0.0 ? regkern::log(sum) : (sum == 0.0 ? 0.0 : sum);
  return {maximum, static_cast<C>(log_sum), static_cast<C>(sum == 0.0 ? 0.0 : 1.0 / sum)};
}

// The maximum as what is subtracted: no −∞, of which a row may have nothing else, and no −0.
template <typename C>
REGKERN_HD C shift_of(C maximum) {
  return maximum == -static_cast<C>(__builtin_inf()) ? C(0) : maximum + C(0);
}

// No Q where there is no P: what both rows give then is zero.
template <typename C>
REGKERN_HD Softmax<C> softmax_beside(const Softmax<C>& p, const Softmax<C>& q) {
  return {q.maximum, q.log_sum, p.inverse == C(0) ? C(0) : q.inverse};
}

REGKERN_HD float exp_to_zero(float x) { return choose(x < -87.0f, 0.0f, regkern::exp(x)); }
REGKERN_HD double exp_to_zero(double x) { return choose(x < -700.0, 0.0, regkern::exp(x)); }

// (e^d − 1 − d) / d² for |d| ≤ ½.
REGKERN_HD float exp_series(float d) {
  float series = 1.0f / 362880;
  series = series * d + 1.0f / 40320;
  series = series * d + 1.0f / 5040;
  series = series * d + 1.0f / 720;
  series = series * d + 1.0f / 120;
  series = series * d + 1.0f / 24;
  series = series * d + 1.0f / 6;
  return series * d + 0.5f;
}
REGKERN_HD double exp_series(double d) {
  double series = 1.0 / 355687428096000.0;
  series = series * d + 1.0 / 20922789888000.0;
  series = series * d + 1.0 / 1307674368000.0;
  series = series * d + 1.0 / 87178291200.0;
  series = series * d + 1.0 / 6227020800.0;
  series = series * d + 1.0 / 479001600.0;
  series = series * d + 1.0 / 39916800.0;
  series = series * d + 1.0 / 3628800.0;
  series = series * d + 1.0 / 362880.0;
  series = series * d + 1.0 / 40320.0;
  series = series * d + 1.0 / 5040.0;
  series = series * d + 1.0 / 720.0;
  series = series * d + 1.0 / 120.0;
  series = series * d + 1.0 / 24.0;
  series = series * d + 1.0 / 6.0;
  return series * d + 0.5;
}

// Of one class: what P and Q are, d, and the term of the divergence and its slopes.
template <typename C>
REGKERN_HD C kl_probability(C x, const Softmax<C>& s) {
  return exp_to_zero(x - s.maximum) * s.inverse;
}

template <typename C>
REGKERN_HD C kl_exponent(C x, C y, const Softmax<C>& p, const Softmax<C>& q) {
  return ((y - q.maximum) - q.log_sum) - ((x - p.maximum) - p.log_sum);
}

template <typename C>
REGKERN_HD C kl_value(C p, C q, C d) {
  const C near = p * (d * d * exp_series(d));
  const C far = (q - p) - p * d;
  return choose(p == C(0), q, choose(fabs(d) <= C(0.5), near, far));
}

template <typename C>
REGKERN_HD C kl_slope_q(C p, C q, C d) {
  const C near = p * (d + d * d * exp_series(d));
  return choose(fabs(d) <= C(0.5), near, q - p);
}

template <typename C>
REGKERN_HD C kl_slope_p(C p, C d, C value) {
  return choose(p == C(0), C(0), -p * (d + value));
}

// What the forward left of a row.
template <typename C>
REGKERN_HD Softmax<C> load_softmax(const void* stats, int64_t rows, int64_t row, int which) {
  const C* s = static_cast<const C*>(stats) + 3 * which * rows + row;
  return {s[0], s[rows], s[2 * rows]};
}
template <typename C>
REGKERN_HD void store_softmax(const Softmax<C>& s, void* stats, int64_t rows, int64_t row,
                              int which) {
  C* out = static_cast<C*>(stats) + 3 * which * rows + row;
  out[0] = s.maximum;
  out[rows] = s.log_sum;
  out[2 * rows] = s.inverse;
}

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(softmax_kl, spectral::SoftmaxKLArgs)
REGKERN_DECLARE_KERNEL(softmax_kl_backward, spectral::SoftmaxKLBackwardArgs)
}  // namespace regkern
