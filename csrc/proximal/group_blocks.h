#pragma once

#include "core/fetch.h"
#include "core/parallel.h"
#include "core/square_sum.h"
#include "proximal/group_before.h"

// What the CPU kernels of groups share.

namespace regkern::proximal {
namespace {

constexpr int64_t kGrain = int64_t{1} << 15;  // elements of a task, about
constexpr int kBatch = 64;                    // groups whose factors are computed side by side

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t grain_of(int64_t elements) { return elements < kGrain ? kGrain / elements : 1; }

// n elements in the compute type as `before` makes them. One loop for each thing that is done: as
// one expression of runtime choices they would not vectorise.
template <Before kBefore, typename T>
inline void prepare_run(const Prepared<kBefore, T>& x, int64_t n, compute_t<T>* out) {
  using C = compute_t<T>;
  const T* const in = x.x;
  const C* const l1 = x.l1;
  const C soft = x.soft;
  if constexpr (kBefore == Before::positive) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = positive_part(widen(in[i]));
    return;
  }
  if constexpr (kBefore == Before::soft) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = soft_threshold(widen(in[i]), soft);
  } else if constexpr (kBefore == Before::weighted) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = soft_threshold(widen(in[i]), soft * l1[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = widen(in[i]);
  }
  if (x.positive) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = positive_part(out[i]);
  }
}

// The sum of the squares of n ≤ kPadded elements, of which kPadded can be read.
template <int kPadded, typename C, typename Value>
inline C padded_square_sum(int n, Value value) {
  alignas(64) C lanes[kPadded];
#pragma omp simd
  for (int i = 0; i < kPadded; ++i) {
    const C x = value(i);
    lanes[i] = i < n ? x * x : C(0);
  }
  return fold_lanes(lanes, kPadded);
}

// The sum of the squares of n elements, n ≤ kSegment, of which `readable` can be read.
template <typename C, typename Value>
inline double run_square_sum(int n, int64_t readable, Value value) {
  C sum;
  if (n > 4 && n <= 8 && readable >= 8)
    sum = padded_square_sum<8, C>(n, value);
  else if (n > 8 && n <= 16 && readable >= 16)
    sum = padded_square_sum<16, C>(n, value);
  else if (n > 16 && n <= 32 && readable >= 32)
    sum = padded_square_sum<32, C>(n, value);
  else
    return segment_square_sum<C>(n, value);
  return square_sum_holds(sum) ? static_cast<double>(sum) : segment_square_sum<C>(n, value);
}

// Factors and norms of n neighbouring groups of a row, the first of which is `group` in the row,
// from their sums of squares. Returns how many are zero after the prox.
template <Law kLaw, typename C>
inline int64_t law_batch_of(const GroupLawArgs& args, const GroupRow& row, int64_t group, int n,
                            const double* sums, C* factors) {
  const double step = static_cast<double>(*static_cast<const C*>(args.step));
  const double lam = static_cast<double>(*static_cast<const C*>(args.lam)), shape = args.shape;
  const int64_t first = row.slice + group;
  double t[kBatch];
  for (int i = 0; i < n; ++i)
    t[i] = step * (args.weights != nullptr ? row.weight * args.weights[first + i] : row.weight);
  C* const norms = static_cast<C*>(args.norms) + first;
  int64_t zeros = 0;
#pragma omp simd reduction(+ : zeros)
  for (int i = 0; i < n; ++i) {
    const GroupShrunk out = shrink_group<kLaw>(sqrt(sums[i]), t[i], lam, shape);
    factors[i] = static_cast<C>(out.factor);
    norms[i] = static_cast<C>(out.norm);
    zeros += out.norm == 0.0 ? 1 : 0;
  }
  if (args.before != nullptr)
    for (int i = 0; i < n; ++i) args.before[first + i] = sqrt(sums[i]);
  return zeros;
}

template <typename C>
inline int64_t law_batch(const GroupLawArgs& args, const GroupRow& row, int64_t group, int n,
                         const double* sums, C* factors) {
  int64_t zeros = 0;
  dispatch_law(args.law, [&](auto law) {
    zeros = law_batch_of<decltype(law)::value, C>(args, row, group, n, sums, factors);
  });
  return zeros;
}

inline void add_zeros(const GroupLawArgs& args, int64_t zeros) {
  if (zeros > 0) __atomic_fetch_add(args.zeros, zeros, __ATOMIC_RELAXED);
}

}  // namespace
}  // namespace regkern::proximal
