#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"

// Mean, variance, skewness and kurtosis of every channel:
//
//     mean = Σ x / N,   mₖ = Σ (x − mean)ᵏ / N,
//     variance = m₂,   skewness = m₃ / m₂^{3/2},   kurtosis = m₄ / m₂²
//
// A channel's elements, in row-major order, are cut into chunks that stay in the first-level cache,
// or in a warp's share of shared memory. A chunk finds its extremes and its mean c first, then the
// sums of t, t², t³ and t⁴ with t = (x − c) / 2ᵏ, where 2ᵏ ≤ max |x − c| < 2ᵏ⁺¹, so that no power
// leaves the range of the type. Chunks are merged in a binary tree, in double.
//
// The order of every sum is fixed: kMomentsLanes sums over the rows of a chunk, in the type of the
// arithmetic; then, in double, the lanes of one thread of a warp from the first to the last, and
// the threads in a butterfly.

namespace regkern::quantize {

constexpr int kWarpThreads = 32;

// A thread's neighbours: a bank of shared memory holds four bytes.
template <typename T>
constexpr int kMomentsVector = sizeof(T) < 4 ? 4 / static_cast<int>(sizeof(T)) : 1;
template <typename T>
constexpr int kMomentsLanes = kWarpThreads * kMomentsVector<T>;
template <typename T>
constexpr int kMomentsChunk = sizeof(T) == 8 ? 512 : 1024;
template <typename T>
constexpr int kMomentsRows = kMomentsChunk<T> / kMomentsLanes<T>;

inline int64_t moments_chunk(Dtype dtype) {
  return dtype == Dtype::float64   ? kMomentsChunk<double>
         : dtype == Dtype::float32 ? kMomentsChunk<float>
                                   : kMomentsChunk<bfloat16>;
}

// A tensor seen as (outer, channels, inner), row-major.
struct MomentsItem {
  const void* x;
  void* dx;  // of the backward
  int64_t outer, channels, inner;
  int64_t first;  // its first channel in the results
};

REGKERN_HD int64_t channel_elements(const MomentsItem& m) { return m.outer * m.inner; }

// Several tensors of one dtype. A result has a row for each of its numbers, `stride` long.
struct MomentsArgs {
  Dtype dtype;
  const MomentsItem* items;  // on the host
  int64_t count;
  double* range;    // minimum, maximum, largest magnitude
  double* moments;  // mean, variance, skewness, kurtosis
  int64_t stride;
  struct MomentsPartial* partials;  // of a CUDA device: moments_partials() of them
};

struct MomentsBackwardArgs {
  Dtype dtype;
  const MomentsItem* items;
  int64_t count;
  const double* moments;
  const double* grad;  // for `moments`
  int64_t stride;
  void* cubics;  // of a CUDA device: a MomentsCubicAs<double> per channel, or what is smaller
};

// N elements: their mean, Σ (x − mean)ᵏ, and their extremes, both NaN if an element is.
struct MomentsPartial {
  double n, mean, m2, m3, m4, low, high;
};

constexpr double kMomentsInfinity = __builtin_inf();
constexpr double kMomentsNaN = __builtin_nan("");

REGKERN_HD double nan_min(double a, double b) { return a < b || a != a ? a : b; }
REGKERN_HD double nan_max(double a, double b) { return a > b || a != a ? a : b; }

// Partial results of chunks, and of groups of kWarpThreads of them.
inline int64_t moments_partials(Dtype dtype, const MomentsItem* items, int64_t count) {
  int64_t partials = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t chunk = moments_chunk(dtype), n = channel_elements(items[i]);
    const int64_t chunks = (n + chunk - 1) / chunk;
    partials += items[i].channels * (chunks + (chunks + kWarpThreads - 1) / kWarpThreads);
  }
  return partials;
}

// 2ᵏ and 2⁻ᵏ for the deviations of a chunk; both are normal numbers of the arithmetic's type C.
template <typename C>
struct MomentsUnit {
  C pivot, inverse, scaled_pivot;
  double unit;
};

