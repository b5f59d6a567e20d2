#pragma once

#include <type_traits>

#include "core/random_bits.h"
#include "core/vec.h"
#include "quantize/stochastic_bfloat16.h"

// CPU kernels round kRandomBlock elements at a time, straight from the words of sixteen counters:
// element 32 w + i reads the lower half of word w of counter i, element 32 w + 16 + i the upper.

namespace regkern::quantize {
namespace {

// Two loops: in one, the halves and the words would share a vector length, the shorter one.
template <typename T>
inline void pack_bits(const uint32_t bits[kRandomBlock], T* out) {
#pragma omp simd
  for (int i = 0; i < kRandomBlock; ++i) out[i].bits = static_cast<uint16_t>(bits[i]);
}

template <typename T, typename C>
inline void round_block(const C* in, const uint32_t words[4][16], uint32_t bits[kRandomBlock]) {
  for (int w = 0; w < 4; ++w) {
    const C* low = in + 32 * w;
#pragma omp simd
    for (int i = 0; i < 16; ++i)
      bits[32 * w + i] = stochastic_bits(T{}, low[i], words[w][i] & 0xFFFFu);
    const C* high = low + 16;
#pragma omp simd
    for (int i = 0; i < 16; ++i)
      bits[32 * w + 16 + i] = stochastic_bits(T{}, high[i], words[w][i] >> 16);
  }
}

// Most blocks of bfloat16 have nothing that could become infinite, or is: an addition then. False
// where they have, and the bits are to be had from round_block.
inline bool add_block(const float* in, const uint32_t words[4][16], uint32_t bits[kRandomBlock]) {
  int32_t largest = 0;
  for (int w = 0; w < 4; ++w) {
    const float* low = in + 32 * w;
    const float* high = low + 16;
#pragma omp simd reduction(max : largest)
    for (int i = 0; i < 16; ++i) {
      const uint32_t u = bit_cast<uint32_t>(low[i]), v = bit_cast<uint32_t>(high[i]);
      const auto m = static_cast<int32_t>(u & 0x7FFFFFFFu),
                 n = static_cast<int32_t>(v & 0x7FFFFFFFu);
      const int32_t more = m > n ? m : n;
      largest = more > largest ? more : largest;
      bits[32 * w + i] = (u + (~words[w][i] & 0xFFFFu)) >> 16;
      bits[32 * w + 16 + i] = (v + (~words[w][i] >> 16)) >> 16;
    }
  }
  return largest < 0x7F7F0000;
}

// element is a multiple of kRandomBlock.
template <typename T, typename C>
inline void store_stochastic(Seed seed, uint64_t element, const C* in, T* out) {
  alignas(64) uint32_t words[4][16];
  alignas(64) uint32_t bits[kRandomBlock];
  philox16(seed, Stream::rounding, element / 8, words);
  bool done = false;
  if constexpr (std::is_same_v<T, bfloat16> && std::is_same_v<C, float>)
    done = add_block(in, words, bits);
  if (!done) round_block<T>(in, words, bits);
  pack_bits(bits, out);
}

}  // namespace
}  // namespace regkern::quantize
