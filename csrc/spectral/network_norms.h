#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/list_sums.h"
#include "core/math.h"
#include "core/square_sum.h"

// Sums over the tensors of a network that norms are made of: of each tensor, and of all of them. Of
// the elements x, or of (|w| + η) x where there is a w.

namespace regkern::spectral {

enum class Norms : int32_t {
  absolute,  // Σ |x|
  square,    // Σ x²
  power,     // Σ (|x| / m)^p
  largest,   // max |x|
  pair,      // Σ x², Σ x w, Σ w²
  distance,  // Σ (x − w)²
};

constexpr int kPairSums = 3;

REGKERN_HD int sums_of(Norms norms) { return norms == Norms::pair ? kPairSums : 1; }

struct NormRow {
  const void* x;
  const void* w;
  int64_t numel, span;
};

struct NetworkNormsArgs {
  Dtype dtype;
  Norms norms;
  bool adaptive;  // of (|w| + η) x
  double eta, p;
  const double* most;  // m
  const NormRow* rows;
  int64_t count, all_spans;
  double* spans;  // (all_spans, sums), scratch
  double* each;   // (count, sums)
  double* total;  // (sums)
};

// r^p for r in [0, 1], within 1e-13; NaN stays.
REGKERN_HD double unit_power(double r, double p) {
  const double value = exp(p * log(r));
  return r > 0.0 ? value : r;
}

// 0 where all elements are.
REGKERN_HD double share_of(double magnitude, double most) {
  return most == 0.0 ? 0.0 : magnitude / most;
}

// What a lane adds up in. At most kSpan / kSpanLanes = 8 terms: in the compute type, where that
// holds the sum of the span (core/square_sum.h), else in double. Products are added in double in
// the first place: differences are made of their sums.
template <Norms kNorms, typename C>
struct LaneType {
  using type = C;
};
template <typename C>
struct LaneType<Norms::pair, C> {
  using type = double;
};
template <typename C>
struct LaneType<Norms::power, C> {
  using type = double;
};
template <Norms kNorms, typename C>
using lane_t = typename LaneType<kNorms, C>::type;

// The k-th sum's term. Not an array of them: gcc would keep one in memory.
template <Norms kNorms, int k, typename A>
REGKERN_HD A norm_term(A x, A w, double p, double most) {
  if constexpr (kNorms == Norms::absolute) {
    return fabs(x);
  } else if constexpr (kNorms == Norms::square) {
    return x * x;
  } else if constexpr (kNorms == Norms::power) {
    return unit_power(share_of(fabs(x), most), p);
  } else if constexpr (kNorms == Norms::pair) {
    return k == 0 ? x * x : k == 1 ? x * w : w * w;
  } else {
    const A d = x - w;
    return d * d;
  }
}

// The order of group_sum in core/list_sums.h.
template <typename A>
REGKERN_HD double lane_group_sum(const A v[kLaneGroup]) {
  return static_cast<double>(((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])));
}

// The term of an element, in A: of x, or (|w| + η) x.
template <Norms kNorms, bool kAdaptive, int k, typename A, typename C>
REGKERN_HD A element_term(C x, C w, C eta, double p, double most) {
  A a = static_cast<A>(x);
  if constexpr (kAdaptive) a *= static_cast<A>(fabs(w) + eta);
  return norm_term<kNorms, k>(a, static_cast<A>(w), p, most);
}

// Magnitudes in the order of their bits: NaN is above infinity, and so stays.
REGKERN_HD uint32_t magnitude_bits(float x) { return bit_cast<uint32_t>(x) & 0x7FFFFFFFu; }
REGKERN_HD uint64_t magnitude_bits(double x) {
  return bit_cast<uint64_t>(x) & 0x7FFFFFFFFFFFFFFFull;
}
REGKERN_HD double larger_magnitude(double a, double b) {
  return magnitude_bits(a) > magnitude_bits(b) ? a : b;
}

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(network_norms, spectral::NetworkNormsArgs)
}
