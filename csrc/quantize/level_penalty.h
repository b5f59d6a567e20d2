#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "quantize/faults.h"
#include "quantize/levels.h"

// The distance of weights from the levels that their cells can hold,
//
//     R = κ Σ (w_i − Q_i)²,    Q_i = f_i v_code (levels)  or  f_i s code (uniform),
//     dw_i = 2κ (w_i − Q_i),   dv_j = −2κ Σ_{code = j} (w_i − Q_i) f_i,
//     ds = −2κ Σ (w_i − Q_i) f_i code,
//
// where code is the nearest allowed one, f_i = 1 + σ ε_i with a standard normal ε_i per element,
// and κ is 1 or 1 / N.

namespace regkern::quantize {

// A range of uniform codes. With stuck bits it is all of `bits` bits, two's complement or unsigned.
struct CodeRange {
  int least, most;
};

// The allowed codes c satisfy (c | sa1) & ~sa0 = c: their bits in m = sa0 | sa1 are p = sa1 & ~sa0.
// In u = c − least (the sign bit flipped, for two's complement) the order is that of the numbers,
// and the largest u ≤ f with u & m = p follows from the highest bit of m where f differs from p:
// where f has a 1 there, u is below f from that bit on; where it has a 0, u must already be smaller
// above, at the lowest free bit that is set; and below all free bits are 1.
// All of it without a branch, so that loops over elements vectorise.
struct Below {
  uint32_t code;
  uint32_t found;  // all bits, or none
};

REGKERN_HD uint32_t all_bits_if(bool condition) { return condition ? 0xFFFFFFFFu : 0u; }
REGKERN_HD uint32_t chosen(uint32_t mask, uint32_t a, uint32_t b) {
  return (a & mask) | (b & ~mask);
}

REGKERN_HD Below largest_below(uint32_t f, uint32_t m, uint32_t p, uint32_t all) {
  const uint32_t free = all & ~m;
  uint32_t s = (f ^ p) & m;
  const uint32_t exact = all_bits_if(s == 0u);
  s |= s >> 1;
  s |= s >> 2;
  s |= s >> 4;
  const uint32_t from_one = all_bits_if((f & (s ^ (s >> 1))) != 0u);
  const uint32_t above = f & free & ~s;
  const uint32_t low = above & (0u - above);
  const uint32_t rest = low - 1u;  // the bits below
  const uint32_t lowered = (f & ~s) | ((p | free) & s);
  const uint32_t borrowed = (f & ~(low | rest)) | ((p | free) & rest);
  return {chosen(exact, f, chosen(from_one, lowered, borrowed)),
          exact | from_one | all_bits_if(low != 0u)};
}

// The allowed code nearest to t, the lower one of two; t is within the range or NaN.
template <typename C>
REGKERN_HD C nearest_allowed(C t, const CodeRange& range, uint32_t sa0, uint32_t sa1) {
  const auto all = static_cast<uint32_t>(range.most - range.least);
  const uint32_t flip = range.least < 0 ? (all + 1u) / 2u : 0u;
  const uint32_t m = (sa0 | sa1) & all, p = (sa1 & ~sa0 & all) ^ (flip & m);
  const bool is_number = t == t;
  const C x = is_number ? t : C(0);
  C floor = nearest_integer(x);
  floor = floor > x ? floor - C(1) : floor;
  const auto f = static_cast<uint32_t>(static_cast<int32_t>(floor) - range.least);
  const Below low = largest_below(f, m, p, all);
  // The smallest u ≥ f + 1 is the complement of the largest one below all − (f + 1).
  const Below high = largest_below((all - f - 1u) & all, m, m & ~p, all);
  const uint32_t has_high = all_bits_if(f != all) & high.found;
  const C below = static_cast<C>(static_cast<int32_t>(low.code) + range.least);
  const C above = static_cast<C>(static_cast<int32_t>(all & ~high.code) + range.least);
  const uint32_t nearer = all_bits_if(x - below <= above - x);
  const bool lower = (low.found & (nearer | ~has_high)) != 0u;
  return is_number ? (lower ? below : above) : t;
}

// The code of w on the grid of a step that is not zero, not yet restricted or rounded.
template <typename C>
REGKERN_HD C on_grid(C w, C step, const CodeRange& range) {
  const C t = step == C(0) ? (w == w ? C(0) : w) : w / step;
  return clamped(t, static_cast<C>(range.least), static_cast<C>(range.most));
}

struct LevelPenaltyArgs {
  Dtype dtype;
  int64_t numel;
  const void* w;
  bool uniform;
  const void* values;  // the step, or (levels)
  int levels;
  CodeRange range;
  const uint8_t* sa0;  // or null
  const uint8_t* sa1;
  Allowed allowed;
  double variability;  // σ
  const int64_t* seed;
  double mean;  // κ
  void* bounds;
  void* dw;       // or null
  int32_t* code;  // or null
  void* factor;   // f, or null
  // The gradient of the values, if it is wanted, and the penalty.
  SumsArgs sums;
  int32_t* refused;
};

// One element: its level, code and what its residual is multiplied with in the gradient.
template <typename C>
struct Level {
  C value;
  int code;
  C weight;
};

template <typename C>
REGKERN_HD Level<C> uniform_level(C w, C step, C f, const CodeRange& range, bool faults,
                                  uint32_t sa0, uint32_t sa1) {
  const C s = step * f;
  const C t = on_grid(w, s, range);
  const C c = faults ? nearest_allowed(t, range, sa0, sa1) : nearest_integer(t);
  return {s * c, static_cast<int>(c == c ? c : C(0)), c * f};
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(level_penalty, quantize::LevelPenaltyArgs)
}