template <typename C>
REGKERN_HD MomentsUnit<C> unit_of(double sum, double n, C low, C high) {
  constexpr int kMost = sizeof(C) == 4 ? 126 : 1022;
  // Rounding, or an overflow of the sum, must not take the mean out of the range: a chunk of equal
  // numbers deviates by exactly zero.
  C pivot = static_cast<C>(sum / n);
  pivot = pivot > low ? pivot : low;
  pivot = pivot < high ? pivot : high;
  const double above = static_cast<double>(high) - static_cast<double>(pivot);
  const double below = static_cast<double>(pivot) - static_cast<double>(low);
  const double deviation = above > below ? above : below;
  int k = static_cast<int>(bit_cast<uint64_t>(deviation) >> 52 & 2047u) - 1023;
  k = deviation > 0.0 ? k : 0;
  k = k < -kMost ? -kMost : k;
  k = k > kMost ? kMost : k;
  const double unit = bit_cast<double>(static_cast<uint64_t>(k + 1023) << 52);
  const C inverse = static_cast<C>(bit_cast<double>(static_cast<uint64_t>(1023 - k) << 52));
  return {pivot, inverse, pivot * inverse, unit};
}

// The powers' sums about the pivot, moved to the mean: d = Σ t / n.
template <typename C>
REGKERN_HD MomentsPartial chunk_partial(const MomentsUnit<C>& u, double n, double s1, double s2,
                                        double s3, double s4, double low, double high) {
  if (!(low > -kMomentsInfinity && high < kMomentsInfinity)) {
    const double both = low + high;  // NaN, or one of the infinities; NaN for both of them
    const double mean = both != both ? both : low == -kMomentsInfinity ? low : high;
    return {n, mean, kMomentsNaN, kMomentsNaN, kMomentsNaN, low, high};
  }
  const double d = s1 / n, square = u.unit * u.unit;
  const double m2 = s2 - d * s1;
  const double m3 = s3 - 3.0 * d * s2 + 2.0 * d * d * s1;
  const double m4 = s4 - 4.0 * d * s3 + 6.0 * d * d * s2 - 3.0 * d * d * d * s1;
  return {n,
          static_cast<double>(u.pivot) + d * u.unit,
          (m2 > 0.0 ? m2 : 0.0) * square,
          m3 * square * u.unit,
          (m4 > 0.0 ? m4 : 0.0) * square * square,
          low,
          high};
}

// Two sets as one (Pébay, 2008). With e = nₐ / n, f = n_b / n and δ = mean_b − meanₐ:
//
//     mean = meanₐ + δ f
//     M₂ = M₂ₐ + M₂_b + δ² nₐ f
//     M₃ = M₃ₐ + M₃_b + δ³ nₐ f (e − f) + 3 δ (e M₂_b − f M₂ₐ)
//     M₄ = M₄ₐ + M₄_b + δ⁴ nₐ f (e² − e f + f²) + 6 δ² (e² M₂_b + f² M₂ₐ) + 4 δ (e M₃_b − f M₃ₐ)
REGKERN_HD MomentsPartial merged_moments(const MomentsPartial& a, const MomentsPartial& b) {
  const double n = a.n + b.n, e = a.n / n, f = b.n / n;
  const double delta = b.mean - a.mean, square = delta * delta, between = square * a.n * f;
  const double low = nan_min(a.low, b.low), high = nan_max(a.high, b.high);
  if (!(delta > -kMomentsInfinity && delta < kMomentsInfinity))
    return {n, a.mean + b.mean, kMomentsNaN, kMomentsNaN, kMomentsNaN, low, high};
  return {n,
          a.mean + delta * f,
          a.m2 + b.m2 + between,
          a.m3 + b.m3 + between * delta * (e - f) + 3.0 * delta * (e * b.m2 - f * a.m2),
          a.m4 + b.m4 + between * square * (e * e - e * f + f * f) +
              6.0 * square * (e * e * b.m2 + f * f * a.m2) + 4.0 * delta * (e * b.m3 - f * a.m3),
          low,
          high};
}

