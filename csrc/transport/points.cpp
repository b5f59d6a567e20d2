#include <cstring>

#include "core/parallel.h"
#include "transport/points_lanes.h"

namespace regkern::REGKERN_ISA {
namespace {

// Rows that share what a panel is read for: their sums fill the registers.
constexpr int kRows = kRegisterBytes == 64 ? 8 : kRegisterBytes == 32 ? 6 : 4;
// Rows that pass over a panel while it is in the cache, each with its lanes.
constexpr int kGroup = kRows * (32 / kRows + (32 % kRows != 0));
constexpr int64_t kGrain = int64_t{1} << 16;  // pairs of a task, times dimensions

template <typename C>
void fill_bias(const PointPairs& p) {
  const int64_t padded = point_panels(p.m) * kPointPanel;
  C* const bias = static_cast<C*>(p.bias);
  parallel_for(p.batch * padded, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) bias[at] = column_bias<C>(p, at / padded, at % padded);
  });
}

inline bool none_of(const uint8_t* flags, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (flags[i] != 0) return false;
  return true;
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
    if (args.wanted != nullptr && none_of(args.wanted + batch * p.n + row, rows)) return;
    const Side<C> side = side_of<C>(p, batch);
    const Scratch<C> x(kGroup * p.d);
    C most[kGroup * kPointLanes], lanes[kGroup * kPointLanes], sums[kRows * kPointPanel];
    for (int i = 0; i < kGroup * kPointLanes; ++i) {
      most[i] = -static_cast<C>(__builtin_inf());
      lanes[i] = C(0);
    }
    for (int64_t r = 0; r < rows; r += kRows)
      pack_rows<kKernel, kRows>(p, batch, row + r, rows - r, side.scale, x.data() + r * p.d);
    for (int64_t panel = 0; panel < side.count; ++panel) {
      const C* const bias = side.bias + panel * kPointPanel;
      for (int64_t r = 0; r < rows; r += kRows) {
        add_dimensions<kKernel, kRows>(x.data() + r * p.d, side.panels + panel * p.d * kPointPanel,
                                       p.d, sums);
        const int64_t count = rows - r < kRows ? rows - r : int64_t{kRows};
        for (int64_t k = 0; k < count; ++k)
          add_panel<kKernel>(bias, sums + k * kPointPanel, side.scale, most + (r + k) * kPointLanes,
                             lanes + (r + k) * kPointLanes);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (args.wanted != nullptr && !args.wanted[batch * p.n + row + r]) continue;
      out[batch * p.n + row + r] =
          end_row(p, batch, row + r, most + r * kPointLanes, lanes + r * kPointLanes);
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
      pack_rows<kKernel, kRows>(p, batch, row + r, rows - r, side.scale, x.data() + r * p.d);
    for (int64_t panel = 0; panel < side.count; ++panel) {
      const C* const bias = side.bias + panel * kPointPanel;
      for (int64_t r = 0; r < rows; r += kRows) {
        add_dimensions<kKernel, kRows>(x.data() + r * p.d, side.panels + panel * p.d * kPointPanel,
                                       p.d, sums);
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
      pack_rows<kKernel, kRows>(p, batch, row + r, rows - r, side.scale, x.data() + r * p.d);
    memset(out + (batch * p.n + row) * width, 0, static_cast<size_t>(rows * width) * sizeof(C));
    memset(totals + batch * p.n + row, 0, static_cast<size_t>(rows) * sizeof(double));
    for (int64_t first = 0; first < side.count; first += kPointStretch) {
      const int64_t panels =
          side.count - first < kPointStretch ? side.count - first : kPointStretch;
      for (int64_t r = 0; r < rows; r += kRows) {
        const int64_t count = rows - r < kRows ? rows - r : int64_t{kRows};
        for (int64_t panel = 0; panel < panels; ++panel) {
          add_dimensions<kKernel, kRows>(
              x.data() + r * p.d, side.panels + (first + panel) * p.d * kPointPanel, p.d, sums);
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
  const auto as = [&](auto zero) {
    using C = decltype(zero);
    if (args.pairs.kernel == PointKernel::product) return softmin_as<PointKernel::product, C>(args);
    if (args.pairs.kernel == PointKernel::square) return softmin_as<PointKernel::square, C>(args);
    softmin_as<PointKernel::distance, C>(args);
  };
  args.pairs.wide ? as(double{}) : as(float{});
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
