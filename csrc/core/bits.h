#pragma once

#include <cstdint>

#include "core/macros.h"

// Bit-packed tensors: bit i % 32 of word i / 32 is element i in row-major order, and the bits past
// the last element are zero.

namespace regkern {

REGKERN_HD int64_t bit_words(int64_t bits) { return (bits + 31) / 32; }

REGKERN_HD int popcount(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __popc(x);
#else
  return __builtin_popcount(x);
#endif
}

// The first `count` bits, 0 <= count <= 32.
REGKERN_HD uint32_t low_bits(int64_t count) {
  return count >= 32 ? 0xFFFFFFFFu : (1u << count) - 1u;
}

// 32 bits from position `bit`. Words past `words` read as zero.
REGKERN_HD uint32_t load_bits(const uint32_t* data, int64_t words, int64_t bit) {
  const int64_t word = bit >> 5;
  const int shift = static_cast<int>(bit & 31);
  const uint32_t low = word < words ? data[word] : 0u;
  if (shift == 0) return low;
  const uint32_t high = word + 1 < words ? data[word + 1] : 0u;
  return (low >> shift) | (high << (32 - shift));
}

}  // namespace regkern
