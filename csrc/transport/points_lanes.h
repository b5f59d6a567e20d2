#pragma once

#include <cstring>

#include "core/registers.h"
#include "transport/points.h"

// What the CPU kernels of clouds of points share: vectors, and the sums over the dimensions of some
// rows with a panel. Included by files that are compiled for each instruction set.

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

template <typename C>
constexpr int kWidth = kRegisterBytes / static_cast<int>(sizeof(C));
template <typename C>
struct VectorOf {
  typedef C type __attribute__((vector_size(kRegisterBytes)));
  typedef C Unaligned __attribute__((vector_size(kRegisterBytes), aligned(alignof(C)), may_alias));
};
template <typename C>
using Vec = typename VectorOf<C>::type;

template <typename C>
inline Vec<C> load(const C* from) {
  return *reinterpret_cast<const typename VectorOf<C>::Unaligned*>(from);
}
template <typename C>
inline void store(C* to, const Vec<C>& x) {
  *reinterpret_cast<typename VectorOf<C>::Unaligned*>(to) = x;
}

// 2ˣ lane by lane, as power_of_two_at has it. Loops over lanes come out of gcc with branches made
// into blends of both results, which take twice as long.
inline Vec<float> powers_of(Vec<float> x) {
  typedef uint32_t Bits __attribute__((vector_size(kRegisterBytes)));
  const Vec<float> low = Vec<float>{} - 127.0f, high = Vec<float>{} + 128.0f;
  x = x < low ? low : x;
  return power_of_two_float<Vec<float>, Bits>(x > high ? high : x);
}
inline Vec<double> powers_of(Vec<double> x) {
  typedef uint64_t Bits __attribute__((vector_size(kRegisterBytes)));
  const Vec<double> low = Vec<double>{} - 1023.0, high = Vec<double>{} + 1024.0;
  x = x < low ? low : x;
  return power_of_two_double<Vec<double>, Bits>(x > high ? high : x);
}

template <typename M>
inline bool any_of(const M& mask) {
  M all = mask;
  constexpr int kCount = static_cast<int>(sizeof(M) / sizeof(mask[0]));
  int64_t any = 0;
  uint64_t words[sizeof(M) / 8];
  static_assert(kCount > 0);
  memcpy(words, &all, sizeof(M));
  for (uint64_t w : words) any |= static_cast<int64_t>(w);
  return any != 0;
}

template <typename V>
inline V greater(const V& a, const V& b) {
  return a > b ? a : b;
}

// Rows i … i + count − 1 side by side: x[k kRows + r], products scaled, zeros behind the last.
template <PointKernel kKernel, int kRows, typename C>
inline void pack_rows(const PointPairs& p, int64_t batch, int64_t i, int64_t count, C scale, C* x) {
  const C* const rows = static_cast<const C*>(p.rows) + (batch * p.n + i) * p.d;
  for (int r = 0; r < kRows; ++r)
    for (int64_t k = 0; k < p.d; ++k) {
      const C value = r < count ? rows[r * p.d + k] : C(0);
      x[k * kRows + r] = kKernel == PointKernel::product ? value * scale : value;
    }
}

// The sums over the dimensions of kRows rows with two vectors of columns, `stride` from one
// dimension to the next: to sums[r kPointPanel …].
template <PointKernel kKernel, int kRows, typename C>
inline void add_columns(const C* x, const C* y, int64_t stride, int64_t d, C* sums) {
  constexpr int kW = kWidth<C>;
  Vec<C> first[kRows], second[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    first[r] = Vec<C>{};
    second[r] = Vec<C>{};
  }
  for (int64_t k = 0; k < d; ++k) {
    const Vec<C> y0 = load(y + k * stride), y1 = load(y + k * stride + kW);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const C value = x[k * kRows + r];
      if constexpr (kKernel == PointKernel::product) {
        first[r] += value * y0;
        second[r] += value * y1;
      } else {
        const Vec<C> t0 = value - y0, t1 = value - y1;
        first[r] += t0 * t0;
        second[r] += t1 * t1;
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    store(sums + r * kPointPanel, first[r]);
    store(sums + r * kPointPanel + kW, second[r]);
  }
}

// The same with all columns of a panel.
template <PointKernel kKernel, int kRows, typename C>
inline void add_dimensions(const C* x, const C* panel, int64_t d, C* sums) {
  for (int column = 0; column < kPointPanel; column += 2 * kWidth<C>)
    add_columns<kKernel, kRows>(x, panel + column, kPointPanel, d, sums + column);
}

template <typename V>
inline V roots_of(V x) {
  V roots;
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) roots[i] = regkern::sqrt(x[i]);
  return roots;
}

template <PointKernel kKernel, typename C>
inline Vec<C> exponents_of(Vec<C> bias, Vec<C> sums, C scale) {
  if constexpr (kKernel == PointKernel::product) return bias + sums;
  if constexpr (kKernel == PointKernel::square) return bias - scale * sums;
  return bias - scale * roots_of(sums);
}

// A panel of exponents joins the lanes of a row.
template <PointKernel kKernel, typename C>
inline void add_panel(const C* bias, const C* sums, C scale, C* most, C* lanes) {
  using V = Vec<C>;
  constexpr int kW = kWidth<C>;
  const V none = V{} - static_cast<C>(__builtin_inf());
#pragma GCC unroll 2
  for (int l = 0; l < kPointLanes; l += kW) {
    const auto at = [=](int g) {
      return exponents_of<kKernel>(load(bias + g * kPointLanes + l),
                                   load(sums + g * kPointLanes + l), scale);
    };
    const V e0 = at(0), e1 = at(1), e2 = at(2), e3 = at(3), before = load(most + l);
    const V top = greater(greater(greater(e0, e1), greater(e2, e3)), before);
    // −∞ is no number to subtract.
    const V by = top == none ? V{} : top;
    V sum = load(lanes + l);
    const auto moved = top != before;
    if (any_of(moved)) {
      sum *= powers_of(before - by);
      store(most + l, top);
    }
    sum += (powers_of(e0 - by) + powers_of(e1 - by)) + (powers_of(e2 - by) + powers_of(e3 - by));
    store(lanes + l, sum);
  }
}

template <typename C>
inline C fold(C* lanes) {
  for (int half = kPointLanes / 2; half > 0; half /= 2) {
#pragma omp simd
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

template <typename C>
inline C largest(const C* most) {
  C top = most[0];
  for (int l = 1; l < kPointLanes; ++l) top = most[l] > top ? most[l] : top;
  return top;
}

// The softmin of a row whose lanes have all panels.
template <typename C>
inline double end_row(const PointPairs& p, int64_t batch, int64_t i, const C* most, C* lanes) {
  const C by = shift_by(largest(most));
#pragma omp simd
  for (int l = 0; l < kPointLanes; ++l) lanes[l] *= power_of_two_at(most[l] - by);
  return softmin_of(p, batch, i, by, fold(lanes));
}

}  // namespace
}  // namespace regkern::REGKERN_ISA
