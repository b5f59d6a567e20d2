#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/math.h"

namespace regkern {

// Storage types. Kernels compute in compute_t<T>: float for all but double.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

enum class Dtype { float32, float64, bfloat16, float16, uint8 };

template <typename T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <typename T>
using compute_t = typename Compute<T>::type;

REGKERN_HD float widen(bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// A half is a float with its exponent 112 too small; a product with 2¹¹² mends normal numbers and
// subnormals alike, and is exact.
REGKERN_HD float widen(float16 x) {
#if defined(__CUDA_ARCH__)
  // Not cuda_fp16.h, 5000 lines for two instructions.
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7FFFu) << 13;
  const float scaled = bit_cast<float>(magnitude) * 5.192296858534828e33f;
  const uint32_t special = magnitude | 0x7F800000u;
  const uint32_t bits = magnitude >= 0x0F800000u ? special : bit_cast<uint32_t>(scaled);
  return bit_cast<float>(bits | sign);
#endif
}
REGKERN_HD float widen(float x) { return x; }
REGKERN_HD double widen(double x) { return x; }
REGKERN_HD float widen(uint8_t x) { return static_cast<float>(x); }

// Round to nearest, ties to even; NaN stays NaN (quiet).
REGKERN_HD void narrow(float x, bfloat16* out) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  const uint32_t quiet = (u >> 16) | 0x40u;
  out->bits = static_cast<uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
}

REGKERN_HD void narrow(float x, float16* out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out->bits) : "f"(x));
#else
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7FFFFFFFu;
  // Normal halves: re-bias and round in integers. 65520 and more become infinity.
  const uint32_t capped = magnitude < 0x47800000u ? magnitude : 0x47800000u;
  const uint32_t normal = (capped - 0x38000000u + 0x0FFFu + ((capped >> 13) & 1u)) >> 13;
  // Subnormal halves: adding ½ lets the float adder round at the right place, 2⁻²⁴.
  const float shifted = bit_cast<float>(magnitude < 0x38800000u ? magnitude : 0u) + 0.5f;
  const uint32_t subnormal = bit_cast<uint32_t>(shifted) - 0x3F000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t bits = magnitude > 0x7F800000u ? 0x7E00u : finite;
  out->bits = static_cast<uint16_t>(bits | sign);
#endif
}
REGKERN_HD void narrow(float x, float* out) { *out = x; }
REGKERN_HD void narrow(double x, double* out) { *out = x; }

// For images: round half to even, saturate. Adding 1.5 · 2²³ rounds as the float adder does.
REGKERN_HD void narrow(float x, uint8_t* out) {
  const float clipped = x < 0.0f ? 0.0f : (x > 255.0f ? 255.0f : x);
  *out = static_cast<uint8_t>(bit_cast<uint32_t>(clipped + 12582912.0f) & 0xFFu);
}

template <typename T, typename C>
REGKERN_HD T narrowed(C x) {
  T out;
  narrow(x, &out);
  return out;
}

// Calls f with a zero of the storage type. The caller has checked that the dtype is supported.
template <typename F>
static inline void dispatch_floating(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::float32:
      return f(float{});
    case Dtype::float64:
      return f(double{});
    case Dtype::bfloat16:
      return f(bfloat16{});
    case Dtype::float16:
      return f(float16{});
    case Dtype::uint8:
      return;
  }
}

template <typename F>
static inline void dispatch_floating_or_byte(Dtype dtype, F&& f) {
  if (dtype == Dtype::uint8) return f(uint8_t{});
  dispatch_floating(dtype, f);
}

}  // namespace regkern
