#include "quantize/gradient.h"

#include "core/parallel.h"
#include "core/vec.h"
#include "quantize/thresholds.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

constexpr int kStep = kRandomBlock;

// Σ lanes in halves.
double lane_sum(double lanes[kLanes]) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma omp simd
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

// A lane has kSegment / kLanes numbers at most, which it adds in their own type.
template <typename T>
double sum_of(const T* values, int64_t n) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) lanes[l] += values[i + l];
  }
  for (int l = 0; i + l < n; ++l) lanes[l] += values[i + l];
  double wide[kLanes];
  for (int l = 0; l < kLanes; ++l) wide[l] = static_cast<double>(lanes[l]);
  return lane_sum(wide);
}

template <typename C>
struct Tile {
  alignas(64) C g[kSegment + kBlock], x[kSegment + kBlock], dscale[kSegment], dzero[kSegment];
  alignas(64) C threshold[kSegment + 2 * kStep];
};

template <typename C, Kind kKind, Rounding kRounding>
void tile_as(const GradientArgs& args, int n, int skip, const Scale<C>* scales, bool one_scale,
             Tile<C>& t) {
  Rounder r = args.rounder;
  r.grid.kind = kKind;
  const auto gradient = [&](int i, const Scale<C>& s) {
    C threshold = fixed_threshold<C>(kRounding);
    if constexpr (is_random(kRounding)) threshold = t.threshold[skip + i];
    const Gradients<C> d = gradients(t.g[i], t.x[i], s, r, kRounding, threshold);
    t.g[i] = d.dx;
    t.dscale[i] = d.dscale;
    t.dzero[i] = d.dzero;
  };
  if (one_scale) {
    const Scale<C> s = scales[0];
#pragma omp simd
    for (int i = 0; i < n; ++i) gradient(i, s);
  } else {
#pragma omp simd
    for (int i = 0; i < n; ++i) gradient(i, scales[i]);
  }
}

template <typename C>
using TileFunction = void (*)(const GradientArgs&, int, int, const Scale<C>*, bool, Tile<C>&);

template <typename C, Kind kKind>
TileFunction<C> tile_function(Rounding rounding) {
  switch (rounding) {
    case Rounding::nearest_even:
      return tile_as<C, kKind, Rounding::nearest_even>;
    case Rounding::nearest_away:
      return tile_as<C, kKind, Rounding::nearest_away>;
    case Rounding::toward_zero:
      return tile_as<C, kKind, Rounding::toward_zero>;
    case Rounding::floor:
      return tile_as<C, kKind, Rounding::floor>;
    case Rounding::stochastic:
      return tile_as<C, kKind, Rounding::stochastic>;
    default:
      return tile_as<C, kKind, Rounding::noise>;
  }
}

// One row's columns [c0, c0 + n): dx is written, the terms of the sums stand in the tile.
template <typename T>
void differentiate(const GradientArgs& args, TileFunction<compute_t<T>> function, int64_t e, int n,
                   const Scale<compute_t<T>>* scales, bool one_scale, Tile<compute_t<T>>& t) {
  load_elements(static_cast<const T*>(args.g) + e, n, t.g);
  load_elements(static_cast<const T*>(args.x) + e, n, t.x);
  const int skip = args.seed != nullptr ? static_cast<int>(e % kStep) : 0;
  if (args.seed != nullptr)
    draw_thresholds(args.rounder, load_seed(args.seed), e - skip, n + skip, t.threshold);
  function(args, n, skip, scales, one_scale, t);
  store_elements(t.g, n, static_cast<T*>(args.dx) + e);
}

