#pragma once

#include <cstdint>

#include "core/vec.h"
#include "masks/dropout.h"

// Factors of a mask that is drawn, by blocks of the generator. For CPU kernels.

namespace regkern::masks {
namespace {

constexpr int kWide = static_cast<int>(kDropoutBlock);
static_assert(kWide == kRandomBlock && kWide == 2 * kBlock);

// One level for all elements of a block, or one for each.
template <typename C>
struct OneLevel {
  DropLevel level;
  C scale;
  int32_t upper(int) const { return static_cast<int32_t>(level.upper); }
  C factor(int) const { return scale; }
  DropLevel whole(int) const { return level; }
};
template <typename C>
struct EachLevel {
  const float* p;
  const int32_t* uppers;
  const C* scales;
  int32_t upper(int i) const { return uppers[i]; }
  C factor(int i) const { return scales[i]; }
  DropLevel whole(int i) const { return drop_level(static_cast<double>(p[i])); }
};

template <typename C>
inline void levels_of(const float p[kWide], bool scaled, int32_t uppers[kWide], C scales[kWide]) {
#pragma omp simd
  for (int i = 0; i < kWide; ++i) {
    const float inside = choose(p[i] > 0.0f, choose(p[i] <= 1.0f, p[i], 0.0f), 0.0f);
    uppers[i] = static_cast<int32_t>(inside * 65536.0f);
  }
  const C none = static_cast<C>(__builtin_nanf(""));
#pragma omp simd
  for (int i = 0; i < kWide; ++i) {
    const C q = static_cast<C>(p[i]), inverse = C(1) / (C(1) - q);
    const C inside = choose(q < C(1), scaled ? inverse : C(1), C(1));
    scales[i] = choose(q >= C(0), choose(q <= C(1), inside, none), none);
  }
}

// factors[i] ← the scale of an element that is kept, or `dropped`.
template <typename C, typename L>
inline void factors_of(Seed seed, uint64_t element, const L& levels, C factors[kWide],
                       C dropped = C(0)) {
  alignas(64) uint32_t words[4][16];
  philox16(seed, Stream::mask, element / 8, words);
  int32_t ties = 0;
  for (int w = 0; w < 4; ++w) {
    const int low = 32 * w, high = low + 16;
#pragma omp simd reduction(| : ties)
    for (int i = 0; i < 16; ++i) {
      const auto u = static_cast<int32_t>(words[w][i] & 0xFFFFu), at = levels.upper(low + i);
      ties |= u == at;
      factors[low + i] = choose(u >= at, levels.factor(low + i), dropped);
    }
#pragma omp simd reduction(| : ties)
    for (int i = 0; i < 16; ++i) {
      const auto u = static_cast<int32_t>(words[w][i] >> 16), at = levels.upper(high + i);
      ties |= u == at;
      factors[high + i] = choose(u >= at, levels.factor(high + i), dropped);
    }
  }
  if (ties == 0) return;
  for (int e = 0; e < kWide; ++e) {
    const uint32_t word = words[e / 32][e % 16];
    const uint32_t bits = e % 32 < 16 ? word & 0xFFFFu : word >> 16;
    const DropLevel level = levels.whole(e);
    if (bits == level.upper && !keeps_tie(seed, element + static_cast<uint64_t>(e), level))
      factors[e] = dropped;
  }
}

template <typename T, typename C>
inline void store_wide(const C in[kWide], int64_t n, bool past, T* out) {
  if (n < kWide) return store_elements(in, n, out);
  alignas(64) T block[kBlock];
  for (int i = 0; i < kWide; i += kBlock) {
    store_block<T>(in + i, past ? block : out + i);
    if (past) stream_block(block, out + i);
  }
}

}  // namespace
}  // namespace regkern::masks
