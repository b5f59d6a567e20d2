#pragma once

#include "core/registers.h"
#include "core/vec.h"
#include "quantize/levels.h"
#include "quantize/segment_blocks.h"

// The nearest level of kBlock elements, for CPU kernels. The loop over the levels is inside the one
// over vectors, so that what it compares stays in registers: gcc does not vectorise outer loops.

namespace regkern::quantize {
namespace {

// As wide as the registers: gcc takes the selects of wider vectors apart, element by element.
template <typename C>
struct Wide;
template <>
struct Wide<float> {
  using Int = int32_t;
  typedef float Floats __attribute__((vector_size(kRegisterBytes)));
  typedef int32_t Ints __attribute__((vector_size(kRegisterBytes)));
};
template <>
struct Wide<double> {
  using Int = int64_t;
  typedef double Floats __attribute__((vector_size(kRegisterBytes)));
  typedef int64_t Ints __attribute__((vector_size(kRegisterBytes)));
};

template <typename C>
constexpr int kWideLanes = kRegisterBytes / static_cast<int>(sizeof(C));

template <typename C>
struct Search {
  typename Wide<C>::Floats x, best, value, factor;
  typename Wide<C>::Ints code, low, high;  // the words of the masks
};

template <typename C, bool kFactor, bool kAllowed>
inline __attribute__((always_inline)) void compare(Search<C>& s, typename Wide<C>::Floats v,
                                                   int j) {
  using Floats = typename Wide<C>::Floats;
  using Ints = typename Wide<C>::Ints;
  if constexpr (kFactor) v = v * s.factor;
  constexpr auto kSign = static_cast<typename Wide<C>::Int>(int64_t{1} << (8 * sizeof(C) - 1));
  const Floats d = (Floats)((Ints)(v - s.x) & ~kSign);
  Ints nearer = d < s.best;
  if constexpr (kAllowed) {
    const Ints word = j < 32 ? s.low : s.high;
    nearer = nearer & -(word >> (j & 31) & 1);
  }
  s.best = nearer ? d : s.best;
  s.value = nearer ? v : s.value;
  s.code = nearer ? (Ints{} + j) : s.code;
}

template <typename C, bool kFactor, bool kAllowed>
inline __attribute__((always_inline)) void begin_search(Search<C>& s, const C* x, const C* factor,
                                                        const int32_t* low, const int32_t* high,
                                                        Bounds<C> b) {
  using Floats = typename Wide<C>::Floats;
  constexpr int kLanes = kWideLanes<C>;
  memcpy(&s.x, x, sizeof(s.x));
  Floats least = b.low - Floats{}, most = b.high - Floats{};
  if constexpr (kFactor) {
    memcpy(&s.factor, factor, sizeof(s.factor));
    const Floats one = least * s.factor, other = most * s.factor;
    least = s.factor < 0 ? other : one;
    most = s.factor < 0 ? one : other;
  }
  s.x = s.x < least ? least : (s.x > most ? most : s.x);
  s.low = s.high = typename Wide<C>::Ints{};
  if constexpr (kAllowed) {
    // The words of the masks, as wide as what is computed with.
    typename Wide<C>::Int words[2][kLanes];
    for (int i = 0; i < kLanes; ++i) {
      words[0][i] = low[i];
      words[1][i] = high[i];
    }
    memcpy(&s.low, words[0], sizeof(s.low));
    memcpy(&s.high, words[1], sizeof(s.high));
  }
  s.best = static_cast<C>(bit_cast<float>(0x7F800000u)) - Floats{};
  s.value = not_a_number<C>() - Floats{};
  s.code = typename Wide<C>::Ints{};
}

template <typename C>
inline __attribute__((always_inline)) void end_search(const Search<C>& s, C* value, int32_t* code) {
  constexpr int kLanes = kWideLanes<C>;
  memcpy(value, &s.value, sizeof(s.value));
  typename Wide<C>::Int codes[kLanes];
  memcpy(codes, &s.code, sizeof(s.code));
  for (int i = 0; i < kLanes; ++i) code[i] = static_cast<int32_t>(codes[i]);
}

// `factor`, and `low` and `high` with the masks' words, are looked at where the flags say so.
template <typename C, bool kFactor, bool kAllowed>
inline void search_block(const C* x, const C* levels, int count, Bounds<C> b, const C* factor,
                         const int32_t* low, const int32_t* high, C* value, int32_t* code) {
  if (b.low != b.low) {
    for (int i = 0; i < kBlock; ++i) {
      value[i] = b.low;
      code[i] = 0;
    }
    return;
  }
  constexpr int kLanes = kWideLanes<C>;
  // Two at a time: with one, each comparison would wait for the one before.
  for (int i = 0; i < kBlock; i += 2 * kLanes) {
    const int k = i + kLanes;
    Search<C> s, t;
    begin_search<C, kFactor, kAllowed>(s, x + i, factor + (kFactor ? i : 0),
                                       low + (kAllowed ? i : 0), high + (kAllowed ? i : 0), b);
    begin_search<C, kFactor, kAllowed>(t, x + k, factor + (kFactor ? k : 0),
                                       low + (kAllowed ? k : 0), high + (kAllowed ? k : 0), b);
    for (int j = 0; j < count; ++j) {
      const typename Wide<C>::Floats level = levels[j] - typename Wide<C>::Floats{};
      compare<C, kFactor, kAllowed>(s, level, j);
      compare<C, kFactor, kAllowed>(t, level, j);
    }
    end_search(s, value + i, code + i);
    end_search(t, value + k, code + k);
  }
}

template <typename C>
inline __attribute__((always_inline)) void begin_row(Search<C>& s, const C* x, const C* table) {
  begin_search<C, false, false>(s, x, nullptr, nullptr, nullptr, {C(0), C(0)});
  typename Wide<C>::Floats in, least, most;
  memcpy(&in, x, sizeof(in));
  memcpy(&least, table, sizeof(least));
  memcpy(&most, table + kBlock, sizeof(most));
  s.x = in < least ? least : (in > most ? most : in);
}

// Every element with levels of its own: rows of kBlock in `table`, the least levels, the largest
// ones, and then each of the `count` in turn.
template <typename C>
inline void search_table(const C* x, const C* table, int count, C* value, int32_t* code) {
  using Floats = typename Wide<C>::Floats;
  constexpr int kLanes = kWideLanes<C>;
  for (int i = 0; i < kBlock; i += 2 * kLanes) {
    Search<C> s, t;
    begin_row(s, x + i, table + i);
    begin_row(t, x + i + kLanes, table + i + kLanes);
    const C* row = table + 2 * kBlock + i;
    for (int j = 0; j < count; ++j, row += kBlock) {
      Floats one, other;
      memcpy(&one, row, sizeof(one));
      memcpy(&other, row + kLanes, sizeof(other));
      compare<C, false, false>(s, one, j);
      compare<C, false, false>(t, other, j);
    }
    end_search(s, value + i, code + i);
    end_search(t, value + i + kLanes, code + i + kLanes);
  }
}

// The two words of the masks of n elements of a block. Says whether one of them allows nothing.
inline bool load_allowed(const Allowed& a, const Segments& s, int64_t g, int64_t k, int n,
                         int levels, int32_t* low, int32_t* high) {
  const uint64_t all = levels >= 64 ? ~uint64_t{0} : (uint64_t{1} << levels) - 1;
  const auto low_all = static_cast<int32_t>(all), high_all = static_cast<int32_t>(all >> 32);
  if (a.wide) {
    int64_t masks[kBlock];
    gather_block(s, static_cast<const int64_t*>(a.data), g, k, n, masks);
    for (int i = 0; i < kBlock; ++i) {
      low[i] = static_cast<int32_t>(masks[i]);
      high[i] = static_cast<int32_t>(masks[i] >> 32);
    }
  } else {
    gather_block(s, static_cast<const int32_t*>(a.data), g, k, n, low);
    for (int i = 0; i < kBlock; ++i) high[i] = 0;
  }
  int refused = 0;
  for (int i = 0; i < n; ++i) refused |= ((low[i] & low_all) | (high[i] & high_all)) == 0 ? 1 : 0;
  return refused != 0;
}

inline void note(int32_t* flag) {
  if (flag != nullptr) __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
}

}  // namespace
}  // namespace regkern::quantize
