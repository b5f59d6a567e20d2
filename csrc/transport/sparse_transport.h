#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"

// Transport with a quadratic regulariser, where a column of the plan may have at most k entries:
//
//     min ⟨P, C⟩ + γ/2 ‖P‖²   over P ≥ 0, P 1 = a, Pᵀ 1 = b, ‖p_j‖₀ ≤ k
//
// by its dual or semi-dual,
//
//     max ⟨α, a⟩ + ⟨β, b⟩ − Σ_j δ_j(α + β_j − c_j),   δ_j(x) = max ⟨x, p⟩ − γ/2 ‖p‖², 0 ≤ p ≤ b_j
//     max ⟨α, a⟩ − Σ_j μ_j(α − c_j),                  μ_j(x) = the same, and Σ p = b_j
//
// over p of at most k entries. Both maxima are reached on the k largest of x. That no entry exceeds
// b_j changes nothing of the problem, and bounds the gradient of the dual everywhere.
//
// With groups G of rows it is the group lasso instead,
//
//     min ⟨P, C⟩ + γ/2 ‖P‖² + μ Σ_j Σ_G ‖p_jG‖,   p_jG = r [x_G]₊ / N,   N = ‖[x_G]₊‖,
//
// of x = α + β_j − c_j, by the dual alone, with r = min([N − μ]₊ / γ, b_j). A group is added up row
// after row, and the groups of a column in kRowStripes stripes.
//
// An evaluation reads the cost once. What cannot be in the plan is found in the cost's own
// precision, against a bound of its column; whatever may be is handled in double. So the results do
// not depend on the bounds, and a cost in float32 has the plan of the same cost in float64. Sums of
// rows are of integers: any order of columns gives the same bits.

