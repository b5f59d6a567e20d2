#pragma once

#include <cstdint>

#include "quantize/range.h"
#include "quantize/rounding.h"

// The scale of a block, given or from what the block holds.

namespace regkern::quantize {

enum class ScaleRule : int {
  none,       // the grid as it is
  given,      // a scale, and perhaps a zero point, per block
  mx,         // OCP microscaling: a power of two from the largest magnitude
  nvfp4,      // an e4m3 number times the scale of the tensor
  symmetric,  // the largest magnitude / the largest number of the grid
  asymmetric  // range / range of codes, and a zero point
};

template <typename C>
struct Scale {
  C scale, inverse, zero_point;
};

// 2^x for −127 <= x <= 127; 2⁻¹²⁷ is a subnormal float.
REGKERN_HD float power_of_two(int32_t x) {
  const uint32_t normal = static_cast<uint32_t>(x + 127) << 23;
  return bit_cast<float>(x < -126 ? 0x00400000u : normal);
}
REGKERN_HD double power_of_two(int64_t x) {
  return bit_cast<double>(static_cast<uint64_t>(x + 1023) << 52);
}

// X = floor(log2 amax) − emax, one more where the mantissa of amax exceeds `up_above` (2: never),
// in the range of E8M0. Integers as wide as C, and chosen as bits: else gcc finds no vector.
template <typename C>
REGKERN_HD order_key_t<C> mx_exponent(C amax, int emax, C up_above) {
  using L = Layout<C>;
  using B = typename L::bits;
  using I = order_key_t<C>;
  // Subnormals become normal.
  constexpr int kUp = L::kMantissa + 1;
  const C scaled = amax * bit_cast<C>(static_cast<B>(L::kBias + kUp) << L::kMantissa);
  const I raw = bit_cast<I>(amax);
  const bool tiny = raw < (I(1) << L::kMantissa);
  const I u = tiny ? bit_cast<I>(scaled) : raw;
  const I one = static_cast<I>(L::kBias) << L::kMantissa;
  const C mantissa = bit_cast<C>((u & ((I(1) << L::kMantissa) - 1)) | one);
  const I exponent = (u >> L::kMantissa) - L::kBias - (tiny ? I(kUp) : I(0));
  const I x = exponent - emax + (mantissa > up_above ? I(1) : I(0));
  const I least = x < -127 || !(amax > C(0)) ? I(-127) : x;
  return least > 127 ? I(127) : least;
}

struct ScaleOptions {
  ScaleRule rule;
  const void* scale;          // given, per block, in the compute type
  const void* inverse;        // likewise, or null: 1 / scale
  const void* zero_point;     // likewise, or null
  const float* tensor_scale;  // nvfp4
  int emax;                   // mx: the exponent of the grid's largest number
  double up_above;            // mx
  double divisor;             // symmetric, asymmetric, nvfp4: what the range is divided by
  double epsilon;             // the smallest scale that is computed
};

template <typename C>
REGKERN_HD Scale<C> given_scale(const ScaleOptions& o, int64_t block) {
  const C s = static_cast<const C*>(o.scale)[block];
  return {s, o.inverse != nullptr ? static_cast<const C*>(o.inverse)[block] : C(1) / s,
          o.zero_point != nullptr ? static_cast<const C*>(o.zero_point)[block] : C(0)};
}

// minimum <= maximum are those of the block; one that is infinite or NaN leaves no scale. Free of
// branches but those on the rule.
template <typename C>
REGKERN_HD Scale<C> computed_scale(ScaleRule rule, const ScaleOptions& o, const Grid& g, C minimum,
                                   C maximum, C tensor_scale) {
  const C amax = maximum > -minimum ? maximum : -minimum;
  const C infinity = bit_cast<C>(Layout<C>::kExponent);
  const C nan = bit_cast<C>(Layout<C>::kExponent | Layout<C>::kQuiet);
  const bool usable = minimum > -infinity && maximum < infinity;
  const C epsilon = static_cast<C>(o.epsilon), divisor = static_cast<C>(o.divisor);
  C scale, inverse, zero_point = C(0);
  if (rule == ScaleRule::mx) {
    // Of what is not usable something comes out, too, and is dropped below.
    const order_key_t<C> x = mx_exponent(amax, o.emax, static_cast<C>(o.up_above));
    scale = power_of_two(x);
    inverse = power_of_two(-x);
  } else if (rule == ScaleRule::nvfp4) {
    const Grid e4m3 = e4m3_grid();
    const C wanted = amax / divisor / tensor_scale;
    // Not below the smallest normal number of e4m3, where its steps get coarse.
    const C block = round_floating(wanted > epsilon ? wanted : epsilon, e4m3,
                                   Rounding::nearest_even, true, C(0));
    scale = block * tensor_scale;
    inverse = (C(1) / tensor_scale) / block;
  } else if (rule == ScaleRule::symmetric) {
    const C s = amax / divisor;
    scale = s > epsilon ? s : epsilon;
    inverse = C(1) / scale;
  } else {
    const C low = minimum < C(0) ? minimum : C(0), high = maximum > C(0) ? maximum : C(0);
    const C s = (high - low) / divisor;
    scale = s > epsilon ? s : epsilon;
    inverse = C(1) / scale;
    const C zero = static_cast<C>(g.low) + nearest_integer(-(low / scale));
    zero_point = clamped(zero, static_cast<C>(g.low), static_cast<C>(g.high));
    zero_point = usable ? zero_point : C(0);
  }
  return {usable ? scale : nan, usable ? inverse : nan, zero_point};
}

}  // namespace regkern::quantize