template <typename T>
void first_sums(const GradientArgs& args) {
  using C = compute_t<T>;
  const Blocks& b = args.blocks;
  const TileFunction<C> function = args.rounder.grid.kind == Kind::integer
                                       ? tile_function<C, Kind::integer>(args.rounder.rounding)
                                       : tile_function<C, Kind::floating>(args.rounder.rounding);
  const int64_t down = blocks_down(b), across = blocks_across(b), along = segments_along(b);
  const int64_t count = partial_count(b), all = count * block_count(b);
  double* zero_sums = args.partial + 2 * all;
  const bool zeros = args.dzero != nullptr;
  if (!by_columns(b)) {
    // A piece of work is a segment of a row; neighbours in memory come one after the other.
    const int64_t per_row = across * along;
    const int64_t usual = b.block_cols < kSegment ? b.block_cols : kSegment;
    parallel_for(b.outer * b.rows * per_row, 1 + (int64_t{1} << 15) / (usual + 1),
                 [&](int64_t begin, int64_t end) {
                   Tile<C> tile;
                   for (int64_t item = begin; item < end; ++item) {
                     const int64_t segment = item % along, block_col = item / along % across;
                     const int64_t row = item / per_row, o = row / b.rows, r = row % b.rows;
                     const int64_t c0 = block_col * b.block_cols + segment * kSegment;
                     int64_t c1 = (block_col + 1) * b.block_cols < b.cols
                                      ? (block_col + 1) * b.block_cols
                                      : b.cols;
                     c1 = c0 + kSegment < c1 ? c0 + kSegment : c1;
                     const int n = c1 > c0 ? static_cast<int>(c1 - c0) : 0;
                     const int64_t block = block_of(b, o, r, block_col * b.block_cols);
                     const int64_t slot =
                         block * count +
                         ((b.shared ? o : 0) * b.block_rows + r % b.block_rows) * along + segment;
                     if (n > 0) {
                       const Scale<C> s = given_scale<C>(args.scale, block);
                       differentiate<T>(args, function, row * b.cols + c0, n, &s, true, tile);
                     }
                     args.partial[slot] = sum_of(tile.dscale, n);
                     if (zeros) zero_sums[slot] = sum_of(tile.dzero, n);
                   }
                 });
    return;
  }
  // A piece of work is kSegment rows of up to kWidth columns: a lane has rows of its own.
  constexpr int kWidth = 64;
  const int64_t bands = (b.cols + kWidth - 1) / kWidth;
  parallel_for(b.outer * down * along * bands, 1, [&](int64_t begin, int64_t end) {
    Tile<C> tile;
    Scratch<C> lanes(2 * kLanes * kWidth);
    Scratch<double> wide(2 * kLanes * kWidth);
    Scale<C> scales[kWidth];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t band = item % bands, segment = item / bands % along;
      const int64_t block_row = item / (bands * along) % down, o = item / (bands * along * down);
      const int64_t c0 = band * kWidth;
      const int n = static_cast<int>(b.cols - c0 < kWidth ? b.cols - c0 : kWidth);
      for (int i = 0; i < n; ++i)
        scales[i] = given_scale<C>(args.scale, block_of(b, o, block_row * b.block_rows, c0 + i));
      for (int i = 0; i < 2 * kLanes * kWidth; ++i) lanes[i] = C(0);
      const int64_t first = block_row * b.block_rows + segment * kSegment;
      int64_t last =
          (block_row + 1) * b.block_rows < b.rows ? (block_row + 1) * b.block_rows : b.rows;
      last = first + kSegment < last ? first + kSegment : last;
      for (int64_t r = first; r < last; ++r) {
        differentiate<T>(args, function, (o * b.rows + r) * b.cols + c0, n, scales, false, tile);
        C* lane = lanes.data() + (r - first) % kLanes * kWidth;
#pragma omp simd
        for (int i = 0; i < n; ++i) {
          lane[i] += tile.dscale[i];
          lane[kLanes * kWidth + i] += tile.dzero[i];
        }
      }
      for (int i = 0; i < 2 * kLanes * kWidth; ++i) wide[i] = static_cast<double>(lanes[i]);
      for (int half = kLanes / 2; half > 0; half /= 2)
        for (int l = 0; l < half; ++l)
          for (int k = 0; k < 2; ++k) {
            double* low = wide.data() + (k * kLanes + l) * kWidth;
            for (int i = 0; i < n; ++i) low[i] += low[half * kWidth + i];
          }
      for (int i = 0; i < n; ++i) {
        const int64_t block = block_of(b, o, block_row * b.block_rows, c0 + i);
        const int64_t slot = block * count +
                             ((b.shared ? o : 0) * b.block_cols + (c0 + i) % b.block_cols) * along +
                             segment;
        args.partial[slot] = wide[i];
        if (zeros) zero_sums[slot] = wide[kLanes * kWidth + i];
      }
    }
  });
}

}  // namespace

void quantize_gradient(const GradientArgs& args, Context) {
  const Blocks& b = args.blocks;
  const int64_t blocks = block_count(b), count = partial_count(b), all = count * blocks;
  const int sums = args.dzero != nullptr ? 2 : 1;
  // What no segment fills: the rows and columns that a short last block lacks.
  for (int k = 0; k < sums; ++k)
    for (int64_t i = 0; i < all; ++i) args.partial[2 * k * all + i] = 0.0;
  dispatch_floating(args.dtype, [&](auto zero) { first_sums<decltype(zero)>(args); });
  for (int k = 0; k < sums; ++k) {
    double* from = args.partial + 2 * k * all;
    double* to = from + all;
    for (int64_t left = count; left > 1;) {
      const int64_t next = (left + kSegment - 1) / kSegment;
      for (int64_t p = 0; p < blocks; ++p)
        for (int64_t i = 0; i < next; ++i) {
          const int64_t first = i * kSegment;
          const int64_t n = left - first < kSegment ? left - first : kSegment;
          to[p * next + i] = sum_of(from + p * left + first, n);
        }
      double* swap = from;
      from = to;
      to = swap;
      left = next;
    }
    void* out = k == 0 ? args.dscale : args.dzero;
    for (int64_t p = 0; p < blocks; ++p) {
      if (args.dtype == Dtype::float64)
        static_cast<double*>(out)[p] = from[p];
      else
        static_cast<float*>(out)[p] = static_cast<float>(from[p]);
    }
  }
}

}  // namespace regkern::REGKERN_ISA