namespace regkern::transport {

constexpr int kHistory = 8;         // pairs of the quasi-Newton matrix
constexpr int kTeamLanes = 128;     // of its sums
constexpr int kRowStripes = 8;      // row i of a column adds to stripe i mod 8
constexpr int kSortedEntries = 16;  // lists of more than these are heaps
constexpr int kBlockColumns = 32;   // of a GPU's block

enum class SparseMethod { dual, semi_dual };

// Of the search along a direction, of one problem.
struct SparseState {
  double value, slope, step, low, high, low_slope, high_slope;
  double scale;    // of the first quasi-Newton matrix
  double unit;     // a power of two: row sums are counted in 1 / unit
  double mass;     // Σ b
  double largest;  // of |α| in the trial
  double drop;     // the least of its changes since the last one, or −∞
  double error, least_error, held_value;
  double curvature[kHistory];  // 1 / ⟨s, y⟩, of the newest pair first
  int32_t newest, stored, trials, stalls, evaluations;
  int32_t accept;  // whatever comes next
  int32_t status, done;
};

constexpr int kConverged = 0, kStopped = 1, kNotANumber = 2, kStalled = 3;

struct SparseTransportArgs {
  Dtype dtype;
  SparseMethod method;
  int64_t batch, rows, columns;
  int64_t cost_stride;  // 0 where all problems share one cost
  int64_t k;            // 0: all rows
  int64_t max_evaluations;
  double tol;  // negative: all evaluations are made
  const void* cost;
  const double *a, *b, *gamma;
  // What it works in, a row per problem.
  SparseState* state;
  double* vectors;  // kVectors of `variables` each
  int64_t* row_sums;
  double *column_value, *column_sum;
  // Results. β is the threshold of the columns where the method has no variables for it.
  double *alpha, *beta, *value, *error;
  int32_t* iterations;
  int8_t* status;
  int32_t* index;   // (columns, k), −1 where there is none
  double* entries;  // (columns, k)
  // Of more than kSortedEntries, on a GPU: lists of so many blocks, list_words of each.
  double* list_values;
  int32_t* list_index;
  int64_t list_blocks;
  // Of groups: μ (batch), or null; the rows one group after the other, and where each of the
  // `rows` groups, most of which may be empty, begins and ends (rows + 1).
  const double* mu;
  const int32_t *group_rows, *group_starts;
};

REGKERN_HD int64_t variables_of(const SparseTransportArgs& args) {
  return args.method == SparseMethod::dual ? args.rows + args.columns : args.rows;
}

REGKERN_HD int64_t least_of(int64_t x, int64_t y) { return x < y ? x : y; }

// How many entries a column can have, and a stripe of its rows.
REGKERN_HD int64_t entries_of(const SparseTransportArgs& args) {
  return least_of(args.k, args.rows);
}
REGKERN_HD int64_t stripe_entries_of(const SparseTransportArgs& args) {
  return least_of(args.k, (args.rows + kRowStripes - 1) / kRowStripes);
}

// A list for each stripe of a block's columns, and one for each column.
REGKERN_HD int64_t list_words(const SparseTransportArgs& args) {
  return kBlockColumns * (kRowStripes * stripe_entries_of(args) + entries_of(args));
}

enum SparseVector { kPoint, kGradient, kDirection, kTrial, kTrialGradient, kSteps };
constexpr int kVectors = kSteps + 2 * kHistory;

template <typename Args>
REGKERN_HD double* vector_of(const Args& args, int64_t problem, int which) {
  return args.vectors + (problem * kVectors + which) * variables_of(args);
}

REGKERN_HD double double_max(double x, double y) { return x > y ? x : y; }
REGKERN_HD double nothing() { return -__builtin_inf(); }
REGKERN_HD bool is_nan(double x) { return !(x == x); }

// A row without weight is in no plan.
REGKERN_HD double row_potential(const double* alpha, const double* a, int64_t i) {
  return a[i] > 0.0 ? alpha[i] : nothing();
}

REGKERN_HD double entry_at(double alpha, double cost, double shift) { return alpha - cost + shift; }

// What is subtracted from a bound, so that rounding in C loses nothing: α, the bound and their sum
// with a cost near to it are each within an ulp.
template <typename C>
REGKERN_HD C filter_bound(double bound, double largest) {
  const double ulp = sizeof(C) == 4 ? 1.2e-7 : 2.3e-16;
  const double size = (bound < 0.0 ? -bound : bound) + largest;
  return static_cast<C>(bound - 4.0 * ulp * size);
}

// The k largest of a column. In the end the largest is first, and of equal ones the first row.
struct Best {
  double* value;
  int32_t* index;
  int stride;  // between neighbours
  int count;
};

REGKERN_HD bool comes_before(double x, int32_t i, double y, int32_t j) {
  return x > y || (x == y && i < j);
}

// A list that is sorted all the time.
REGKERN_HD void insert_best(Best& best, int k, double x, int32_t i) {
  int at = best.count < k ? best.count++ : k - 1;
  for (; at > 0; --at) {
    const double before = best.value[(at - 1) * best.stride];
    if (before > x || (before == x && best.index[(at - 1) * best.stride] < i)) break;
    best.value[at * best.stride] = before;
    best.index[at * best.stride] = best.index[(at - 1) * best.stride];
  }
  best.value[at * best.stride] = x;
  best.index[at * best.stride] = i;
}

REGKERN_HD bool enters(const Best& best, int k, double x, int32_t i) {
  if (best.count < k) return x > nothing();
  const double last = best.value[(k - 1) * best.stride];
  return x > last || (x == last && i < best.index[(k - 1) * best.stride]);
}

// The same list as a heap, where the children of r are 2 r + 1 and 2 r + 2 and come before it: the
// last of all is at the root. The order is total, so what is kept does not depend on the path.

// From the root of the first `count` down.
REGKERN_HD void sift_down(Best& best, int count, double x, int32_t i) {
  int at = 0;
  for (int child = 1; child < count; child = 2 * at + 1) {
    double y = best.value[child * best.stride];
    int32_t j = best.index[child * best.stride];
    if (child + 1 < count) {
      const double z = best.value[(child + 1) * best.stride];
      const int32_t l = best.index[(child + 1) * best.stride];
      if (comes_before(y, j, z, l)) {
        y = z;
        j = l;
        ++child;
      }
    }
    if (!comes_before(x, i, y, j)) break;
    best.value[at * best.stride] = y;
    best.index[at * best.stride] = j;
    at = child;
  }
  best.value[at * best.stride] = x;
  best.index[at * best.stride] = i;
}

REGKERN_HD void insert_heap(Best& best, int k, double x, int32_t i) {
  if (best.count == k) return sift_down(best, k, x, i);
  int at = best.count++;
  while (at > 0) {
    const int parent = (at - 1) / 2;
    const double y = best.value[parent * best.stride];
    const int32_t j = best.index[parent * best.stride];
    if (!comes_before(y, j, x, i)) break;
    best.value[at * best.stride] = y;
    best.index[at * best.stride] = j;
    at = parent;
  }
  best.value[at * best.stride] = x;
  best.index[at * best.stride] = i;
}

REGKERN_HD bool enters_heap(const Best& best, int k, double x, int32_t i) {
  if (best.count < k) return x > nothing();
  return comes_before(x, i, best.value[0], best.index[0]);
}

// Below the largest x of a column by γ b or more an entry is 0: a heap need not have it. The dual
// has no such bound.
REGKERN_HD bool falls_short(double x, double top, double range) {
  return x < top && x - top <= -range;
}

// Without what falls short, sorted.
REGKERN_HD void sort_heap(Best& best, double top, double range) {
  const int held = best.count;
  best.count = 0;
  for (int r = 0; r < held; ++r) {
    const double x = best.value[r * best.stride];
    const int32_t i = best.index[r * best.stride];
    if (!falls_short(x, top, range)) insert_heap(best, held, x, i);
  }
  for (int last = best.count - 1; last > 0; --last) {
    const double x = best.value[last * best.stride];
    const int32_t i = best.index[last * best.stride];
    best.value[last * best.stride] = best.value[0];
    best.index[last * best.stride] = best.index[0];
    sift_down(best, last, x, i);
  }
}

struct ColumnSums {
  double value, sum, threshold;
};

// From the largest x of a column to entries of the plan, in place.
REGKERN_HD ColumnSums project_best(Best& best, double b, double gamma) {
  if (best.count == 0) {
    const double bad = b > 0.0 ? __builtin_nan("") : 0.0;
    return {bad, 0.0, 0.0};
  }
  // Differences from the largest are exact where it matters.
  const double top = best.value[0], total = gamma * b;
  double cumulated = 0.0, threshold = -total;
  for (int r = 1; r < best.count; ++r) {
    const double d = best.value[r * best.stride] - top;
    cumulated += d;
    const double root = (cumulated - total) / (r + 1);
    if (!(d > root)) break;
    threshold = root;
  }
  double linear = 0.0, squares = 0.0, sum = 0.0;
  for (int r = 0; r < best.count; ++r) {
    const double d = best.value[r * best.stride] - top;
    const double p = d > threshold ? (d - threshold) / gamma : 0.0;
    best.value[r * best.stride] = p;
    linear += p * d;
    squares += p * p;
    sum += p;
  }
  return {b * top + (linear - 0.5 * gamma * squares), sum, top + threshold};
}

REGKERN_HD double dual_entry(double x, double b, double gamma) {
  const double p = x > 0.0 ? x / gamma : (x == x ? 0.0 : x);
  return p > b ? b : p;
}

REGKERN_HD double dual_value(double x, double p, double gamma) { return p * (x - 0.5 * gamma * p); }

REGKERN_HD ColumnSums cap_best(Best& best, double b, double gamma) {
  ColumnSums sums{0.0, 0.0, 0.0};
  for (int r = 0; r < best.count; ++r) {
    const double x = best.value[r * best.stride], p = dual_entry(x, b, gamma);
    best.value[r * best.stride] = p;
    sums.value += dual_value(x, p, gamma);
    sums.sum += p;
  }
  return sums;
}

struct GroupEntry {
  double norm;   // r
  double share;  // r / N
  double value;  // of the dual
};

// From Σ [x]₊² of a group. NaN stays.
REGKERN_HD GroupEntry group_entry(double squares, double b, double gamma, double mu) {
  const double size = regkern::sqrt(squares);
  if (size <= mu || !(squares > 0.0 || is_nan(squares))) return {0.0, 0.0, 0.0};
  const double free = (size - mu) / gamma, r = free > b ? b : free;
  return {r, r / size, r * ((size - mu) - 0.5 * gamma * r)};
}

// Of an entry of a row, in units: at most 2⁶¹ all together.
REGKERN_HD int64_t row_units(double p, double unit) {
  return p > 0.0 ? static_cast<int64_t>(p * unit) : 0;
}

// The threshold of a column falls by no more than the potentials do.
REGKERN_HD double warm_threshold(double before, double drop, double largest) {
  const double bound = before + drop;
  return bound - 1e-14 * ((bound < 0.0 ? -bound : bound) + largest);
}

// Shares of a column's total in [0, 1], counted in units of 2⁻⁴⁰: up to 2²² of them add up.
constexpr double kShareUnit = 1099511627776.0;
REGKERN_HD int64_t share_units(double share) { return static_cast<int64_t>(share * kShareUnit); }

struct ShareSum {
  int64_t units;
  int64_t count;
  REGKERN_HD void add(double share) {
    units += share_units(share);
    ++count;
  }
};

// Michelot's active sets: Σ [x − θ]₊ = total, from θ = base ≥ max x − total up. `update` is given
// the sum of (x − base) / total of the elements beyond θ.
struct ShareSearch {
  double base, total, threshold;
  int64_t before;
  bool done;

  REGKERN_HD ShareSearch(double from, double right)
      : base(from), total(right), threshold(from), before(-1), done(!(right > 0.0)) {}
  REGKERN_HD double share(double x) const { return (x - base) / total; }
  REGKERN_HD void update(const ShareSum& sum) {
    done = done || sum.count == 0 || sum.count == before;
    if (done) return;
    const double units = static_cast<double>(sum.units) - kShareUnit;
    const double next = base + total * (units / (kShareUnit * static_cast<double>(sum.count)));
    done = !(next > threshold);
    threshold = done ? threshold : next;
    before = sum.count;
  }
};

REGKERN_HD double share_entry(double x, double threshold, double b, double gamma) {
  const double p = (x - threshold) / gamma;
  return p > b ? b : p;
}

// From Σ (p / b)² in units.
REGKERN_HD ColumnSums share_column(double top, double threshold, int64_t squares, double b,
                                   double gamma) {
  if (top == nothing()) return {b > 0.0 ? __builtin_nan("") : 0.0, 0.0, 0.0};
  const double share = static_cast<double>(squares) / kShareUnit;
  return {threshold * b + 0.5 * gamma * b * (b * share), b, threshold};
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(sparse_transport, transport::SparseTransportArgs)
}
