#pragma once

#include "core/vec.h"
#include "quantize/random_bits.h"
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

// element is a multiple of kRandomBlock.
template <typename T, typename C>
inline void store_stochastic(Seed seed, uint64_t element, const C* in, T* out) {
  alignas(64) uint32_t words[4][16];
  alignas(64) uint32_t bits[kRandomBlock];
  philox16(seed, Stream::rounding, element / 8, words);
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
  pack_bits(bits, out);
}

}  // namespace
}  // namespace regkern::quantize
