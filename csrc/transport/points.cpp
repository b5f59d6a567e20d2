#include "transport/points.h"

#include <cstring>

#include "core/parallel.h"
#include "core/registers.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

// Rows that share what a panel is read for: their sums fill the registers.
constexpr int kRows = kRegisterBytes == 64 ? 8 : kRegisterBytes == 32 ? 6 : 4;
// Rows that pass over a panel while it is in the cache, each with its lanes.
constexpr int kGroup = kRows * (32 / kRows + (32 % kRows != 0));
constexpr int64_t kGrain = int64_t{1} << 16;  // pairs of a task, times dimensions

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
template <PointKernel kKernel, typename C>
inline void pack_rows(const PointPairs& p, int64_t batch, int64_t i, int64_t count, C scale, C* x) {
  const C* const rows = static_cast<const C*>(p.rows) + (batch * p.n + i) * p.d;
  for (int r = 0; r < kRows; ++r)
    for (int64_t k = 0; k < p.d; ++k) {
      const C value = r < count ? rows[r * p.d + k] : C(0);
      x[k * kRows + r] = kKernel == PointKernel::product ? value * scale : value;
    }
}

// The sums over the dimensions of kRows rows with a panel: sums[r kPointPanel + column].
template <PointKernel kKernel, typename C>
inline void add_dimensions(const C* x, const C* panel, int64_t d, C* sums) {
  constexpr int kW = kWidth<C>;
  for (int column = 0; column < kPointPanel; column += 2 * kW) {
    Vec<C> first[kRows], second[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      first[r] = Vec<C>{};
      second[r] = Vec<C>{};
    }
    for (int64_t k = 0; k < d; ++k) {
      const Vec<C> y0 = load(panel + k * kPointPanel + column);
      const Vec<C> y1 = load(panel + k * kPointPanel + column + kW);
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
      store(sums + r * kPointPanel + column, first[r]);
      store(sums + r * kPointPanel + column + kW, second[r]);
    }
  }
}

template <typename V>
inline V roots_of(V x) {
  V roots;
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) roots[i] = regkern::sqrt(x[i]);
  return roots;
}

template <PointKernel kKernel, typename C>
inline Vec<C> exponents_of(const C* bias, const C* sums, C scale) {
  if constexpr (kKernel == PointKernel::product) return load(bias) + load(sums);
  return load(bias) - scale * roots_of(load(sums));
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
      return exponents_of<kKernel>(bias + g * kPointLanes + l, sums + g * kPointLanes + l, scale);
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

template <typename C>
void fill_bias(const PointPairs& p) {
  const int64_t padded = point_panels(p.m) * kPointPanel;
  C* const bias = static_cast<C*>(p.bias);
  parallel_for(p.batch * padded, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) bias[at] = column_bias<C>(p, at / padded, at % padded);
  });
}

// f(batch, first row, rows) for groups of rows, in parallel.
template <typename F>
void for_each_group(const PointPairs& p, const F& f) {
  const int64_t groups = (p.n + kGroup - 1) / kGroup;
  const int64_t grain = 1 + kGrain / (kGroup * (p.m + 1) * (p.d / 8 + 1));
  parallel_for(p.batch * groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t batch = task / groups, row = task % groups * kGroup;
      f(batch, row, p.n - row < kGroup ? p.n - row : int64_t{kGroup});
    }
  });
}

template <typename C>
struct Side {
  const C* panels;
  const C* bias;
  int64_t count;
  C scale;
};
template <typename C>
inline Side<C> side_of(const PointPairs& p, int64_t batch) {
  const int64_t count = point_panels(p.m);
  return {static_cast<const C*>(p.panels) + batch * count * p.d * kPointPanel,
          static_cast<const C*>(p.bias) + batch * count * kPointPanel, count,
          pair_scale<C>(p, batch)};
}

