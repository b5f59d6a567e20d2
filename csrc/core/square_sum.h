#pragma once

#include <cstdint>

#include "core/dtype.h"

// Sums of squares and of products in one order, the same for every instruction set, number of
// threads and GPU.
//
// A run is cut into segments of kSegment elements. In a segment, element k belongs to lane
// k mod kLanes; a lane adds its squares one after the other, and the lanes are folded in halves:
// lane i += lane i + 512, then + 256, … + 1. Lanes without an element hold 0, which adds nothing,
// so a shorter run takes the next power of two of lanes. Segments are added in double, in order.
//
// Squares are added in the compute type. A segment of floats whose sum is not in [1e-30, 1e37] may
// have lost something to underflow or overflow and is added again in double. Products of two runs
// are added in double in the first place.

namespace regkern {

constexpr int64_t kSegment = int64_t{1} << 16;
constexpr int kLanes = 1024;

REGKERN_HD bool square_sum_holds(float sum) { return sum >= 1e-30f && sum <= 1e37f; }
REGKERN_HD bool square_sum_holds(double) { return true; }

// The least power of two that is not below n, for n ≥ 1.
REGKERN_HD int power_of_two_from(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

namespace {

// The sum of `count` lanes, a power of two; it overwrites them.
template <typename A>
inline A fold_lanes(A* lanes, int count) {
  // Two halvings at a time, in registers.
  for (; count >= 64; count /= 4) {
    const int q = count / 4;
#pragma omp simd
    for (int i = 0; i < q; ++i)
      lanes[i] = (lanes[i] + lanes[i + 2 * q]) + (lanes[i + q] + lanes[i + 3 * q]);
  }
  int half = count / 2;
  for (; half >= 16; half /= 2) {
#pragma omp simd
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  if (half == 8) {
    for (int i = 0; i < 8; ++i) lanes[i] += lanes[i + 8];
    half = 4;
  }
  if (half == 4) {
    for (int i = 0; i < 4; ++i) lanes[i] += lanes[i + 4];
    half = 2;
  }
  if (half == 2) {
    for (int i = 0; i < 2; ++i) lanes[i] += lanes[i + 2];
    half = 1;
  }
  return half == 1 ? lanes[0] + lanes[1] : lanes[0];
}

// The sum of term(0) … term(n - 1), of type A, for 1 ≤ n ≤ kSegment.
// By value: what is captured must not be thought to change with the lanes.
template <typename A, typename Term>
inline A segment_sum(int n, Term term) {
  alignas(64) A lanes[kLanes];
  if (n <= kLanes) {
    if (n == 1) return term(0);
    const int half = power_of_two_from(n) / 2, both = n - half;
    if (half < 16) {
      A few[16] = {};
#pragma omp simd
      for (int i = 0; i < both; ++i) few[i] = term(i) + term(i + half);
#pragma omp simd
      for (int i = both; i < half; ++i) few[i] = term(i);
      return fold_lanes(few, half);
    }
    // The first two halvings, where three or four lanes, or two, have elements.
    const int q = half / 2, four = both > q ? both - q : 0, three = both > q ? q : both;
#pragma omp simd
    for (int i = 0; i < four; ++i)
      lanes[i] = (term(i) + term(i + half)) + (term(i + q) + term(i + half + q));
#pragma omp simd
    for (int i = four; i < three; ++i) lanes[i] = (term(i) + term(i + half)) + term(i + q);
#pragma omp simd
    for (int i = three; i < q; ++i) lanes[i] = term(i) + term(i + q);
    return fold_lanes(lanes, q);
  }
  constexpr int k1 = kLanes, k2 = 2 * kLanes, k3 = 3 * kLanes;
  const int stripes = n / kLanes;
  int s = 0;
  // Four stripes at a time spare most of the traffic of the lanes.
  if (stripes >= 4) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i)
      lanes[i] = ((term(i) + term(i + k1)) + term(i + k2)) + term(i + k3);
    s = 4;
  } else {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) lanes[i] = term(i);
    s = 1;
  }
  for (; s + 4 <= stripes; s += 4) {
    const int at = s * kLanes;
#pragma omp simd
    for (int i = 0; i < kLanes; ++i)
      lanes[i] =
          (((lanes[i] + term(at + i)) + term(at + i + k1)) + term(at + i + k2)) + term(at + i + k3);
  }
  for (; s < stripes; ++s) {
    const int at = s * kLanes;
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) lanes[i] += term(at + i);
  }
  const int at = stripes * kLanes, tail = n - at;
#pragma omp simd
  for (int i = 0; i < tail; ++i) lanes[i] += term(at + i);
  return fold_lanes(lanes, kLanes);
}

// The sum of the squares of value(0) … value(n - 1), of the compute type C, for n ≤ kSegment.
template <typename C, typename Value>
inline double segment_square_sum(int n, Value value) {
  if (n == 0) return 0.0;
  const C sum = segment_sum<C>(n, [=](int i) {
    const C x = value(i);
    return x * x;
  });
  if (square_sum_holds(sum)) return static_cast<double>(sum);
  return segment_sum<double>(n, [=](int i) {
    const double x = static_cast<double>(value(i));
    return x * x;
  });
}

// The sum of the squares of n neighbours.
template <typename T>
inline double square_sum(const T* x, int64_t n) {
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSegment) {
    const T* const data = x + begin;
    const int64_t left = n - begin;
    total += segment_square_sum<compute_t<T>>(static_cast<int>(left < kSegment ? left : kSegment),
                                              [=](int i) { return widen(data[i]); });
  }
  return total;
}

}  // namespace
}  // namespace regkern
