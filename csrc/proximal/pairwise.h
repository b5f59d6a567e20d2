#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"

// The prox of t ‖x − y‖ for pairs of rows. With d = x − y and c = min(½, t / ‖d‖),
//
//     x ← x − c d,   y ← y + c d
//
// Where c = ½ the two have met, and both are y + d / 2 to the last bit. ‖d‖ is the root of a sum of
// squares in the order of core/square_sum.h.

namespace regkern::proximal {

template <typename C>
struct PairMove {
  C share;     // c
  bool still;  // t = 0: nothing moves, not even -0 or what is infinitely far away
};

template <typename C>
REGKERN_HD PairMove<C> pair_move(C norm, C t) {
  return {t == C(0) ? C(0) : norm <= t + t ? C(0.5) : t / norm, t == C(0)};
}

template <typename C>
REGKERN_HD void move_pair(PairMove<C> move, C x, C y, C* x_out, C* y_out) {
  const C step = move.share * (x - y);
  const C up = y + step;
  *x_out = move.still ? x : move.share == C(0.5) ? up : x - step;
  *y_out = move.still ? y : up;
}

struct PairArgs {
  Dtype dtype;
  const void* x;
  const void* y;
  void* x_out;  // may be x
  void* y_out;
  const int64_t* pairs;  // the rows of each pair in x; null: row p of x and row p of y
  int64_t count;         // pairs; no two have a row in common
  int64_t rows, n;
  const void* threshold;  // in the compute type
  bool threshold_per_pair;
  void* shares;  // c of every pair, in the compute type, or null
};

// The rows of pair p, or false: out of range.
REGKERN_HD bool rows_of_pair(const PairArgs& a, int64_t p, int64_t* first, int64_t* second) {
  *first = a.pairs != nullptr ? a.pairs[2 * p] : p;
  *second = a.pairs != nullptr ? a.pairs[2 * p + 1] : p;
  return *first >= 0 && *first < a.rows && *second >= 0 && *second < a.rows;
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(pair_prox, proximal::PairArgs)
}  // namespace regkern
