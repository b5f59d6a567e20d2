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
  return choose(x > C(0), C(1), choose(x < C(0), C(-1), x));  // NaN stays
}

// The k-th sum's term. With e = exp(−2 c |x|): tanh(c |x|) = (1 − e)/(1 + e), and 1 − tanh² =
// 4 e/(1 + e)².
template <NetworkForm kForm, int k, typename C>
REGKERN_HD C network_term(C x, C c) {
  if constexpr (kForm == NetworkForm::centred) {
    if constexpr (k == 0) return x;
    return k == 1 ? fabs(x - c) : sign_of(x - c);
  } else {
    if constexpr (k == 0) return fabs(x);
    if constexpr (k == 2) return C(0);
    const C e = exp(C(-2) * (c * fabs(x)));
    return (C(1) - e) / (C(1) + e);
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
