#pragma once

#include <cstdint>

#include "core/macros.h"

namespace regkern {

// What an op draws from: a key and an offset, both int64 in the seed tensor.
struct Seed {
  uint64_t key;
  uint64_t offset;
};

REGKERN_HD Seed load_seed(const int64_t* seed) {
  return {static_cast<uint64_t>(seed[0]), static_cast<uint64_t>(seed[1])};
}

struct Words {
  uint32_t w[4];
};

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
REGKERN_HD Words philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                            uint32_t k1) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// One op may draw for several purposes; a stream keeps them apart. The counter is (index, stream,
// offset), so a draw depends on what it is for and never on the thread that makes it.
enum class Stream : uint32_t {
  mask = 0,
  noise = 1,
  pairing = 2,
  box = 3,
  weight = 4,
  choice = 5,
  rounding = 6,
  fault = 7
};

REGKERN_HD Words philox(Seed seed, Stream stream, uint64_t index) {
  return philox4x32(static_cast<uint32_t>(index),
                    static_cast<uint32_t>(index >> 32) | (static_cast<uint32_t>(stream) << 24),
                    static_cast<uint32_t>(seed.offset), static_cast<uint32_t>(seed.offset >> 32),
                    static_cast<uint32_t>(seed.key), static_cast<uint32_t>(seed.key >> 32));
}

// A number that takes several draws (rejection) owns 2^16 of them.
constexpr uint64_t kDrawsPerItem = 1u << 16;

// The words of item `item`, one after the other.
class Draws {
 public:
  REGKERN_HD Draws(Seed seed, Stream stream, uint64_t item)
      : seed_(seed), stream_(stream), index_(item * kDrawsPerItem), used_(4) {}

  REGKERN_HD uint32_t next() {
    if (used_ == 4) {
      words_ = philox(seed_, stream_, index_++);
      used_ = 0;
    }
    // A constant index keeps the words in registers on the GPU.
    const int i = used_++;
    return i == 0 ? words_.w[0] : i == 1 ? words_.w[1] : i == 2 ? words_.w[2] : words_.w[3];
  }

  REGKERN_HD uint64_t next64() {
    const uint64_t low = next();
    return low | static_cast<uint64_t>(next()) << 32;
  }

  // Uniform in (0, 1), never at an end.
  REGKERN_HD double uniform() {
    return (static_cast<double>(next64() >> 12) + 0.5) * (1.0 / 4503599627370496.0);
  }

  // Uniform in {0, …, n − 1}; the probabilities differ from 1/n by at most 2⁻³².
  REGKERN_HD uint32_t below(uint32_t n) {
    return static_cast<uint32_t>(static_cast<uint64_t>(next()) * n >> 32);
  }

 private:
  Seed seed_;
  Stream stream_;
  uint64_t index_;
  int used_;
  Words words_{};
};

}  // namespace regkern