template <PointKernel kKernel, typename C>
void softmin_as(const PointSoftminArgs& args) {
  const PointPairs& p = args.pairs;
  fill_bias<C>(p);
  double* const out = args.out;
  for_each_group(p, [&](int64_t batch, int64_t row, int64_t rows) {
    if (args.done != nullptr && args.done[batch]) return;
    const Side<C> side = side_of<C>(p, batch);
    const Scratch<C> x(kGroup * p.d);
    C most[kGroup * kPointLanes], lanes[kGroup * kPointLanes], sums[kRows * kPointPanel];
    for (int i = 0; i < kGroup * kPointLanes; ++i) {
      most[i] = -static_cast<C>(__builtin_inf());
      lanes[i] = C(0);
    }
    for (int64_t r = 0; r < rows; r += kRows)
      pack_rows<kKernel>(p, batch, row + r, rows - r, side.scale, x.data() + r * p.d);
    for (int64_t panel = 0; panel < side.count; ++panel) {
      const C* const bias = side.bias + panel * kPointPanel;
      for (int64_t r = 0; r < rows; r += kRows) {
        add_dimensions<kKernel>(x.data() + r * p.d, side.panels + panel * p.d * kPointPanel, p.d,
                                sums);
        const int64_t count = rows - r < kRows ? rows - r : int64_t{kRows};
        for (int64_t k = 0; k < count; ++k)
          add_panel<kKernel>(bias, sums + k * kPointPanel, side.scale, most + (r + k) * kPointLanes,
                             lanes + (r + k) * kPointLanes);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      C* const sum = lanes + r * kPointLanes;
      C* const top = most + r * kPointLanes;
      const C all = largest(top), by = shift_by(all);
#pragma omp simd
      for (int l = 0; l < kPointLanes; ++l) sum[l] *= power_of_two_at(top[l] - by);
      out[batch * p.n + row + r] = softmin_of(p, batch, row + r, by, fold(sum));
    }
  });
}

template <PointKernel kKernel, typename C>
void argmax_as(const PointArgmaxArgs& args) {
  const PointPairs& p = args.pairs;
  fill_bias<C>(p);
  for_each_group(p, [&](int64_t batch, int64_t row, int64_t rows) {
    const Side<C> side = side_of<C>(p, batch);
    const Scratch<C> x(kGroup * p.d);
    C most[kGroup * kPointLanes], sums[kRows * kPointPanel];
    int32_t places[kGroup * kPointLanes];
    for (int i = 0; i < kGroup * kPointLanes; ++i) {
      most[i] = -static_cast<C>(__builtin_inf());
      places[i] = i % kPointLanes;
    }
    for (int64_t r = 0; r < rows; r += kRows)
      pack_rows<kKernel>(p, batch, row + r, rows - r, side.scale, x.data() + r * p.d);
    for (int64_t panel = 0; panel < side.count; ++panel) {
      const C* const bias = side.bias + panel * kPointPanel;
      for (int64_t r = 0; r < rows; r += kRows) {
        add_dimensions<kKernel>(x.data() + r * p.d, side.panels + panel * p.d * kPointPanel, p.d,
                                sums);
        for (int64_t k = 0; k < kRows && r + k < rows; ++k)
          for (int g = 0; g < kPointGroups; ++g) {
            C* const top = most + (r + k) * kPointLanes;
            int32_t* const place = places + (r + k) * kPointLanes;
            const C* const b = bias + g * kPointLanes;
            const C* const s = sums + k * kPointPanel + g * kPointLanes;
            const auto first = static_cast<int32_t>(panel * kPointPanel + g * kPointLanes);
#pragma omp simd
            for (int l = 0; l < kPointLanes; ++l) {
              const C t = exponent_of<kKernel>(b[l], s[l], side.scale);
              place[l] = t > top[l] ? first + l : place[l];
              top[l] = t > top[l] ? t : top[l];
            }
          }
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      int best = 0;
      const C* const top = most + r * kPointLanes;
      const int32_t* const place = places + r * kPointLanes;
      for (int l = 1; l < kPointLanes; ++l)
        if (top[l] > top[best] || (top[l] == top[best] && place[l] < place[best])) best = l;
      args.place[batch * p.n + row + r] = place[best];
    }
  });
}

template <PointKernel kKernel, int kPower, typename C>
void apply_as(const PointApplyArgs& args) {
  const PointPairs& p = args.pairs;
  fill_bias<C>(p);
  const int64_t width = args.width;
  C* const out = static_cast<C*>(args.out);
  double* const totals = args.sums;
  for_each_group(p, [&](int64_t batch, int64_t row, int64_t rows) {
    const Side<C> side = side_of<C>(p, batch);
    const C* const values =
        static_cast<const C*>(args.values) + batch * side.count * width * kPointPanel;
    constexpr int kRoom = kPointStretch * kPointPanel;
    const Scratch<C> x(kGroup * p.d), entries(kRows * kRoom);
    C sums[kRows * kPointPanel];
    for (int64_t r = 0; r < rows; r += kRows)
      pack_rows<kKernel>(p, batch, row + r, rows - r, side.scale, x.data() + r * p.d);
    memset(out + (batch * p.n + row) * width, 0, static_cast<size_t>(rows * width) * sizeof(C));
    memset(totals + batch * p.n + row, 0, static_cast<size_t>(rows) * sizeof(double));
    for (int64_t first = 0; first < side.count; first += kPointStretch) {
      const int64_t panels =
          side.count - first < kPointStretch ? side.count - first : kPointStretch;
      for (int64_t r = 0; r < rows; r += kRows) {
        const int64_t count = rows - r < kRows ? rows - r : int64_t{kRows};
        for (int64_t panel = 0; panel < panels; ++panel) {
          add_dimensions<kKernel>(x.data() + r * p.d,
                                  side.panels + (first + panel) * p.d * kPointPanel, p.d, sums);
          const C* const bias = side.bias + (first + panel) * kPointPanel;
          for (int64_t k = 0; k < count; ++k) {
            const C mine = row_bias<C>(args, batch, row + r + k);
            const C* const s = sums + k * kPointPanel;
            C* const e = entries.data() + k * kRoom + panel * kPointPanel;
            const C scale = side.scale;
#pragma omp simd
            for (int j = 0; j < kPointPanel; ++j)
              e[j] =
                  weighted_entry<kPower>(exponent_of<kKernel>(bias[j], s[j], scale) + mine, s[j]);
          }
        }
        for (int64_t k = 0; k < count; ++k) {
          const C* const e = entries.data() + k * kRoom;
          const int64_t at = batch * p.n + row + r + k;
          C lanes[kPointLanes] = {};
          for (int64_t g = 0; g < panels * kPointGroups; ++g) {
#pragma omp simd
            for (int l = 0; l < kPointLanes; ++l) lanes[l] += e[g * kPointLanes + l];
          }
          totals[at] += static_cast<double>(fold(lanes));
        }
        for (int64_t c = 0; c < width; ++c) {
          constexpr int kW = kWidth<C>, kVectors = kPointLanes / kW;
          for (int64_t k = 0; k < count; ++k) {
            const C* const e = entries.data() + k * kRoom;
            Vec<C> sum[kVectors];
#pragma GCC unroll 16
            for (int v = 0; v < kVectors; ++v) sum[v] = Vec<C>{};
            for (int64_t panel = 0; panel < panels; ++panel) {
              const C* const given = values + ((first + panel) * width + c) * kPointPanel;
              const C* const entry = e + panel * kPointPanel;
              for (int g = 0; g < kPointGroups; ++g) {
#pragma GCC unroll 16
                for (int v = 0; v < kVectors; ++v)
                  sum[v] += load(entry + g * kPointLanes + v * kW) *
                            load(given + g * kPointLanes + v * kW);
              }
            }
            C lanes[kPointLanes];
            for (int v = 0; v < kVectors; ++v) store(lanes + v * kW, sum[v]);
            out[(batch * p.n + row + r + k) * width + c] += fold(lanes);
          }
        }
      }
    }
  });
}

template <typename C>
void apply_of(const PointApplyArgs& args) {
  if (args.pairs.kernel == PointKernel::product) return apply_as<PointKernel::product, 0, C>(args);
  if (args.power == 0) return apply_as<PointKernel::distance, 0, C>(args);
  if (args.power > 0) return apply_as<PointKernel::distance, 1, C>(args);
  apply_as<PointKernel::distance, -1, C>(args);
}

}  // namespace

void transport_points_softmin(const PointSoftminArgs& args, Context) {
  const bool product = args.pairs.kernel == PointKernel::product;
  if (args.pairs.wide)
    product ? softmin_as<PointKernel::product, double>(args)
            : softmin_as<PointKernel::distance, double>(args);
  else
    product ? softmin_as<PointKernel::product, float>(args)
            : softmin_as<PointKernel::distance, float>(args);
}

void transport_points_argmax(const PointArgmaxArgs& args, Context) {
  const bool product = args.pairs.kernel == PointKernel::product;
  if (args.pairs.wide)
    product ? argmax_as<PointKernel::product, double>(args)
            : argmax_as<PointKernel::distance, double>(args);
  else
    product ? argmax_as<PointKernel::product, float>(args)
            : argmax_as<PointKernel::distance, float>(args);
}

void transport_points_apply(const PointApplyArgs& args, Context) {
  args.pairs.wide ? apply_of<double>(args) : apply_of<float>(args);
}

}  // namespace regkern::REGKERN_ISA
