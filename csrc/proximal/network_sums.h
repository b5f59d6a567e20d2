#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/list_sums.h"
#include "core/math.h"

// Sums over all elements of a network that its penalties are made of, and the gradients of those.
// c is a number in memory.

namespace regkern::proximal {

enum class NetworkForm : int32_t {
  centred,    // Σ x, Σ |x − c|, Σ sgn(x − c);   gradient a sgn x + b sgn(x − c) + d
  saturated,  // Σ |x|, Σ tanh(c |x|);           gradient a sgn x (1 − tanh²(c x))
};

constexpr int kNetworkSums = 3;

struct NetworkRow {
  const void* x;
  void* dx;
  int64_t numel, first, span;
};

struct NetworkSumsArgs {
  Dtype dtype;
  NetworkForm form;
  const double* centre;  // c
  const NetworkRow* rows;
  int64_t count, all_spans;
  double* spans;  // (all_spans, kNetworkSums), scratch
  double* out;    // (kNetworkSums)
};

struct NetworkGradientArgs {
  Dtype dtype;
  NetworkForm form;
  const double* numbers;  // c, a, b, d
  const NetworkRow* rows;
  int64_t count;
};

template <typename C>
REGKERN_HD C sign_of(C x) {
  return x > C(0) ? C(1) : x < C(0) ? C(-1) : x;  // NaN stays
}

// With e = exp(−2 c |x|): tanh(c |x|) = (1 − e)/(1 + e), and 1 − tanh² = 4 e/(1 + e)².
template <NetworkForm kForm, typename C>
REGKERN_HD void network_terms(C x, C c, C out[kNetworkSums]) {
  if constexpr (kForm == NetworkForm::centred) {
    out[0] = x;
    out[1] = fabs(x - c);
    out[2] = sign_of(x - c);
  } else {
    const C s = fabs(x), e = exp(C(-2) * (c * s));
    out[0] = s;
    out[1] = (C(1) - e) / (C(1) + e);
    out[2] = C(0);
  }
}

template <NetworkForm kForm, typename C>
REGKERN_HD C network_gradient(C x, C c, C a, C b, C d) {
  if constexpr (kForm == NetworkForm::centred) return a * sign_of(x) + b * sign_of(x - c) + d;
  const C e = exp(C(-2) * (c * fabs(x))), slope = C(4) * e / ((C(1) + e) * (C(1) + e));
  return a * (sign_of(x) * slope);
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(network_sums, proximal::NetworkSumsArgs)
REGKERN_DECLARE_KERNEL(network_gradients, proximal::NetworkGradientArgs)
}  // namespace regkern
