#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/square_sum.h"
#include "proximal/laws.h"

// Groups of the elements of tensors, their sums of squares, and what a group prox makes of them.
//
// A tensor is a view (outer, slices, inner): slice s is all elements (·, s, ·). A slice is a group
// of its own, or `map` tells the group of every slice of all tensors, -1 for none, and `starts` and
// `members` list the slices of every group.
//
// The sum of a slice has one order. Contiguous runs (outer = 1), and runs of kColumnsBelow
// elements or more, are added as core/square_sum.h says, and in double in order of `outer`. Shorter
// ones go by columns j = (slice, inner): chunks of kChunkRows rows, a chunk's column added in
// double in order; then the chunks of a column in order, then the columns of a slice in order. The
// slices of a group are added in double as kGroupLanes lanes, folded in halves.

namespace regkern::proximal {

constexpr int64_t kColumnsBelow = 256;
constexpr int64_t kChunkRows = 64;
constexpr int kGroupLanes = 32;

// What an element becomes before its group is looked at.
enum class Before { nothing, positive, soft, weighted };

// A tensor of a list. Row-major; numel and first as core/tensor_list.h has them.
struct GroupRow {
  const void* x;
  const void* z;   // the other factor of products, the other term of a combination, or null
  void* y;         // where the result goes; it may be x
  const void* l1;  // weights of the soft threshold, or null
  int64_t outer, slices, inner;
  int64_t numel, first;
  int64_t slice;    // the number of its first slice in the list
  int64_t partial;  // where its partial sums begin
  double weight;    // of each of its slices' groups, where there is no map
};

REGKERN_HD bool by_columns(const GroupRow& row) {
  return row.outer > 1 && row.inner < kColumnsBelow;
}
REGKERN_HD int64_t segments_of(const GroupRow& row) {
  return (row.inner + kSegment - 1) / kSegment;
}
REGKERN_HD int64_t chunks_of(const GroupRow& row) {
  return (row.outer + kChunkRows - 1) / kChunkRows;
}
// Partial sums of a tensor: one per segment of a run, or per chunk of a column.
REGKERN_HD int64_t partials_of(const GroupRow& row) {
  return by_columns(row) ? chunks_of(row) * row.slices * row.inner
                         : row.outer * row.slices * segments_of(row);
}

// The sum of a slice from its partial sums.
REGKERN_HD double sum_partials(const GroupRow& row, const double* partials, int64_t slice) {
  const double* const all = partials + row.partial;
  double total = 0.0;
  if (by_columns(row)) {
    const int64_t columns = row.slices * row.inner, chunks = chunks_of(row);
    for (int64_t i = 0; i < row.inner; ++i) {
      double column = 0.0;
      for (int64_t c = 0; c < chunks; ++c) column += all[c * columns + slice * row.inner + i];
      total += column;
    }
    return total;
  }
  const int64_t segments = segments_of(row);
  for (int64_t o = 0; o < row.outer; ++o) {
    double run = 0.0;
    for (int64_t g = 0; g < segments; ++g) run += all[(o * row.slices + slice) * segments + g];
    total += run;
  }
  return total;
}

// |x| − t with the sign of x, 0 up to t. Threshold 0 is the identity bit for bit.
template <typename C>
REGKERN_HD C soft_threshold(C x, C t) {
  const C magnitude = fabs(x);
  const C shrunk = magnitude <= t ? C(0) : copysign(magnitude - t, x);
  return t == C(0) ? x : shrunk;
}

template <typename C>
REGKERN_HD C positive_part(C x) {
  return x < C(0) ? C(0) : x;
}

// factor · x; a factor of 0 gives +0, also of what is not finite.
template <typename C>
REGKERN_HD C scaled_by(C factor, C x) {
  return factor == C(0) ? C(0) : factor * x;
}

// The prox of a group, x_g ← x_g · factor, from its norm s and t = step · weight, in double.
struct GroupShrunk {
  double norm, factor;
};
template <Law kLaw>
REGKERN_HD GroupShrunk shrink_group(double s, double t, double lam, double shape) {
  const double r = shrink<kLaw>(s, t, lam, shape).r;
  // A step or λ of 0 is the identity, and a zero group stays what it is.
  const bool same = (t == 0.0) | (lam == 0.0) | (r == s);
  return {r, same ? 1.0 : r / s};
}

// ---- kernels ----

// The sums of squares (z null: of x after `before`), or of products with z, of every slice.
struct GroupSumsArgs {
  Dtype dtype;
  const GroupRow* rows;
  int64_t count;
  Before before;
  bool positive;     // after a soft threshold as well
  const void* soft;  // the soft threshold, 0-d in the compute type
  double* partials;
  double* sums;  // of the slices
};

// The sums of groups from those of their slices.
struct GroupFoldArgs {
  const double* slice_sums;
  const int64_t* starts;
  const int32_t* members;
  int64_t groups;
  double* sums;
};

// What the law makes of every group. Group g of a row has the weight row.weight · weights[g].
struct GroupLawArgs {
  Dtype dtype;  // of the tensors: factors and norms are in its compute type
  const GroupRow* rows;
  int64_t count;
  Law law;
  double shape;
  const void* step;
  const void* lam;
  const double* weights;  // or null
  const double* sums;
  void* factors;
  void* norms;     // after the prox
  double* before;  // the norms before it, or null
  int64_t* zeros;  // += the groups that are zero
};

// The derivatives of a group prox by its input and parameters, from the norms before it:
// dx = a g + b x ⟨x, g⟩, dt = ⟨x, g⟩ · by_step, dλ = ⟨x, g⟩ · by_lam.
struct GroupSlopesArgs {
  Dtype compute;  // of step and λ: float32 or float64
  int64_t groups;
  Law law;
  double shape;
  const void* step;
  const void* lam;
  const double* weights;  // all of the weight
  const double* norms;
  double* slopes;  // (4, groups): a, b, by_step, by_lam
};

// Σ weight · φ_λ(s) group by group: (3, groups): the value, by s over s, by λ.
struct GroupPenaltyArgs {
  Dtype compute;
  int64_t groups;
  Law law;
  double shape;
  const void* lam;
  const double* weights;
  const double* norms;
  double* out;
};

// y ← before(x) · a[group] (+ z · b[group]). Slices without a group keep x, or are 0.
struct GroupScaleArgs {
  Dtype dtype;
  const GroupRow* rows;
  int64_t count;
  Before before;
  bool positive;
  const void* soft;
  const int32_t* map;  // or null
  bool keep;           // slices without a group keep x
  const void* a;       // in the compute type
  const void* b;       // or null
};

// The whole prox of tensors whose slices are contiguous runs of one segment, in one pass.
struct GroupRowsArgs {
  GroupSumsArgs sums;
  GroupLawArgs law;
};

// Whether group_rows takes the tensor.
REGKERN_HD bool in_one_pass(const GroupRow& row) { return row.outer == 1 && row.inner <= kSegment; }

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(group_sums, proximal::GroupSumsArgs)
REGKERN_DECLARE_KERNEL(group_fold, proximal::GroupFoldArgs)
REGKERN_DECLARE_KERNEL(group_law, proximal::GroupLawArgs)
REGKERN_DECLARE_KERNEL(group_slopes, proximal::GroupSlopesArgs)
REGKERN_DECLARE_KERNEL(group_penalty, proximal::GroupPenaltyArgs)
REGKERN_DECLARE_KERNEL(group_scale, proximal::GroupScaleArgs)
REGKERN_DECLARE_KERNEL(group_rows, proximal::GroupRowsArgs)
}  // namespace regkern
