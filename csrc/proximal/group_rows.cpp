#include <type_traits>

#include "core/tensor_list.h"
#include "core/vec.h"
#include "proximal/group_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kBatchElements = 2048;  // of the groups of a batch, which stay in the cache

constexpr int64_t kAtOnce = 256;      // elements between two looks ahead
constexpr int64_t kNear = 256 << 10;  // bytes that the second-level cache holds

// y ← factor · x over a group. Meanwhile memory brings what is read next, from `ahead` on: else it
// would rest while the group, which is in the cache, is scaled.
template <typename S, typename T>
inline void scale_run(const S* x, compute_t<T> factor, int64_t n, T* y, const T* ahead,
                      int64_t left) {
  using C = compute_t<T>;
  if (factor == C(0) || (std::is_same_v<S, T> && factor == C(1))) {
    fetch(ahead, n, left);
    if (factor == C(0)) {
      memset(y, 0, static_cast<size_t>(n) * sizeof(T));
    } else if constexpr (std::is_same_v<S, T>) {
      if (x != y) memcpy(y, x, static_cast<size_t>(n) * sizeof(T));
    }
    return;
  }
  for (int64_t begin = 0; begin < n; begin += kAtOnce) {
    const int64_t end = smaller(begin + kAtOnce, n);
    fetch(ahead + begin, end - begin, left - begin);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] = narrowed<T>(factor * widen(x[i]));
  }
}

// Groups of one element, side by side.
template <Before kBefore, typename T>
int64_t single_elements(const GroupLawArgs& law, const GroupRow& row, Prepared<kBefore, T> x,
                        int64_t begin, int64_t end, T* y) {
  using C = compute_t<T>;
  double sums[kBatch];
  C factors[kBatch];
  int64_t zeros = 0;
  for (int64_t g = begin; g < end; g += kBatch) {
    const int m = static_cast<int>(smaller(kBatch, end - g));
    const auto run = x.from(g);
#pragma omp simd
    for (int i = 0; i < m; ++i) {
      const C value = run(i), square = value * value;
      const double wide = static_cast<double>(value) * static_cast<double>(value);
      sums[i] = square_sum_holds(square) ? static_cast<double>(square) : wide;
    }
    zeros += law_batch<C>(law, row, g, m, sums, factors);
    T* const out = y + g;
#pragma omp simd
    for (int i = 0; i < m; ++i) out[i] = narrowed<T>(scaled_by(factors[i], run(i)));
  }
  return zeros;
}

template <Before kBefore, typename T>
void rows_of(const GroupRowsArgs& args) {
  using C = compute_t<T>;
  parallel_for_list(args.sums.rows, args.sums.count, kGrain,
                    [&](const GroupRow& row, int64_t begin, int64_t end) {
                      const auto x = prepared<kBefore, T>(row, args.sums.soft, args.sums.positive);
                      T* const y = static_cast<T*>(row.y);
                      const int64_t n = row.inner;
                      if (n == 1)
                        return add_zeros(args.law,
                                         single_elements(args.law, row, x, begin, end, y));
                      // The groups that begin in the piece.
                      const int64_t first = (begin + n - 1) / n, last = (end + n - 1) / n;
                      const int64_t fit = kBatchElements / n;
                      const int64_t batch = fit < 1 ? 1 : smaller(fit, kBatch);
                      double sums[kBatch];
                      C factors[kBatch];
                      int64_t zeros = 0;
                      using S = std::conditional_t<kBefore == Before::nothing, T, C>;
                      const Scratch<C> scratch(kBefore == Before::nothing ? 0 : batch * n);
                      for (int64_t g = first; g < last; g += batch) {
                        const int m = static_cast<int>(smaller(batch, last - g));
                        const S* from;
                        int64_t readable;
                        if constexpr (kBefore == Before::nothing) {
                          from = x.x + g * n;
                          readable = row.numel - g * n;
                        } else {
                          prepare_run(x.from(g * n), m * n, scratch.data());
                          from = scratch.data();
                          readable = batch * n;
                        }
                        for (int i = 0; i < m; ++i) {
                          const S* const run = from + i * n;
                          sums[i] = run_square_sum<C>(static_cast<int>(n), readable - i * n,
                                                      [=](int k) { return widen(run[k]); });
                        }
                        zeros += law_batch<C>(args.law, row, g, m, sums, factors);
                        const int64_t all = batch * n;
                        const bool near = all * static_cast<int64_t>(sizeof(T)) <= kNear;
                        for (int i = 0; i < m; ++i) {
                          const int64_t at = (g + i) * n;
                          scale_run(from + i * n, factors[i], n, y + at, x.x + at + all,
                                    near ? row.numel - at - all : 0);
                        }
                      }
                      add_zeros(args.law, zeros);
                    });
}

}  // namespace

void group_rows(const GroupRowsArgs& args, Context) {
  dispatch_before(args.sums.before, args.sums.dtype, [&](auto before, auto zero) {
    rows_of<decltype(before)::value, decltype(zero)>(args);
  });
}

}  // namespace regkern::REGKERN_ISA
