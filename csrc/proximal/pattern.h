#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/macros.h"
#include "proximal/slices.h"

// N:M patterns: of every m neighbours along a dimension, the n of the largest magnitude are kept.
// Elements are bits here: magnitudes are ordered as their bits are, NaN lies above infinity, and
// what is kept is copied. Element i is kept if fewer than n of its group come before it:
//
//     rank(i) = #{j : |x_j| > |x_i|, or |x_j| = |x_i| and j < i} = #{j : k_j > k_i − [j < i]}
//
// for integer keys k = |x|. The last group of a slice may be shorter than m.

namespace regkern::proximal {

constexpr int kLongestPattern = 64;

struct PatternItem {
  const void* values;  // or null: `out` is a mask of bytes
  const void* scores;
  void* out;      // may be `values` and `scores`
  Slices slices;  // along a dimension: inner = 1
};

struct PatternArgs {
  int bytes;  // of an element: 2, 4 or 8
  int n, m;
  const PatternItem* items;
  int64_t count;
};

template <typename S>
constexpr S kMagnitudeOf = static_cast<S>((uint64_t{1} << (8 * sizeof(S) - 1)) - 1);

// Groups of a slice, and of an item.
REGKERN_HD int64_t groups_along(const Slices& s, int m) { return (s.outer + m - 1) / m; }
REGKERN_HD int64_t group_count(const Slices& s, int m) {
  return s.batch * s.count * groups_along(s, m);
}

// Calls f with a zero of the signed integer of that many bytes.
template <typename F>
static inline void dispatch_bytes(int bytes, F&& f) {
  if (bytes == 2) return f(int16_t{});
  if (bytes == 4) return f(int32_t{});
  f(int64_t{});
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(n_m_pattern, proximal::PatternArgs)
}
