#pragma once

#include "core/vec.h"
#include "quantize/faults.h"

// Drawn masks of many elements, for CPU kernels.

namespace regkern::quantize {
namespace {

// The bytes of the masks' stream from byte `first` on, 16 of them.
inline void fault_bytes(Seed seed, const FaultRate& rate, uint64_t first, uint8_t sa0[16],
                        uint8_t sa1[16]) {
  uint32_t words[4][16];
  philox16(seed, Stream::fault, first, words);
  const auto one = static_cast<uint32_t>(rate.one >> 32);
  const auto any = static_cast<uint32_t>(rate.any >> 32);
  uint32_t ones[16] = {}, zeros[16] = {}, open[16] = {};
  for (int k = 0; k < 8; ++k) {
    const uint32_t* w = words[k / 2];
    const int shift = k % 2 * 16;
#pragma omp simd
    for (int i = 0; i < 16; ++i) {
      const uint32_t front = (w[i] >> shift) & 0xFFFFu;
      const uint32_t is_one = front < one ? 1u : 0u, is_any = front < any ? 1u : 0u;
      ones[i] |= is_one << k;
      zeros[i] |= (is_any & ~is_one) << k;
      open[i] |= front == one || front == any ? 1u : 0u;
    }
  }
  uint32_t some = 0;
  for (int i = 0; i < 16; ++i) some |= open[i];
  if (some != 0) {
    for (int i = 0; i < 16; ++i) {
      if (open[i] == 0) continue;
      const Faults f = fault_byte(seed, rate, first + static_cast<uint64_t>(i),
                                  {{words[0][i], words[1][i], words[2][i], words[3][i]}});
      ones[i] = static_cast<uint32_t>(f.sa1);
      zeros[i] = static_cast<uint32_t>(f.sa0);
    }
  }
  for (int i = 0; i < 16; ++i) {
    sa0[i] = static_cast<uint8_t>(zeros[i]);
    sa1[i] = static_cast<uint8_t>(ones[i]);
  }
}

// Masks of up to 16 bits of the elements first … first + kBlock − 1; first is a multiple of kBlock.
inline void fault_block(Seed seed, const FaultRate& rate, uint64_t first, int bits,
                        uint32_t sa0[kBlock], uint32_t sa1[kBlock]) {
  const int slots = fault_slots(bits);
  const uint32_t keep = (1u << bits) - 1u;
  uint8_t zeros[kBlock * 2], ones[kBlock * 2];
  const int bytes = kBlock * slots / 8;
  for (int i = 0; i < bytes; i += 16)
    fault_bytes(seed, rate, first * static_cast<uint64_t>(slots) / 8 + static_cast<uint64_t>(i),
                zeros + i, ones + i);
  if (slots == 4) {
    for (int i = 0; i < kBlock; ++i) {
      sa0[i] = zeros[i / 2] >> (i % 2 * 4) & keep;
      sa1[i] = ones[i / 2] >> (i % 2 * 4) & keep;
    }
  } else if (slots == 8) {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      sa0[i] = zeros[i] & keep;
      sa1[i] = ones[i] & keep;
    }
  } else {
    for (int i = 0; i < kBlock; ++i) {
      sa0[i] = (zeros[2 * i] | static_cast<uint32_t>(zeros[2 * i + 1]) << 8) & keep;
      sa1[i] = (ones[2 * i] | static_cast<uint32_t>(ones[2 * i + 1]) << 8) & keep;
    }
  }
}

}  // namespace
}  // namespace regkern::quantize
