#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"
#include "core/parallel.h"
#include "core/tensor_list.h"

// Sums over lists of tensors, in an order that is the same everywhere. A tensor is cut into spans
// of kSpan elements, and kSpanLanes lanes take turns at the elements of a span: element e is for
// lane e mod kSpanLanes. Each lane adds up in order, in double. Lanes are added in groups of
// kLaneGroup neighbours by halves, the groups of a span by halves, and the spans as lanes are: span
// i is for lane i mod kTotalLanes, and these are added by halves.
//
// A row has `numel` and
//
//     int64_t span;   the number of its first span in the list

namespace regkern {

constexpr int64_t kSpan = int64_t{1} << 14;
constexpr int kSpanLanes = 2048;
constexpr int kLaneGroup = 8;
constexpr int kTotalLanes = 256;

REGKERN_HD int64_t span_count(int64_t numel) { return (numel + kSpan - 1) / kSpan; }

REGKERN_HD double group_sum(const double v[kLaneGroup]) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

namespace {

template <int N>
double sum_by_halves(double* v) {
  for (int half = N / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

// The sum of what the spans [begin, end) hold, `stride` numbers apart.
inline double total_of_spans(const double* spans, int64_t begin, int64_t end, int stride) {
  double lanes[kTotalLanes] = {};
  for (int64_t i = begin; i < end; ++i) lanes[(i - begin) % kTotalLanes] += spans[i * stride];
  return sum_by_halves<kTotalLanes>(lanes);
}

// spans[span · K + k] ← the k-th sum of a span. block(row, e, n, v) fills v[k][i] for the elements
// e … e + n − 1 (n ≤ kSumBlock, e a multiple of it) and leaves the rest at zero; it may write what
// else it finds.
constexpr int kSumBlock = 64;

template <int K, typename C, typename Row, typename F>
void sum_spans(const Row* rows, int64_t count, double* spans, F&& block) {
  if (count == 0) return;
  const int64_t all = rows[count - 1].span + span_count(rows[count - 1].numel);
  parallel_for(all, 4, [&](int64_t begin, int64_t end) {
    const Scratch<double> lanes(int64_t{K} * kSpanLanes);
    int64_t row = 0;
    for (int64_t above = count; above - row > 1;) {
      const int64_t middle = row + (above - row) / 2;
      (rows[middle].span <= begin ? row : above) = middle;
    }
    for (int64_t span = begin; span < end; ++span) {
      while (span >= rows[row].span + span_count(rows[row].numel)) ++row;
      const Row& r = rows[row];
      const int64_t from = (span - r.span) * kSpan;
      const int64_t to = from + kSpan < r.numel ? from + kSpan : r.numel;
      const int64_t used = to - from < kSpanLanes ? to - from : kSpanLanes;
      const int64_t filled = (used + kSumBlock - 1) / kSumBlock * kSumBlock;
      for (int k = 0; k < K; ++k)
        memset(lanes.data() + k * kSpanLanes, 0, static_cast<size_t>(kSpanLanes) * sizeof(double));
      C v[K][kSumBlock];
      for (int64_t e = from; e < to; e += kSumBlock) {
        const int64_t n = to - e < kSumBlock ? to - e : kSumBlock;
        if (n < kSumBlock) memset(v, 0, sizeof(v));
        block(r, e, n, v);
        for (int k = 0; k < K; ++k) {
          double* lane = lanes.data() + k * kSpanLanes + e % kSpanLanes;
#pragma omp simd
          for (int i = 0; i < kSumBlock; ++i) lane[i] += static_cast<double>(v[k][i]);
        }
      }
      for (int k = 0; k < K; ++k) {
        double* lane = lanes.data() + k * kSpanLanes;
        double groups[kSpanLanes / kLaneGroup] = {};
        for (int64_t i = 0; i < filled; i += kLaneGroup)
          groups[i / kLaneGroup] = group_sum(lane + i);
        spans[span * K + k] = sum_by_halves<kSpanLanes / kLaneGroup>(groups);
      }
    }
  });
}

}  // namespace
}  // namespace regkern
