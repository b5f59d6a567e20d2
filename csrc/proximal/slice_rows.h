#pragma once

#include <cstdint>

#include "core/transpose.h"
#include "core/vec.h"
#include "proximal/slices.h"

// Slices as rows of the compute type, for CPU kernels. Slices whose elements lie side by side are
// taken several at a time, so that whole lines of memory are used.

namespace regkern::proximal {
namespace {

// Slices taken together: four lines of memory of each row, for rows far apart are on pages of their
// own. They are transposed in squares.
constexpr int64_t kRowTile = 64;

// From row to row: whole blocks, and a line more, lest all rows of a tile share the same cache
// sets.
inline int64_t row_pitch(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock + 16; }

// How many slices from this one on, before `end`, are worth taking together.
inline int64_t rows_together(const Slices& s, int64_t slice, int64_t end) {
  if (s.outer == 1 || s.inner != 1) return 1;
  const int64_t in_batch = s.count - slice % s.count;
  const int64_t left = end - slice < in_batch ? end - slice : in_batch;
  return left < kRowTile ? left : kRowTile;
}

template <typename T, typename C>
inline void gather_rows(const T* x, const Slices& s, int64_t slice, int64_t rows, int64_t pitch,
                        C* out) {
  const T* from = x + slice_start(s, slice);
  if (s.outer == 1) return load_elements(from, s.inner, out);
  const int64_t step = s.count * s.inner;
  if (s.inner != 1) {
    for (int64_t o = 0; o < s.outer; ++o)
      for (int64_t i = 0; i < s.inner; ++i) out[o * s.inner + i] = widen(from[o * step + i]);
    return;
  }
  // Lines of memory first, then their transposition: a column of x has all its lines in one set of
  // the cache where rows are a power of two long.
  for (int64_t o = 0; o < s.outer; o += kSquare) {
    const int64_t height = o + kSquare < s.outer ? kSquare : s.outer - o;
    for (int64_t r = 0; r < rows; r += kSquare) {
      const int64_t width = r + kSquare < rows ? kSquare : rows - r;
      const T* const corner = from + o * step + r;
      C square[kSquare][kSquare];
      if (width == kSquare && height == kSquare) {
        for (int k = 0; k < kSquare; ++k) {
          __builtin_prefetch(corner + (k + kSquare) * step);
#pragma omp simd
          for (int i = 0; i < kSquare; ++i) square[k][i] = widen(corner[k * step + i]);
        }
        transpose_square(square, pitch, out + r * pitch + o);
        continue;
      }
      for (int64_t k = 0; k < height; ++k)
        for (int64_t i = 0; i < width; ++i)
          out[(r + i) * pitch + o + k] = widen(corner[k * step + i]);
    }
  }
}

template <typename T, typename C>
inline void scatter_rows(const C* rows_in, const Slices& s, int64_t slice, int64_t rows,
                         int64_t pitch, T* y) {
  T* to = y + slice_start(s, slice);
  if (s.outer == 1) return store_elements(rows_in, s.inner, to);
  const int64_t step = s.count * s.inner;
  if (s.inner != 1) {
    for (int64_t o = 0; o < s.outer; ++o)
      for (int64_t i = 0; i < s.inner; ++i) narrow(rows_in[o * s.inner + i], to + o * step + i);
    return;
  }
  for (int64_t o = 0; o < s.outer; o += kSquare) {
    const int64_t height = o + kSquare < s.outer ? kSquare : s.outer - o;
    for (int64_t r = 0; r < rows; r += kSquare) {
      const int64_t width = r + kSquare < rows ? kSquare : rows - r;
      T* const corner = to + o * step + r;
      if (width == kSquare && height == kSquare) {
        C square[kSquare][kSquare], turned[kSquare][kSquare];
        for (int i = 0; i < kSquare; ++i)
          memcpy(square[i], rows_in + (r + i) * pitch + o, sizeof(square[i]));
        transpose_square(square, kSquare, turned[0]);
        for (int k = 0; k < kSquare; ++k) {
          __builtin_prefetch(corner + (k + kSquare) * step, 1);
#pragma omp simd
          for (int i = 0; i < kSquare; ++i) narrow(turned[k][i], corner + k * step + i);
        }
        continue;
      }
      for (int64_t k = 0; k < height; ++k)
        for (int64_t i = 0; i < width; ++i)
          narrow(rows_in[(r + i) * pitch + o + k], corner + k * step + i);
    }
  }
}

// Lanes whose sums are added up in pairs, as a warp does with shuffles.
constexpr int kSumLanes = 32;
inline double sum_of_lanes(double lanes[kSumLanes]) {
  for (int offset = kSumLanes / 2; offset > 0; offset /= 2)
    for (int l = 0; l < offset; ++l) lanes[l] += lanes[l + offset];
  return lanes[0];
}

}  // namespace
}  // namespace regkern::proximal
