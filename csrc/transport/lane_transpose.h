#pragma once

#include <cstdint>
#include <utility>

#include "core/registers.h"

// Transposition of as many vectors as one has lanes, in registers. Left to itself gcc inserts one
// element at a time: loads and stores of 4 x 4 problems would be half of all their time.

namespace regkern::REGKERN_ISA {
namespace {

template <typename C>
struct LanesOf {
  typedef C type __attribute__((vector_size(kRegisterBytes)));
};
template <typename C>
using Lanes = typename LanesOf<C>::type;
// The same in memory, wherever it is.
template <typename C>
struct LooseLanesOf {
  typedef C type __attribute__((vector_size(kRegisterBytes), aligned(sizeof(C)), may_alias));
};
template <typename C>
constexpr int kLanesOf = kRegisterBytes / static_cast<int>(sizeof(C));

// Element k of what is made of a and b, whose elements are counted on from those of a: of every two
// blocks of `width`, the lower ones of a and b, or the upper ones.
constexpr int of_blocks(int k, int width, bool upper, int lanes) {
  const bool second = k / width % 2 != 0;
  return k + (second ? lanes : 0) + (second == upper ? 0 : upper ? width : -width);
}
// Of every four elements the first two, or the last two, of a and b in turns.
constexpr int of_turns(int k, bool upper, int lanes) {
  return k / 4 * 4 + k % 4 / 2 + (upper ? 2 : 0) + (k % 2 != 0 ? lanes : 0);
}

template <typename C, int kWidth, bool kUpper, int... K>
inline Lanes<C> blocks_of(const Lanes<C>& a, const Lanes<C>& b, std::integer_sequence<int, K...>) {
  using I = decltype(Lanes<C>{} < Lanes<C>{});
  constexpr I from = {of_blocks(K, kWidth, kUpper, kLanesOf<C>)...};
  return __builtin_shuffle(a, b, from);
}
template <typename C, bool kUpper, int... K>
inline Lanes<C> turns_of(const Lanes<C>& a, const Lanes<C>& b, std::integer_sequence<int, K...>) {
  using I = decltype(Lanes<C>{} < Lanes<C>{});
  constexpr I from = {of_turns(K, kUpper, kLanesOf<C>)...};
  return __builtin_shuffle(a, b, from);
}

// Blocks of `kWidth` and wider ones change places.
template <typename C, int kWidth>
inline void transpose_blocks(Lanes<C>* rows) {
  constexpr int kL = kLanesOf<C>;
  constexpr std::make_integer_sequence<int, kL> all{};
  if constexpr (kWidth < kL) {
#pragma GCC unroll 16
    for (int r = 0; r < kL; ++r) {
      if ((r & kWidth) != 0) continue;
      const Lanes<C> a = rows[r], b = rows[r + kWidth];
      rows[r] = blocks_of<C, kWidth, false>(a, b, all);
      rows[r + kWidth] = blocks_of<C, kWidth, true>(a, b, all);
    }
    transpose_blocks<C, 2 * kWidth>(rows);
  }
}

// rows[r][k] ← rows[k][r].
template <typename C>
inline void transpose_lanes(Lanes<C>* rows) {
  constexpr int kL = kLanesOf<C>;
  if constexpr (sizeof(C) == 8) {
    transpose_blocks<C, 1>(rows);
  } else {
    constexpr std::make_integer_sequence<int, kL> all{};
#pragma GCC unroll 4
    for (int r = 0; r < kL; r += 4) {
      const Lanes<C> a = turns_of<C, false>(rows[r], rows[r + 1], all);
      const Lanes<C> b = turns_of<C, false>(rows[r + 2], rows[r + 3], all);
      const Lanes<C> c = turns_of<C, true>(rows[r], rows[r + 1], all);
      const Lanes<C> d = turns_of<C, true>(rows[r + 2], rows[r + 3], all);
      rows[r] = blocks_of<C, 2, false>(a, b, all);
      rows[r + 1] = blocks_of<C, 2, true>(a, b, all);
      rows[r + 2] = blocks_of<C, 2, false>(c, d, all);
      rows[r + 3] = blocks_of<C, 2, true>(c, d, all);
    }
    transpose_blocks<C, 4>(rows);
  }
}

template <typename C>
inline Lanes<C> load_vector(const C* from) {
  return *reinterpret_cast<const typename LooseLanesOf<C>::type*>(from);
}
template <typename C>
inline void store_vector(const Lanes<C>& x, C* to) {
  *reinterpret_cast<typename LooseLanesOf<C>::type*>(to) = x;
}

}  // namespace
}  // namespace regkern::REGKERN_ISA
