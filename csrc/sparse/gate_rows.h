#pragma once

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"

// The largest magnitudes of a row, without a sort:
//
//     top     the k largest
//     mass    the fewest largest whose sum is at least a share of the sum of all
//
// Magnitudes are ordered as their bits are, NaN above infinity; of equal ones the first are taken.
// The last to be taken has the largest bits t for which enough is at t or above, and t is found bit
// by bit. Masses are integers, 2⁻³⁰ of a power of two that is not below the largest of the row:
// their sums are the same in any order.

namespace regkern::sparse {

template <typename C>
using magnitude_t = std::conditional_t<sizeof(C) == 8, int64_t, int32_t>;

template <typename C>
REGKERN_HD magnitude_t<C> magnitude_of(C x) {
  return bit_cast<magnitude_t<C>>(fabs(x));
}
template <typename C>
constexpr magnitude_t<C> kInfinityBits =
    sizeof(C) == 8 ? static_cast<magnitude_t<C>>(0x7FF0000000000000)
                   : static_cast<magnitude_t<C>>(0x7F800000);

// The bits of a magnitude of T that can differ from 0: those of a half end early.
template <typename T>
constexpr int kLowestBit = 0;
template <>
constexpr int kLowestBit<bfloat16> = 16;
template <>
constexpr int kLowestBit<float16> = 13;
template <typename T>
constexpr int kHighestBit = sizeof(compute_t<T>) == 8 ? 62 : 30;

struct RowSelectArgs {
  Dtype dtype;
  int64_t rows, n;
  const void* values;  // what is kept, or else 0 (NaN where it is that)
  const void* scores;  // may be the same
  void* y;
  int64_t k;  // 0 < k < n
};

struct MassGateArgs {
  Dtype dtype;
  int64_t rows, n;
  const void* peaks;  // magnitudes (rows, n)
  void* gates;        // 1 or 0, NaN in rows whose sum is no number
  double share;
};

// The largest magnitude of each plane, (batch, channels).
struct PlanePeakArgs {
  Dtype dtype;
  bool channels_last;
  int64_t batch, channels, plane;
  const void* y;  // (batch, channels, plane), or (batch, plane, channels)
  void* peaks;
};

// 2ᵉ with 2²⁹ ≤ m 2ᵉ < 2³⁰, or the largest that there is.
REGKERN_HD double mass_scale(double m) {
  const int64_t biased = bit_cast<int64_t>(m) >> 52;
  const int64_t inverse = 2075 - biased;
  return bit_cast<double>((inverse < 2046 ? inverse : int64_t{2046}) << 52);
}
template <typename C>
REGKERN_HD int32_t mass_of(C magnitude, double scale) {
  return static_cast<int32_t>(static_cast<double>(magnitude) * scale);
}

// The least whole number that is not below share · total.
REGKERN_HD int64_t mass_needed(double share, int64_t total) {
  const double wanted = share * static_cast<double>(total);
  const int64_t whole = static_cast<int64_t>(wanted);
  const int64_t least = whole + (static_cast<double>(whole) < wanted ? 1 : 0);
  return least < total ? least : total;
}

// The largest t, of the bits from `high` down to `low`, for which reaches(t).
REGKERN_CALLS_ARGUMENT
template <typename M, typename Reaches>
REGKERN_HD M largest_reaching(int high, int low, Reaches&& reaches) {
  M t = 0;
  for (int bit = high; bit >= low; --bit) {
    const M next = t | (M{1} << bit);
    if (reaches(next)) t = next;
  }
  return t;
}

}  // namespace regkern::sparse

namespace regkern {
REGKERN_DECLARE_KERNEL(row_select, sparse::RowSelectArgs)
REGKERN_DECLARE_KERNEL(plane_peak, sparse::PlanePeakArgs)
REGKERN_DECLARE_KERNEL(mass_gate, sparse::MassGateArgs)
}  // namespace regkern
