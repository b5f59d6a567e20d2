#include "spectral/row_norms.h"

#include <cstring>
#include <type_traits>

#include "core/fetch.h"
#include "core/parallel.h"
#include "core/tensor_list.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

constexpr int64_t kGrain = int64_t{1} << 15;

constexpr int64_t kAtOnce = 256;  // elements between two looks ahead
constexpr int64_t kAhead = 2048;  // elements, where rows are shorter

// How far ahead of its beginning a row of n elements looks.
inline int64_t distance_of(int64_t n) { return n > kAhead ? n : kAhead; }

// y ← factor · x. Where it looks ahead, `left` elements are there.
template <typename C>
void scale(const C* x, double factor, int64_t n, C* y, int64_t left) {
  const C* const ahead = x + distance_of(n);
  if (factor == 1.0) {
    fetch(ahead, n, left);
    if (x != y) memcpy(y, x, static_cast<size_t>(n) * sizeof(C));
  } else if (factor_fits<C>(factor)) {
    const C narrow_factor = static_cast<C>(factor);
    for (int64_t begin = 0; begin < n; begin += kAtOnce) {
      const int64_t end = begin + kAtOnce < n ? begin + kAtOnce : n;
      fetch(ahead + begin, end - begin, left - begin);
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) y[i] = narrow_factor * x[i];
    }
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<C>(factor * static_cast<double>(x[i]));
  }
}

template <typename C>
double product_sum(const C* g, const C* x, int64_t n) {
  double dot = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSegment) {
    const C *const a = g + begin, *const b = x + begin;
    const int64_t left = n - begin;
    dot += segment_sum<double>(static_cast<int>(left < kSegment ? left : kSegment), [=](int i) {
      return static_cast<double>(a[i]) * static_cast<double>(b[i]);
    });
  }
  return dot;
}

template <typename C>
void gradient_of_row(const C* g, const C* x, double s, int64_t n, C* y, int64_t left) {
  if (s == 0.0) {
    memset(y, 0, static_cast<size_t>(n) * sizeof(C));
    return;
  }
  const double inverse = 1.0 / s, along = product_sum(g, x, n) * inverse;
  if (factor_fits<C>(inverse)) {
    const RowGradient<C> of{static_cast<C>(inverse), static_cast<C>(along)};
    const int64_t distance = distance_of(n);
    for (int64_t begin = 0; begin < n; begin += kAtOnce) {
      const int64_t end = begin + kAtOnce < n ? begin + kAtOnce : n;
      fetch(g + distance + begin, end - begin, left - begin);
      fetch(x + distance + begin, end - begin, left - begin);
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) y[i] = of(g[i], x[i]);
    }
    return;
  }
  const RowGradient<double> of{inverse, along};
  for (int64_t i = 0; i < n; ++i)
    y[i] = static_cast<C>(of(static_cast<double>(g[i]), static_cast<double>(x[i])));
}

// Elements from where row r looks ahead; of what passes through a buffer nothing lies ahead.
template <typename T>
inline int64_t elements_ahead(const NormedRows& row, int64_t r) {
  if (!std::is_same_v<T, compute_t<T>>) return 0;
  return row.numel - r * row.n - distance_of(row.n);
}

// f(row, r, x, g, y) for the rows of all tensors, in the type that is computed in: what is narrower
// passes through a buffer. A row belongs to the piece that it begins in.
template <typename T, typename F>
void parallel_for_rows(const NormedRows* rows, int64_t count, F&& f) {
  using C = compute_t<T>;
  parallel_for_list(rows, count, kGrain, [&](const NormedRows& row, int64_t begin, int64_t end) {
    const int64_t n = row.n, last = (end + n - 1) / n, first = (begin + n - 1) / n;
    if constexpr (std::is_same_v<T, C>) {
      for (int64_t r = first; r < last; ++r)
        f(row, r, static_cast<const C*>(row.x) + r * n,
          row.g != nullptr ? static_cast<const C*>(row.g) + r * n : nullptr,
          static_cast<C*>(row.y) + r * n);
    } else {
      if (first == last) return;
      const int64_t room = (n + kBlock - 1) / kBlock * kBlock;
      const Scratch<C> x(room), g(row.g != nullptr ? room : 0);
      for (int64_t r = first; r < last; ++r) {
        load_elements(static_cast<const T*>(row.x) + r * n, n, x.data());
        if (row.g != nullptr) load_elements(static_cast<const T*>(row.g) + r * n, n, g.data());
        f(row, r, x.data(), g.data(), x.data());
        store_elements(x.data(), n, static_cast<T*>(row.y) + r * n);
      }
    }
  });
}

}  // namespace

void row_rescale(const RowRescaleArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    const double a =
        args.step != nullptr ? static_cast<double>(*static_cast<const C*>(args.step)) : 0.0;
    parallel_for_rows<T>(
        args.rows, args.count, [&](const NormedRows& row, int64_t r, const C* x, const C*, C* y) {
          const double s = sqrt(square_sum(x, row.n));
          args.norms[row.row + r] = s;
          scale(x, rescale_factor(args.law, s, a), row.n, y, elements_ahead<T>(row, r));
        });
  });
}

void row_project_backward(const RowProjectBackwardArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    parallel_for_rows<T>(
        args.rows, args.count, [&](const NormedRows& row, int64_t r, const C* x, const C* g, C* y) {
          gradient_of_row(g, x, args.norms[row.row + r], row.n, y, elements_ahead<T>(row, r));
        });
  });
}

}  // namespace regkern::REGKERN_ISA
