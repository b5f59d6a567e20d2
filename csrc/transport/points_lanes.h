#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstring>

#include "core/vectors.h"
#include "transport/points.h"

// What the CPU kernels of clouds of points share: vectors, and the sums over the dimensions of some
// rows with a panel. Included by files that are compiled for each instruction set.

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

template <typename C>
using Vec = Register<C>;
template <typename C>
constexpr int kWidth = kRegisterLanes<C>;

template <typename C>
inline Vec<C> load(const C* from) {
  return load_register(from);
}
template <typename C>
inline void store(C* to, const Vec<C>& x) {
  store_register(to, x);
}

// a > b ? a : b and a < b ? a : b. What compares false, a number that is none, gives b, as the
// instructions have it; gcc makes two of each.
inline Vec<float> greater(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
inline Vec<float> smaller(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
inline Vec<double> greater(Vec<double> a, Vec<double> b) { return a > b ? a : b; }
inline Vec<double> smaller(Vec<double> a, Vec<double> b) { return a < b ? a : b; }

// Four vectors, whose operations come in turn. One series after the other would fill the processor
// with operations that wait for each other; the barrier keeps the compiler from making it so.
template <typename V>
struct Four {
  V v[4];
};
template <typename V>
inline Four<V> in_turn(V a, V b, V c, V d) {
#if defined(__AVX512F__)
  asm("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d));
#elif defined(__x86_64__)
  asm("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d));
#endif
  return {{a, b, c, d}};
}
template <typename V, typename S>
inline Four<V> operator+(const Four<V>& x, S y) {
  return in_turn(x.v[0] + y, x.v[1] + y, x.v[2] + y, x.v[3] + y);
}
template <typename V, typename S>
inline Four<V> operator-(const Four<V>& x, S y) {
  return in_turn(x.v[0] - y, x.v[1] - y, x.v[2] - y, x.v[3] - y);
}
template <typename V>
inline Four<V> operator-(const Four<V>& x, const Four<V>& y) {
  return in_turn(x.v[0] - y.v[0], x.v[1] - y.v[1], x.v[2] - y.v[2], x.v[3] - y.v[3]);
}
template <typename V, typename S>
inline Four<V> operator*(S x, const Four<V>& y) {
  return in_turn(x * y.v[0], x * y.v[1], x * y.v[2], x * y.v[3]);
}
template <typename V>
inline Four<V> operator*(const Four<V>& x, const Four<V>& y) {
  return in_turn(x.v[0] * y.v[0], x.v[1] * y.v[1], x.v[2] * y.v[2], x.v[3] * y.v[3]);
}
template <typename V>
inline Four<V> operator<<(const Four<V>& x, int bits) {
  return in_turn(x.v[0] << bits, x.v[1] << bits, x.v[2] << bits, x.v[3] << bits);
}

// 2ˣ lane by lane, as power_of_two_at has it. Loops over lanes come out of gcc with branches made
// into blends of both results, which take twice as long.
inline Vec<float> cut(Vec<float> x) {
  return smaller(Vec<float>{} + 128.0f, greater(Vec<float>{} - 127.0f, x));
}
inline Vec<double> cut(Vec<double> x) {
  return smaller(Vec<double>{} + 1024.0, greater(Vec<double>{} - 1023.0, x));
}
inline Vec<float> powers_of(Vec<float> x) {
  typedef uint32_t Bits __attribute__((vector_size(kRegisterBytes)));
  return power_of_two_float<Vec<float>, Bits>(cut(x));
}
inline Vec<double> powers_of(Vec<double> x) {
  typedef uint64_t Bits __attribute__((vector_size(kRegisterBytes)));
  return power_of_two_double<Vec<double>, Bits>(cut(x));
}
inline Four<Vec<float>> powers_of(const Four<Vec<float>>& x) {
  typedef uint32_t Bits __attribute__((vector_size(kRegisterBytes)));
  return power_of_two_float<Four<Vec<float>>, Four<Bits>>(
      {{cut(x.v[0]), cut(x.v[1]), cut(x.v[2]), cut(x.v[3])}});
}
inline Four<Vec<double>> powers_of(const Four<Vec<double>>& x) {
  return {{powers_of(x.v[0]), powers_of(x.v[1]), powers_of(x.v[2]), powers_of(x.v[3])}};
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
    const Four<V> powers = powers_of(Four<V>{{e0 - by, e1 - by, e2 - by, e3 - by}});
    sum += (powers.v[0] + powers.v[1]) + (powers.v[2] + powers.v[3]);
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
