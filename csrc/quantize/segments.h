#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"

// A tensor as (outer, groups, inner) in memory order, and sums over its groups, whose order is the
// same everywhere: element k = o · inner + i of a group belongs to lane k mod 16 of its piece. A
// lane adds up its elements, a piece its lanes, a span its pieces and the total its spans, each one
// after the other, in double.

namespace regkern::quantize {

struct Segments {
  int64_t outer, groups, inner;
};

REGKERN_HD int64_t group_size(const Segments& s) { return s.outer * s.inner; }
REGKERN_HD int64_t element_count(const Segments& s) { return s.outer * s.groups * s.inner; }

// Where element k of group g stands.
REGKERN_HD int64_t element_of(const Segments& s, int64_t g, int64_t k) {
  const int64_t o = k / s.inner;
  return (o * s.groups + g) * s.inner + (k - o * s.inner);
}

constexpr int kSumLanes = 16;
constexpr int kPiecesPerSpan = 8;

// Elements of a piece. A piece has `bins` sums per lane, so it grows with them.
REGKERN_HD int64_t piece_size(int bins) {
  const int64_t steps = bins > 16 ? int64_t{8} * bins : 128;
  return steps * kSumLanes;
}
REGKERN_HD int64_t piece_count(const Segments& s, int bins) {
  return (group_size(s) + piece_size(bins) - 1) / piece_size(bins);
}
REGKERN_HD int64_t span_count(const Segments& s, int bins) {
  return (piece_count(s, bins) + kPiecesPerSpan - 1) / kPiecesPerSpan;
}

// What becomes of the sums: the first `outputs` bins of every group, each times a factor, and the
// last bin summed over the groups, times one of its own.
struct SumsArgs {
  Dtype dtype;   // of the results: float32 or float64
  int bins = 0;  // sums per group
  int outputs = 0;
  double* lanes;  // (groups, pieces, kSumLanes, bins), scratch of the GPU
  double* spans;  // (groups, spans, bins), scratch
  void* out;      // (groups, outputs)
  double factor;  // times *factor_tensor, where there is one
  const void* factor_tensor;
  void* total[2];  // where the sum over the groups goes, or null
  double total_factor;
};

template <typename C>
REGKERN_HD double factor_of(const SumsArgs& s) {
  if (s.factor_tensor == nullptr) return s.factor;
  return s.factor * static_cast<double>(*static_cast<const C*>(s.factor_tensor));
}

template <typename C>
REGKERN_HD void finish_bin(const SumsArgs& s, int64_t spans, int64_t g, int bin) {
  double sum = 0.0;
  for (int64_t i = 0; i < spans; ++i) sum += s.spans[(g * spans + i) * s.bins + bin];
  static_cast<C*>(s.out)[g * s.outputs + bin] = static_cast<C>(sum * factor_of<C>(s));
}

template <typename C>
REGKERN_HD void finish_total(const SumsArgs& s, int64_t spans, int64_t groups) {
  double sum = 0.0;
  for (int64_t i = 0; i < groups * spans; ++i) sum += s.spans[i * s.bins + s.bins - 1];
  for (int i = 0; i < 2; ++i)
    if (s.total[i] != nullptr) *static_cast<C*>(s.total[i]) = static_cast<C>(sum * s.total_factor);
}

}  // namespace regkern::quantize
