#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/math.h"
#include "core/philox.h"

#if !defined(__CUDACC__) && !defined(REGKERN_EMULATOR)
#include "core/vec.h"
#endif

// One 32-bit word for each item, a block or an element: word i mod 4 of counter i / 4, as the
// normals are numbered. Four neighbours share a call of the generator.

namespace regkern::quantize {

REGKERN_HD uint32_t word_at(const Words& words, int i) {
  // A constant index keeps the words in registers on the GPU.
  return i == 0 ? words.w[0] : i == 1 ? words.w[1] : i == 2 ? words.w[2] : words.w[3];
}

REGKERN_HD uint32_t item_word(Seed seed, Stream stream, uint64_t item) {
  return word_at(philox(seed, stream, item / 4), static_cast<int>(item % 4));
}

// A Bernoulli(p) variable is 1 where its word is below p · 2³², which does not fit in 32 bits for
// p = 1: hence the largest word that gives 1, and whether there is one.
struct Threshold {
  uint32_t last;
  bool any;
  bool valid;  // p is in [0, 1]
};

REGKERN_HD Threshold threshold_of(double p) {
  Threshold t{0, false, p >= 0.0 && p <= 1.0};
  if (!t.valid) return t;
  const auto below = static_cast<uint64_t>(p * 4294967296.0 + 0.5);
  t.any = below > 0;
  t.last = static_cast<uint32_t>(below - (t.any ? 1 : 0));
  return t;
}

REGKERN_HD bool is_one(const Threshold& t, uint32_t word) { return t.any && word <= t.last; }

// U − ½ for U uniform over the middles of 2²⁴ intervals. Exact in float, and symmetric about 0.
REGKERN_HD float centred_uniform(uint32_t word) {
  return (static_cast<float>(static_cast<int32_t>(word >> 8) - (1 << 23)) + 0.5f) *
         (1.0f / 16777216.0f);
}

#if !defined(__CUDACC__) && !defined(REGKERN_EMULATOR)
namespace {

// The words of the items first … first + kBlock − 1; first is a multiple of 4.
inline void item_words_block(Seed seed, Stream stream, uint64_t first, uint32_t out[kBlock]) {
  static_assert(kBlock == 64);
  alignas(64) uint32_t words[4][16];
  philox16(seed, stream, first / 4, words);
  for (int i = 0; i < 16; ++i)
    for (int w = 0; w < 4; ++w) out[4 * i + w] = words[w][i];
}

}  // namespace
#endif

}  // namespace regkern::quantize
