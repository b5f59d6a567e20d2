#pragma once

#include <type_traits>

#include "core/random_bits.h"
#include "core/vec.h"
#include "quantize/rounding.h"

// Thresholds of stochastic rounding by the block, for CPU kernels.

namespace regkern::quantize {
namespace {

// What `bits` has for kRandomBlock elements, in the form that their rounding takes.
template <int K, typename C>
inline void to_thresholds(const uint32_t* bits, C* out) {
  constexpr int kUsed = K == 32 ? 23 : K;
#pragma omp simd
  for (int i = 0; i < kRandomBlock; ++i) out[i] = stochastic_threshold<C>(bits[i], kUsed);
}
template <int K>
inline void to_carries(const uint32_t* bits, int dropped, uint32_t* out) {
  constexpr int kUsed = K == 32 ? 23 : K;
  // Which way is shifted is decided outside of the loop: SSE2 has no vectors for both ways in one.
  if (dropped > kUsed) {
#pragma omp simd
    for (int i = 0; i < kRandomBlock; ++i) out[i] = stochastic_carry(bits[i], kUsed, dropped);
  } else {
#pragma omp simd
    for (int i = 0; i < kRandomBlock; ++i) out[i] = stochastic_carry(bits[i], kUsed, dropped);
  }
}

template <typename F>
inline void draw_blocks(int random_bits, Seed seed, int64_t first, int n, F&& convert) {
  alignas(64) uint32_t bits[kRandomBlock];
  for (int i = 0; i < n; i += kRandomBlock) {
    const auto e = static_cast<uint64_t>(first + i);
    if (random_bits == 16) {
      random_bits_block<16>(seed, Stream::rounding, e, bits);
      convert(std::integral_constant<int, 16>{}, bits, i);
    } else if (random_bits == 8) {
      random_bits_block<8>(seed, Stream::rounding, e, bits);
      convert(std::integral_constant<int, 8>{}, bits, i);
    } else {
      random_bits_block<32>(seed, Stream::rounding, e, bits);
      convert(std::integral_constant<int, 32>{}, bits, i);
    }
  }
}

// The thresholds of n elements from `first`, a multiple of kRandomBlock; n is rounded up to one.
template <typename C>
inline void draw_thresholds(const Rounder& r, Seed seed, int64_t first, int n, C* out) {
  draw_blocks(r.random_bits, seed, first, n, [&](auto k, const uint32_t* bits, int i) {
    to_thresholds<decltype(k)::value>(bits, out + i);
  });
}
inline void draw_carries(const Rounder& r, Seed seed, int64_t first, int n, uint32_t* out) {
  draw_blocks(r.random_bits, seed, first, n, [&](auto k, const uint32_t* bits, int i) {
    to_carries<decltype(k)::value>(bits, 23 - r.grid.mantissa_bits, out + i);
  });
}

}  // namespace
}  // namespace regkern::quantize
