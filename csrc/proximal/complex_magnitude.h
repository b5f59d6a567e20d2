#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "proximal/elementwise.h"

// The shrinkage laws on the magnitudes of complex numbers, which keep their angles: y = z r(s)/s,
// s = |z|. Numbers are pairs of neighbours, real and imaginary part, float or double.

namespace regkern::proximal {

template <typename C>
struct Complex {
  C re, im;
};

// |z| without overflow: infinite where a part is, NaN where one is NaN and none is infinite.
template <typename C>
REGKERN_HD C modulus(Complex<C> z) {
  const C a = fabs(z.re), b = fabs(z.im);
  const C most = a > b ? a : b, least = a > b ? b : a;
  const C ratio = least / (most > C(0) ? most : C(1));
  const C s = most * sqrt(C(1) + ratio * ratio);
  constexpr C kInfinity = static_cast<C>(__builtin_inf());
  return (a == kInfinity) | (b == kInfinity) ? kInfinity : most == C(0) ? least : s;
}

// r/s; at 0 its limit, and at infinity 1.
template <typename C>
REGKERN_HD C factor_of(const Shrunk<C>& d, C s) {
  constexpr C kInfinity = static_cast<C>(__builtin_inf());
  return s == C(0) ? d.by_s : s == kInfinity ? (d.r == C(0) ? C(0) : C(1)) : d.r / s;
}

template <Law kLaw, typename C>
REGKERN_HD Complex<C> shrunk_complex(const Point<C>& p, Complex<C> z) {
  const C s = modulus(z);
  const C f = factor_of(shrink<kLaw>(s, p.t, p.lam, p.shape), s);
  return {f == C(0) ? C(0) : z.re * f, f == C(0) ? C(0) : z.im * f};
}

template <typename C>
struct ComplexGradient {
  Complex<C> z;
  C t, lam;
};

// f g + (r' − f) ⟨g, u⟩ u with the direction u = z/s.
template <Law kLaw, typename C>
REGKERN_HD ComplexGradient<C> shrunk_complex_gradient(const Point<C>& p, Complex<C> g,
                                                      Complex<C> z) {
  const C s = modulus(z);
  const Shrunk<C> d = shrink<kLaw>(s, p.t, p.lam, p.shape);
  const C f = factor_of(d, s), scale = s == C(0) ? C(1) : s;
  const C re = z.re / scale, im = z.im / scale, along = g.re * re + g.im * im;
  const C bend = (d.by_s - f) * along;
  return {{f * g.re + bend * re, f * g.im + bend * im}, along * d.by_t, along * d.by_lam};
}

// `numel` counts complex numbers.
struct ComplexRow {
  const void* g;  // of the gradient alone
  const void* z;
  void* out;
  int64_t numel, span;
};

struct ProxComplexArgs {
  Dtype dtype;  // of the parts
  LawArgs law;
  bool gradient;
  const ComplexRow* rows;
  int64_t count, all_spans;
  double* spans;  // (all_spans, kShrinkSums), scratch
  void* out;      // (kShrinkSums), of the gradient; else how many are 0, and nothing
};

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(prox_complex, proximal::ProxComplexArgs)
}
