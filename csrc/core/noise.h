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

// A cosine and a sine half of a normal pair from one word (Box and Muller): 16 bits for the radius,
// 16 for the angle, of which 13 place it in an octant and 3 choose that.
REGKERN_HD void normal_pair_of(uint32_t word, float u, float* n0, float* n1) {
  const float radius = regkern::sqrt(-2.0f * regkern::log(u));
  const auto part = static_cast<int32_t>((word >> 16) & 0x1FFFu);
  const float a = (static_cast<float>(part) + 0.5f) * (0.785398163f / 8192.0f), z = a * a;
  float s = 1.0f / 362880;
  s = s * z - 1.0f / 5040;
  s = s * z + 1.0f / 120;
  s = s * z - 1.0f / 6;
  s = a + a * z * s;
  float c = 1.0f / 40320;
  c = c * z - 1.0f / 720;
  c = c * z + 1.0f / 24;
  c = c * z - 0.5f;
  c = c * z + 1.0f;
  const uint32_t x = bit_cast<uint32_t>(c), y = bit_cast<uint32_t>(s);
  const uint32_t swapped = (x ^ y) & (0u - ((word >> 29) & 1u));
  *n0 = radius * bit_cast<float>((x ^ swapped) | ((word << 1) & 0x80000000u));
  *n1 = radius * bit_cast<float>((y ^ swapped) | (word & 0x80000000u));
}

// The radius' uniform number. Beyond four standard deviations, in one pair of 4096, 16 bits are too
// few, and 32 more are drawn: the largest value is √(2 · 49 ln 2) = 8.2.
constexpr uint32_t kCoarseTail = 16;
REGKERN_HD float radius_uniform(uint32_t word) {
  return (static_cast<float>(static_cast<int32_t>(word & 0xFFFFu)) + 0.5f) * (1.0f / 65536.0f);
}
REGKERN_HD float tail_uniform(Seed seed, uint64_t pair, uint32_t word) {
  const uint32_t more = philox(seed, Stream::choice, pair).w[0];
  return (static_cast<float>(word & 0xFFFFu) +
          (static_cast<float>(static_cast<int32_t>(more >> 8)) + 0.5f) * (1.0f / 16777216.0f)) *
         (1.0f / 65536.0f);
}

// Word w of counter 16 c + i has the normals of the elements 128 c + 32 w + i and … + 16, as 16
// bits of random_bits.h: blocks of neighbours need no transposition.
constexpr int64_t kNormalChunk = 128;
REGKERN_HD void normals_apart(Seed seed, uint64_t counter, const Words& words, float out[8]) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int w = 0; w < 4; ++w) {
    const uint32_t word = words.w[w];
    float u = radius_uniform(word);
    if ((word & 0xFFFFu) < kCoarseTail)
      u = tail_uniform(seed, counter / 16 * 64 + static_cast<uint64_t>(w) * 16 + counter % 16,
                       word);
    normal_pair_of(word, u, out + 2 * w, out + 2 * w + 1);
  }
}

// Uniform in (−1, 1), symmetric.
REGKERN_HD float signed_uniform(uint32_t word) {
  return (static_cast<float>(static_cast<int32_t>(word >> 8)) - 8388607.5f) * (1.0f / 8388608.0f);
}

#if !defined(__CUDACC__) && !defined(REGKERN_EMULATOR)
namespace {

// Of the elements first … first + kNormalChunk − 1; first is a multiple of kNormalChunk.
inline void normals_apart_block(Seed seed, uint64_t first, float out[kNormalChunk]) {
  alignas(64) uint32_t words[4][16];
  philox16(seed, Stream::noise, first / 8, words);
  for (int w = 0; w < 4; ++w) {
    const uint32_t* const word = words[w];
    float *c = out + 32 * w, *s = c + 16;
    int32_t tails = 0;
#pragma omp simd reduction(| : tails)
    for (int i = 0; i < 16; ++i) {
      tails |= static_cast<int32_t>(word[i] & 0xFFFFu) < static_cast<int32_t>(kCoarseTail);
      normal_pair_of(word[i], radius_uniform(word[i]), c + i, s + i);
    }
    if (tails == 0) continue;
    for (int i = 0; i < 16; ++i)
      if ((word[i] & 0xFFFFu) < kCoarseTail)
        normal_pair_of(word[i],
                       tail_uniform(seed, first / 2 + static_cast<uint64_t>(16 * w + i), word[i]),
                       c + i, s + i);
  }
}

// Of the elements first … first + kBlock − 1, 32 bits each; first is a multiple of kBlock.
inline void signed_uniform_block(Seed seed, uint64_t first, float out[kBlock]) {
  alignas(64) uint32_t words[4][16];
  philox16(seed, Stream::noise, first / 4, words);
  const uint32_t* w = words[0];
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) out[i] = signed_uniform(w[i]);
}

}  // namespace
#endif

}  // namespace regkern
