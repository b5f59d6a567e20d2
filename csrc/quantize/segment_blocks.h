#pragma once

#include "core/parallel.h"
#include "core/vec.h"
#include "quantize/segments.h"

// Groups of a tensor by blocks of kBlock elements, for CPU kernels.

namespace regkern::quantize {
namespace {

// Calls copy(place in memory, place in the block, count) for each run of neighbours among the
// elements [k, k + n) of group g.
template <typename F>
inline void for_runs(const Segments& s, int64_t g, int64_t k, int n, F&& copy) {
  int64_t o = k / s.inner, i = k - o * s.inner;
  for (int done = 0; done < n; ++o, i = 0) {
    const int64_t left = s.inner - i;
    const int count = left < n - done ? static_cast<int>(left) : n - done;
    copy((o * s.groups + g) * s.inner + i, done, count);
    done += count;
  }
}

// Elements [k, k + n) of group g; the rest of the block is zero.
template <typename T>
inline void gather_block(const Segments& s, const T* data, int64_t g, int64_t k, int n, T* out) {
  if (s.inner == 1) {
    const T* from = data + k * s.groups + g;
    for (int j = 0; j < n; ++j) out[j] = from[j * s.groups];
  } else {
    for_runs(s, g, k, n, [&](int64_t e, int at, int count) {
      if (count == kBlock)
        memcpy(out, data + e, kBlock * sizeof(T));
      else
        memcpy(out + at, data + e, static_cast<size_t>(count) * sizeof(T));
    });
  }
  for (int j = n; j < kBlock; ++j) out[j] = T{};
}

template <typename T>
inline void scatter_block(const Segments& s, const T* in, int64_t g, int64_t k, int n, T* data) {
  if (s.inner == 1) {
    T* to = data + k * s.groups + g;
    for (int j = 0; j < n; ++j) to[j * s.groups] = in[j];
    return;
  }
  for_runs(s, g, k, n, [&](int64_t e, int at, int count) {
    if (count == kBlock)
      memcpy(data + e, in, kBlock * sizeof(T));
    else
      memcpy(data + e, in + at, static_cast<size_t>(count) * sizeof(T));
  });
}

// Where a whole block stands, if it is one run in memory, else -1.
inline int64_t run_of(const Segments& s, int64_t g, int64_t k, int n) {
  if (n != kBlock) return -1;
  if (s.groups == 1) return k;
  const int64_t o = k / s.inner, i = k - o * s.inner;
  return i + kBlock <= s.inner ? (o * s.groups + g) * s.inner + i : -1;
}

// The same in the type that is computed with.
template <typename T>
inline void load_group(const Segments& s, const void* data, int64_t g, int64_t k, int n,
                       compute_t<T>* out) {
  const int64_t run = run_of(s, g, k, n);
  if (run >= 0) return load_block(static_cast<const T*>(data) + run, out);
  T block[kBlock];
  gather_block(s, static_cast<const T*>(data), g, k, n, block);
  load_block(block, out);
}
template <typename T>
inline void store_group(const Segments& s, const compute_t<T>* in, int64_t g, int64_t k, int n,
                        void* data) {
  const int64_t run = run_of(s, g, k, n);
  if (run >= 0) return store_block<T>(in, static_cast<T*>(data) + run);
  T block[kBlock];
  store_block<T>(in, block);
  scatter_block(s, block, g, k, n, static_cast<T*>(data));
}

// Adds the first n of `value` to the sums (bins, kSumLanes) of a piece. A block starts at lane 0.
inline void add_to_bin(const double* value, int n, double* bin) {
  if (n == kBlock) {
    for (int j = 0; j < kBlock; j += kSumLanes)
#pragma omp simd
      for (int i = 0; i < kSumLanes; ++i) bin[i] += value[j + i];
    return;
  }
  for (int j = 0; j < n; ++j) bin[j % kSumLanes] += value[j];
}

template <typename C>
inline void add_to_bin(const C* value, int n, double* bin) {
  double wide[kBlock];
#pragma omp simd
  for (int j = 0; j < kBlock; ++j) wide[j] = static_cast<double>(value[j]);
  add_to_bin(static_cast<const double*>(wide), n, bin);
}

// Each of them to the bin of its code. Neighbours are in different lanes, so no sum waits for the
// one before.
template <typename C>
inline void add_to_bins(const C* value, const int32_t* code, int n, double* bins) {
  int j = 0;
  for (; j + kSumLanes <= n; j += kSumLanes)
#pragma GCC unroll 16
    for (int i = 0; i < kSumLanes; ++i)
      bins[code[j + i] * kSumLanes + i] += static_cast<double>(value[j + i]);
  for (; j < n; ++j) bins[code[j] * kSumLanes + j % kSumLanes] += static_cast<double>(value[j]);
}

// Calls body(g, k, n, sums) for all blocks; sums are the (bins, kSumLanes) of the piece at hand.
// With no bins it is a plain loop over the blocks.
template <typename F>
inline void for_blocks(const Segments& s, int bins, double* spans, F&& body) {
  const int64_t size = group_size(s), piece = piece_size(bins);
  const int64_t count = span_count(s, bins);
  // Groups that share cache lines are done together, as far as their sums fit into a cache.
  const bool together = s.inner < kBlock && s.groups > 1;
  const int64_t fitting = 1 + (int64_t{1} << 14) / (kSumLanes * (bins + 1));
  const int64_t tile = !together ? 1 : fitting < s.groups ? fitting : s.groups;
  const int64_t tiles = (s.groups + tile - 1) / tile;
  const int64_t width = int64_t{bins} * kSumLanes;
  const int64_t work = piece * kPiecesPerSpan < size ? piece * kPiecesPerSpan : size;
  const int64_t grain = 1 + (int64_t{1} << 14) / (work * tile + 1);
  parallel_for(tiles * count, grain, [&](int64_t begin, int64_t end) {
    const Scratch<double> sums(tile * width);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / count * tile, span = item % count;
      const int64_t last = first + tile < s.groups ? first + tile : s.groups;
      for (int64_t g = first; g < last; ++g)
        for (int b = 0; b < bins; ++b) spans[(g * count + span) * bins + b] = 0.0;
      for (int p = 0; p < kPiecesPerSpan; ++p) {
        const int64_t from = (span * kPiecesPerSpan + p) * piece;
        if (from >= size) break;
        const int64_t to = from + piece < size ? from + piece : size;
        for (int64_t i = 0; i < (last - first) * width; ++i) sums[i] = 0.0;
        for (int64_t k = from; k < to; k += kBlock) {
          const int n = k + kBlock < to ? kBlock : static_cast<int>(to - k);
          for (int64_t g = first; g < last; ++g) body(g, k, n, sums.data() + (g - first) * width);
        }
        for (int64_t g = first; g < last; ++g)
          for (int b = 0; b < bins; ++b) {
            const double* lanes = sums.data() + (g - first) * width + b * kSumLanes;
            double sum = 0.0;
            for (int i = 0; i < kSumLanes; ++i) sum += lanes[i];
            spans[(g * count + span) * bins + b] += sum;
          }
      }
    }
  });
}

// The same for groups that alternate in memory (inner = 1): calls body(e, n, row, g, sums) for
// blocks of n neighbours from element e on, which is in row `row`, a multiple of kBlock elements
// from the first of a piece, and in group g. The sums of a piece are (kSumLanes, groups, bins).
template <typename F>
inline void for_rows(const Segments& s, int bins, double* spans, F&& body) {
  const int64_t piece = piece_size(bins), count = span_count(s, bins), width = s.groups * bins;
  static_assert(kSumLanes * 128 % kBlock == 0);
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    const Scratch<double> sums(width * kSumLanes);
    for (int64_t span = begin; span < end; ++span) {
      for (int64_t i = 0; i < width; ++i) spans[(i / bins * count + span) * bins + i % bins] = 0.0;
      for (int p = 0; p < kPiecesPerSpan; ++p) {
        const int64_t from = (span * kPiecesPerSpan + p) * piece;
        if (from >= s.outer) break;
        const int64_t to = from + piece < s.outer ? from + piece : s.outer;
        for (int64_t i = 0; i < width * kSumLanes; ++i) sums[i] = 0.0;
        int64_t row = from, g = 0;
        for (int64_t e = from * s.groups; e < to * s.groups; e += kBlock) {
          const int64_t left = to * s.groups - e;
          body(e, left < kBlock ? static_cast<int>(left) : kBlock, row, g, sums.data());
          for (g += kBlock; g >= s.groups; g -= s.groups) ++row;
        }
        for (int64_t i = 0; i < width; ++i) {
          double sum = 0.0;
          for (int lane = 0; lane < kSumLanes; ++lane) sum += sums[lane * width + i];
          spans[(i / bins * count + span) * bins + i % bins] += sum;
        }
      }
    }
  });
}

template <typename C>
inline void finish_sums(const Segments& s, const SumsArgs& sums) {
  const int64_t count = span_count(s, sums.bins);
  for (int64_t g = 0; g < s.groups; ++g)
    for (int b = 0; b < sums.outputs; ++b) finish_bin<C>(sums, count, g, b);
  if (sums.total[0] != nullptr) finish_total<C>(sums, count, s.groups);
}

}  // namespace
}  // namespace regkern::quantize