// No elements: the mean and all else of 0/0, the range of nothing.
REGKERN_HD MomentsPartial no_elements() {
  return {0.0,         kMomentsNaN,      kMomentsNaN,      kMomentsNaN,
          kMomentsNaN, kMomentsInfinity, -kMomentsInfinity};
}

// What a channel reports. Equal numbers have no shape: variance, skewness and kurtosis are 0.
REGKERN_HD void write_moments(const MomentsPartial& p, int64_t channel, int64_t stride,
                              double* range, double* moments) {
  const double least = p.low < 0.0 ? -p.low : p.low, largest = p.high < 0.0 ? -p.high : p.high;
  const bool equal = p.low == p.high && p.low > -kMomentsInfinity && p.high < kMomentsInfinity;
  const double variance = equal ? 0.0 : p.m2 / p.n;
  const double third = p.m3 / p.n, fourth = p.m4 / p.n;
  range[channel] = p.low;
  range[stride + channel] = p.high;
  range[2 * stride + channel] = p.n > 0.0 ? nan_max(least, largest) : 0.0;
  moments[channel] = p.mean;
  moments[stride + channel] = variance;
  moments[2 * stride + channel] =
      variance == 0.0 ? 0.0 : third / (variance * regkern::sqrt(variance));
  moments[3 * stride + channel] = variance == 0.0 ? 0.0 : fourth / (variance * variance);
}

// The gradient of the moments. With z = (x − mean) / s, s = √variance,
//
//     ∂ mean / ∂x = 1 / N
//     ∂ variance / ∂x = 2 s z / N
//     ∂ skewness / ∂x = 3 (z² − 1 − z · skewness) / (N s)
//     ∂ kurtosis / ∂x = 4 (z³ − skewness − z · kurtosis) / (N s)
//
// so that dx is a cubic polynomial of z, with one set of coefficients per channel. Where s = 0 the
// last three are 0.
struct MomentsCubic {
  double mean, inverse, a0, a1, a2, a3;
};

REGKERN_HD MomentsCubic cubic_of(const MomentsBackwardArgs& args, int64_t channel, double n) {
  const double* m = args.moments + channel;
  const double* g = args.grad + channel;
  const int64_t stride = args.stride;
  const double variance = m[stride], skewness = m[2 * stride], kurtosis = m[3 * stride];
  const double a0 = g[0] / n;
  if (variance == 0.0) return {m[0], 0.0, a0, 0.0, 0.0, 0.0};
  const double s = regkern::sqrt(variance), inverse = 1.0 / s;
  const double third = 3.0 * g[2 * stride] * inverse / n;
  const double fourth = 4.0 * g[3 * stride] * inverse / n;
  return {m[0],
          inverse,
          a0 - third - fourth * skewness,
          2.0 * s * g[stride] / n - third * skewness - fourth * kurtosis,
          third,
          fourth};
}

// The polynomial in the arithmetic's type; the mean in two parts, the second lost in double.
template <typename C>
struct MomentsCubicAs {
  C mean, rest, inverse, a0, a1, a2, a3;
};

template <typename C>
REGKERN_HD MomentsCubicAs<C> cubic_as(const MomentsCubic& c) {
  const C mean = static_cast<C>(c.mean);
  return {mean,
          static_cast<C>(c.mean - static_cast<double>(mean)),
          static_cast<C>(c.inverse),
          static_cast<C>(c.a0),
          static_cast<C>(c.a1),
          static_cast<C>(c.a2),
          static_cast<C>(c.a3)};
}

template <typename C>
REGKERN_HD C cubic_at(const MomentsCubicAs<C>& c, C x) {
  const C z = ((x - c.mean) - c.rest) * c.inverse;
  return c.a0 + z * (c.a1 + z * (c.a2 + z * c.a3));
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(moments, quantize::MomentsArgs)
REGKERN_DECLARE_KERNEL(moments_backward, quantize::MomentsBackwardArgs)
}  // namespace regkern
