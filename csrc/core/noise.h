#pragma once

#include "core/math.h"
#include "core/philox.h"
#include "core/random_bits.h"

namespace regkern {

// The standard normal of one element: word pair (e mod 4) / 2 of counter e / 4, its cosine half if
// e is even. vec.h makes the same numbers by the block.
REGKERN_HD float normal_of(Seed seed, uint64_t element) {
  const Words words = philox(seed, Stream::noise, element / 4);
  float c, s;
  if (element & 2)
    normal_pair(words.w[2], words.w[3], &c, &s);
  else
    normal_pair(words.w[0], words.w[1], &c, &s);
  return element & 1 ? s : c;
}

// Normals numbered as 32 bits of random_bits.h are: elements 64 c + i, … + 16, … + 32 and … + 48
// have the four of counter 16 c + i, so blocks of neighbours need no transposition.
REGKERN_HD void normals_apart(const Words& words, float out[4]) {
  normal_pair(words.w[0], words.w[1], out, out + 1);
  normal_pair(words.w[2], words.w[3], out + 2, out + 3);
}

// Uniform in (−1, 1), symmetric.
REGKERN_HD float signed_uniform(uint32_t word) {
  return (static_cast<float>(static_cast<int32_t>(word >> 8)) - 8388607.5f) * (1.0f / 8388608.0f);
}

#if !defined(__CUDACC__) && !defined(REGKERN_EMULATOR)
namespace {

// Of the elements first … first + kBlock − 1; first is a multiple of kBlock.
inline void normals_apart_block(Seed seed, Stream stream, uint64_t first, float out[kBlock]) {
  static_assert(kBlock == 64);
  alignas(64) uint32_t words[4][16];
  philox16(seed, stream, first / 4, words);
  for (int pair = 0; pair < 2; ++pair) {
    const uint32_t *u = words[2 * pair], *v = words[2 * pair + 1];
    float *c = out + 32 * pair, *s = c + 16;
#pragma omp simd
    for (int i = 0; i < 16; ++i) normal_pair(u[i], v[i], c + i, s + i);
  }
}

inline void signed_uniform_block(Seed seed, Stream stream, uint64_t first, float out[kBlock]) {
  alignas(64) uint32_t words[4][16];
  philox16(seed, stream, first / 4, words);
  const uint32_t* w = words[0];
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) out[i] = signed_uniform(w[i]);
}

}  // namespace
#endif

}  // namespace regkern
