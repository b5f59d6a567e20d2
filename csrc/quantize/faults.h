#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/philox.h"

// Memory cells that are stuck: bit k of a code reads 0 where bit k of sa0 is set, whatever was
// written, and else 1 where that of sa1 is:
//
//     faulty = (code | sa1) & ~sa0
//
// Drawn masks: bit k of element e has draw i = e S + k of Stream::fault, with S slots per element.
// Its 48-bit uniform U has half i mod 8 of counter i / 8 in front, and behind it word i mod 4 of
// counter 2⁵⁵ + i / 4, which is only looked at where the front does not decide. The bit is stuck at
// 1 if U < T₁ and at 0 if T₁ ≤ U < T, with T = rate 2⁴⁸ and T₁ = rate p_sa1 2⁴⁸.

namespace regkern::quantize {

// A power of two, so that the masks of all elements together are one little-endian stream of bits,
// a byte for each counter.
REGKERN_HD int fault_slots(int bits) {
  return bits <= 4 ? 4 : bits <= 8 ? 8 : bits <= 16 ? 16 : bits <= 32 ? 32 : 64;
}

struct FaultRate {
  uint64_t one, any;  // T₁ and T
};

inline FaultRate fault_rate(double rate, double p_sa1) {
  constexpr double kScale = 281474976710656.0;  // 2⁴⁸
  return {static_cast<uint64_t>(rate * p_sa1 * kScale + 0.5),
          static_cast<uint64_t>(rate * kScale + 0.5)};
}

struct Faults {
  uint64_t sa0, sa1;
};

REGKERN_HD uint32_t half_of(const Words& words, int i) {
  const uint32_t w = i < 2 ? words.w[0] : i < 4 ? words.w[1] : i < 6 ? words.w[2] : words.w[3];
  return (w >> (i % 2 * 16)) & 0xFFFFu;
}

REGKERN_HD uint32_t fault_tail(Seed seed, uint64_t draw) {
  const Words words = philox(seed, Stream::fault, (uint64_t{1} << 55) + draw / 4);
  const uint64_t i = draw % 4;
  return i == 0 ? words.w[0] : i == 1 ? words.w[1] : i == 2 ? words.w[2] : words.w[3];
}

// The eight bits of a counter.
REGKERN_HD Faults fault_byte(Seed seed, const FaultRate& rate, uint64_t counter,
                             const Words& words) {
  const auto one = static_cast<uint32_t>(rate.one >> 32);
  const auto any = static_cast<uint32_t>(rate.any >> 32);
  Faults f{0, 0};
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 0; i < 8; ++i) {
    const uint32_t front = half_of(words, i);
    bool is_one = front < one, is_any = front < any;
    if (front == one || front == any) {
      const uint64_t u = static_cast<uint64_t>(front) << 32 |
                         fault_tail(seed, counter * 8 + static_cast<uint64_t>(i));
      is_one = u < rate.one;
      is_any = u < rate.any;
    }
    f.sa1 |= static_cast<uint64_t>(is_one) << i;
    f.sa0 |= static_cast<uint64_t>(is_any && !is_one) << i;
  }
  return f;
}

// The masks of an element; the bits from `bits` on are zero.
REGKERN_HD Faults faults_of(Seed seed, const FaultRate& rate, uint64_t element, int bits) {
  const auto slots = static_cast<uint64_t>(fault_slots(bits));
  const uint64_t keep = bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
  Faults f{0, 0};
  const uint64_t bytes = slots < 8 ? 1 : slots / 8;
  for (uint64_t i = 0; i < bytes; ++i) {
    const uint64_t counter = element * slots / 8 + i;
    const Faults byte = fault_byte(seed, rate, counter, philox(seed, Stream::fault, counter));
    const uint64_t shift = slots < 8 ? element % 2 * 4 : 0;
    f.sa0 |= byte.sa0 >> shift << (8 * i);
    f.sa1 |= byte.sa1 >> shift << (8 * i);
  }
  return {f.sa0 & keep, f.sa1 & keep};
}

struct StuckAtArgs {
  int64_t bytes;
  const void* code;
  const void* sa0;
  const void* sa1;
  void* out;
};

struct StuckAtMasksArgs {
  int64_t numel;
  int itemsize;  // 1, 2, 4 or 8 bytes
  int bits;
  FaultRate rate;
  const int64_t* seed;
  void* sa0;
  void* sa1;
};

// Quantize to `bits`-bit two's complement, read the faulty code back, dequantize:
//
//     q = clamp(round(w / s) + z, −2^(bits−1), 2^(bits−1) − 1),   y = (faulty(q) − z) s
//
// with round to nearest, ties to even, and w / s as w (1/s). A scale of 0 gives 0.
struct InjectFaultsArgs {
  Dtype dtype;
  int64_t numel, inner, channels;  // element e has channel e / inner mod channels
  int bits;
  const void* w;
  const void* scale;       // (channels)
  const void* zero_point;  // (channels), whole numbers
  bool masks_wide;         // int32, else uint8
  const void* sa0;         // null: drawn
  const void* sa1;
  FaultRate rate;
  const int64_t* seed;
  void* y;
};

// To nearest, ties to even, as the adder does, for |x| ≤ 2²². NaN stays.
REGKERN_HD float nearest_integer(float x) { return (x + 12582912.0f) - 12582912.0f; }
REGKERN_HD double nearest_integer(double x) {
  return (x + 6755399441055744.0) - 6755399441055744.0;
}

// The faulty code of w, as a number; z is what a NaN is moved to, and y = NaN is made by the
// caller.
template <typename C>
REGKERN_HD C faulty_value(C w, C scale, C inverse, C zero, int bits, uint32_t sa0, uint32_t sa1) {
  const C top = static_cast<C>(1 << (bits - 1));
  C t = w * inverse;
  // Far outside, so that rounding and the zero point do not matter.
  t = t < C(-1048576) ? C(-1048576) : (t > C(1048576) ? C(1048576) : t);
  C q = nearest_integer(t) + zero;
  q = q < -top ? -top : (q > top - C(1) ? top - C(1) : q);
  const bool is_number = q == q;
  const auto code = static_cast<uint32_t>(static_cast<int32_t>(is_number ? q : C(0)));
  const uint32_t faulty = (code | sa1) & ~sa0;
  // The sign bit is bit − 1: what stands above it follows it.
  const int shift = 32 - bits;
  const int32_t read = static_cast<int32_t>(faulty << shift) >> shift;
  const C value = (static_cast<C>(read) - zero) * scale;
  return is_number ? value : q;
}

template <typename C>
REGKERN_HD C inverse_of(C scale) {
  return scale == C(0) ? C(0) : C(1) / scale;
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(stuck_at, quantize::StuckAtArgs)
REGKERN_DECLARE_KERNEL(stuck_at_masks, quantize::StuckAtMasksArgs)
REGKERN_DECLARE_KERNEL(inject_faults, quantize::InjectFaultsArgs)
}  // namespace regkern
