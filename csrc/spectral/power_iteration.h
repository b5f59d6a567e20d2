#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/list_sums.h"
#include "core/math.h"
#include "core/square_sum.h"
#include "spectral/matrix.h"

// Power iteration on the matrices of a list, each read once per iteration:
//
//     y = W v,   t = Wᵀ y,   u = y / |y|,   v ← t / |t|,   σ = uᵀ W v = |t| / |y|
//
// Row i adds y_i W_i to t while it is in registers or in the cache. |W|² comes from the same pass.
//
// The order of sums is the same everywhere:
//
// - y_i is a sum over segments of kSegmentColumns, added one after the other in 16 lanes. In a
//   segment, column c belongs to lane c mod kStripe, which adds its kStripes products in order;
//   the kStripe lanes are eight groups of 16, added as ((0 1)(2 3))((4 5)(6 7)). In the end the 16
//   lanes are folded in halves.
// - t is added over the rows of a chunk in order, over the chunks of a span, and over the spans.
// - Norms of y and t are sums in double of kTotalLanes lanes.
//
// All sums begin with +0, so that no sum is −0 and what lies beyond a row may be added as zeros.
//
// y_i W_i of large or small weights leaves the range of float. So chunks have a scale: t holds
// 2^−e of what it should, with a coarse exponent e that follows |y| upwards, and is 0 for weights
// of any usual size.

namespace regkern::spectral {

constexpr int kStripe = 128, kStripes = 4, kSegmentColumns = kStripe * kStripes, kDotLanes = 16;
constexpr int kChunkRows = 16, kSpanChunks = 16, kSpanRows = kChunkRows * kSpanChunks;

// What is known of a matrix, as it stands in `stats`.
enum Stat { kSigma, kFrobenius, kIterations, kDone, kStats };

struct PowerRow {
  Matrix w;
  const void *u, *v;    // where the iteration starts from
  void *u_out, *v_out;  // results; y and t on the way
  void *u_too, *v_too;  // where results go as well, or null
  int64_t partial;      // its first number in `partials`
  int64_t chunk;        // its first chunk in the list
};

struct PowerArgs {
  Dtype dtype;
  const PowerRow* rows;
  int64_t count;
  int64_t iterations;  // 0: σ = uᵀ W v alone
  bool frobenius;
  double tolerance;    // of σ, relative; negative: all iterations are done
  double eps;          // a matrix of no greater σ counts as zero
  void* numbers;       // σ, |W| and iterations, (kDone, count) in the compute type
  double* stats;       // the same and more, (count, kStats), scratch
  void* partials;      // t by chunk on the GPU, by span on the CPU
  int32_t* exponents;  // of those
  int32_t* totals;     // of t; used on the GPU
  double* squares;     // by chunk on the GPU, by span on the CPU
};

REGKERN_HD int64_t chunk_count(const Matrix& m) { return (m.rows + kChunkRows - 1) / kChunkRows; }
REGKERN_HD int64_t span_count_of(const Matrix& m) { return (m.rows + kSpanRows - 1) / kSpanRows; }

// ---- scales ----

constexpr int32_t kNoExponent = -(1 << 20);  // of nothing but zeros

// 2^k, or 0 below the normal numbers.
template <typename C>
REGKERN_HD C power_of_two(int k);
template <>
REGKERN_HD float power_of_two<float>(int k) {
  return k < -126 ? 0.0f : bit_cast<float>(static_cast<uint32_t>(k + 127) << 23);
}
template <>
REGKERN_HD double power_of_two<double>(int k) {
  return k < -1022 ? 0.0 : bit_cast<double>(static_cast<uint64_t>(k + 1023) << 52);
}

// A multiple of 32 near the exponent of x, more than it at the upper end, where nothing is left to
// spare; kNoExponent of 0 and of what is not finite.
REGKERN_HD int coarse_exponent(float x) {
  const int bits = static_cast<int>((bit_cast<uint32_t>(x) >> 23) & 255u);
  const int e = (bits - 127 + 16 + 256) / 32 * 32 - 256;
  const int held = e < -96 ? -96 : (bits - 127 >= 96 ? 112 : e);
  return bits == 255 || x == 0.0f ? kNoExponent : held;
}
REGKERN_HD int coarse_exponent(double x) {
  const int bits = static_cast<int>((bit_cast<uint64_t>(x) >> 52) & 2047u);
  const int e = (bits - 1023 + 16 + 2048) / 32 * 32 - 2048;
  const int held = e < -960 ? -960 : (bits - 1023 >= 960 ? 992 : e);
  return bits == 2047 || x == 0.0 ? kNoExponent : held;
}

// The exponent of a sum so far, followed by one more term with `next`: what both are multiplied by.
template <typename C>
struct Scales {
  C sum, term;
};
template <typename C>
REGKERN_HD Scales<C> follow_exponent(int32_t* exponent, int32_t next) {
  const int32_t e = *exponent;
  if (e == next || next == kNoExponent) return {C(1), C(1)};
  if (e == kNoExponent) {
    *exponent = next;
    return {C(1), C(1)};
  }
  if (next > e) {
    *exponent = next;
    return {power_of_two<C>(e - next), C(1)};
  }
  return {C(1), power_of_two<C>(next - e)};
}

// A row with product y joins a chunk: the factor of the chunk so far, and y as it is added.
template <typename C>
REGKERN_HD Scales<C> join_row(int32_t* exponent, C y) {
  const int32_t next = coarse_exponent(y);
  Scales<C> scales{C(1), y};
  if (next > *exponent) scales.sum = follow_exponent<C>(exponent, next).sum;
  if (*exponent != kNoExponent && *exponent != 0) scales.term = y * power_of_two<C>(-*exponent);
  return scales;
}

// ---- the end of an iteration ----

// Whether u and v are replaced, and the norms of y and t, which is scaled by 2^−e.
struct Ending {
  bool replaced;
  double y_norm, t_norm;
};

REGKERN_HD Ending end_iteration(double yy, double tt, int32_t exponent, double tolerance,
                                double eps, double* stats) {
  const double y = sqrt(yy), t = sqrt(tt);
  const double scaled =
      exponent == kNoExponent || exponent == 0 ? t : t * power_of_two<double>(exponent);
  const double before = stats[kSigma];
  const bool first = stats[kIterations] == 0.0;
  stats[kIterations] += 1.0;
  // NaN is not zero.
  if (y == 0.0 || scaled / y <= eps) {
    stats[kSigma] = 0.0;
    stats[kDone] = 1.0;
    return {false, y, t};
  }
  const double sigma = scaled / y;
  stats[kSigma] = sigma;
  if (tolerance >= 0.0 && !first && fabs(sigma - before) <= tolerance * sigma) stats[kDone] = 1.0;
  return {true, y, t};
}

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(power_iteration, spectral::PowerArgs)
}
