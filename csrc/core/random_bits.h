#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/philox.h"

#if !defined(__CUDACC__) && !defined(REGKERN_EMULATOR)
#include "core/vec.h"
#endif

// The random bits of an element. A counter of Philox has 128 bits and serves 128 / K elements that
// stand 16 apart, so that sixteen counters side by side make 2048 / K neighbours without a
// transposition:
//
//     element e = chunk * (2048 / K) + j * 16 + i   reads bits [jK, jK + K) of counter 16 chunk +
//     i.

namespace regkern {

template <int K>
REGKERN_HD uint32_t random_bits_of(const Words& words, int j) {
  const int shift = j * K % 32;
  // A constant index keeps the words in registers on the GPU.
  const int i = j * K / 32;
  const uint32_t w = i == 0 ? words.w[0] : i == 1 ? words.w[1] : i == 2 ? words.w[2] : words.w[3];
  return K == 32 ? w : (w >> shift) & ((1u << (K % 32)) - 1u);
}

template <int K>
REGKERN_HD uint32_t random_bits(Seed seed, Stream stream, uint64_t element) {
  constexpr uint64_t kChunk = 2048 / K;
  const uint64_t within = element % kChunk;
  return random_bits_of<K>(philox(seed, stream, element / kChunk * 16 + within % 16),
                           static_cast<int>(within / 16));
}

#if !defined(__CUDACC__) && !defined(REGKERN_EMULATOR)
namespace {

constexpr int kRandomBlock = 128;  // a whole number of chunks, or half a chunk, whatever K

// The bits of the elements first … first + 127; first is a multiple of 128.
template <int K>
inline void random_bits_block(Seed seed, Stream stream, uint64_t first,
                              uint32_t out[kRandomBlock]) {
  constexpr uint64_t kChunk = 2048 / K;
  constexpr int kPerCall = kRandomBlock / 16 < 128 / K ? kRandomBlock / 16 : 128 / K;
  alignas(64) uint32_t words[4][16];
  for (int done = 0; done < kRandomBlock; done += 16 * kPerCall) {
    const uint64_t e = first + static_cast<uint64_t>(done);
    philox16(seed, stream, e / kChunk * 16, words);
    const int begin = static_cast<int>(e % kChunk / 16);
    for (int j = 0; j < kPerCall; ++j) {
      const uint32_t* w = words[(begin + j) * K / 32];
      const int shift = (begin + j) * K % 32;
#pragma omp simd
      for (int i = 0; i < 16; ++i)
        out[done + 16 * j + i] = K == 32 ? w[i] : (w[i] >> shift) & ((1u << (K % 32)) - 1u);
    }
  }
}

}  // namespace
#endif

}  // namespace regkern
