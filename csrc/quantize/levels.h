#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "quantize/segments.h"

// The nearest of a set of learned levels, sorted or not:
//
//     code = argmin_j |x − v_j|, the lowest j among equals;     y = v_code.
//
// An infinite x takes the largest or smallest level: x is first moved into [min v, max v]. NaN
// gives NaN and code 0, and so does a set that has a NaN, or an element that no level is allowed
// to.

namespace regkern::quantize {

constexpr int kMostLevels = 4096;
constexpr int kMostMaskedLevels = 64;

template <typename C>
struct Bounds {
  C low, high;  // NaN if a level is
};

template <typename C>
REGKERN_HD Bounds<C> bounds_of(const C* values, int levels) {
  Bounds<C> b{values[0], values[0]};
  for (int j = 1; j < levels; ++j) {
    const C v = values[j];
    b.low = v < b.low || v != v ? v : b.low;
    b.high = v > b.high || v != v ? v : b.high;
  }
  return b;
}

template <typename C>
REGKERN_HD C clamped(C x, C low, C high) {
  return x < low ? low : (x > high ? high : x);
}

template <typename C>
REGKERN_HD C not_a_number() {
  return static_cast<C>(bit_cast<float>(0x7FC00000u));
}

template <typename C>
struct Nearest {
  C value;
  int code;
};

// Bit j of `allowed` allows level j; levels past the 64th are always allowed.
template <typename C>
REGKERN_HD Nearest<C> nearest_of(C x, const C* values, int levels, Bounds<C> b, uint64_t allowed) {
  Nearest<C> found{not_a_number<C>(), 0};
  if (b.low != b.low) return found;
  const C c = clamped(x, b.low, b.high);
  C best = static_cast<C>(bit_cast<float>(0x7F800000u));
  for (int j = 0; j < levels; ++j) {
    const C v = values[j];
    const C d = c < v ? v - c : c - v;
    const bool on = j >= kMostMaskedLevels || (allowed >> (j & 63) & 1u) != 0;
    if (d < best && on) {
      best = d;
      found = {v, j};
    }
  }
  return found;
}

// The same for levels f v_j.
template <typename C>
REGKERN_HD Nearest<C> nearest_scaled(C x, const C* values, int levels, Bounds<C> b, C f,
                                     uint64_t allowed) {
  Nearest<C> found{not_a_number<C>(), 0};
  if (b.low != b.low) return found;
  const C low = f < C(0) ? b.high * f : b.low * f, high = f < C(0) ? b.low * f : b.high * f;
  const C c = clamped(x, low, high);
  C best = static_cast<C>(bit_cast<float>(0x7F800000u));
  for (int j = 0; j < levels; ++j) {
    const C v = values[j] * f;
    const C d = c < v ? v - c : c - v;
    const bool on = j >= kMostMaskedLevels || (allowed >> (j & 63) & 1u) != 0;
    if (d < best && on) {
      best = d;
      found = {v, j};
    }
  }
  return found;
}

// Masks of allowed levels: int32 or int64, or none.
struct Allowed {
  const void* data;
  bool wide;
};

REGKERN_HD uint64_t allowed_at(const Allowed& a, int64_t e) {
  if (a.data == nullptr) return ~uint64_t{0};
  return a.wide ? static_cast<uint64_t>(static_cast<const int64_t*>(a.data)[e])
                : static_cast<uint64_t>(static_cast<const uint32_t*>(a.data)[e]);
}

// Codes: uint8 up to 256 levels, else int32.
struct Codes {
  void* data;
  bool wide;
};

REGKERN_HD int code_at(const Codes& codes, int64_t e, int levels) {
  const uint32_t code = codes.wide ? static_cast<const uint32_t*>(codes.data)[e]
                                   : uint32_t{static_cast<const uint8_t*>(codes.data)[e]};
  // Whatever was given, nothing outside the sums is written.
  const uint32_t last = static_cast<uint32_t>(levels) - 1u;
  return static_cast<int>(code < last ? code : last);
}

REGKERN_HD void set_code(const Codes& codes, int64_t e, int code) {
  if (codes.wide)
    static_cast<int32_t*>(codes.data)[e] = code;
  else
    static_cast<uint8_t*>(codes.data)[e] = static_cast<uint8_t>(code);
}

struct NearestLevelArgs {
  Dtype dtype;
  Segments segments;  // one group, or one for each set of levels
  int levels;
  const void* x;
  const void* values;  // (groups, levels) in the type that is computed with
  Allowed allowed;
  void* bounds;  // (groups, 2), scratch
  void* y;
  Codes codes;
  // Σ (x − y)², where sums.bins = 1.
  SumsArgs sums;
  int32_t* refused;  // set where no level was allowed, or null
};

// The gradients. With g that of y and a = 2 g_commitment / N:
//
//     sum      dv_j = Σ_{code = j} g
//     clip     the same, and dx = g inside [min v, max v], 0 outside
//     latent   dx = g + a (x − y),   dv_j = 2/N g_quantization Σ_{code = j} (v_j − x)
enum class LevelGradient : int { sum, clip, latent };

struct LevelGradientArgs {
  Dtype dtype;
  LevelGradient kind;
  Segments segments;
  int levels;
  const void* g;
  const void* x;
  const void* values;
  void* bounds;
  Codes codes;
  void* dx;
  const void* commitment;  // one element, in the type that is computed with
  double mean;             // 2 / N, or 2
  bool with_sums;
  SumsArgs sums;
};

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(nearest_level, quantize::NearestLevelArgs)
REGKERN_DECLARE_KERNEL(level_gradient, quantize::LevelGradientArgs)
}  // namespace regkern
