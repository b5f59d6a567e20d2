#include "spectral/columns.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

// Columns of a task: the rows of a tile stay in the second-level cache from pass to pass.
constexpr int64_t kTile = 2 * kBlock;
constexpr int64_t kGrain = int64_t{1} << 15;

template <typename F>
void for_column_tiles(int64_t rows, int64_t columns, F&& f) {
  const int64_t grain = 1 + kGrain / (kTile * (rows + 1));
  parallel_for((columns + kTile - 1) / kTile, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t left = columns - i * kTile;
      f(i * kTile, left < kTile ? left : kTile);
    }
  });
}

// Adds add(row, piece) over all rows, where `piece` are the sums of a piece.
template <typename F>
void add_rows(int64_t rows, double* total, F&& add) {
  for (int64_t i = 0; i < kTile; ++i) total[i] = 0.0;
  for (int64_t first = 0; first < rows; first += kRowPiece) {
    alignas(64) double piece[kTile] = {};
    const int64_t stop = first + kRowPiece < rows ? first + kRowPiece : rows;
    for (int64_t r = first; r < stop; ++r) add(r, piece);
    for (int64_t i = 0; i < kTile; ++i) total[i] += piece[i];
  }
}

// A row of a tile: where it is, or widened.
template <typename T, typename C>
inline const C* row_of(const T* x, int64_t n, C* buffer) {
  if constexpr (sizeof(T) == sizeof(C)) {
    return x;
  } else {
    load_elements(x, n, buffer);
    return buffer;
  }
}

template <typename T>
void standardize_as(const StandardizeColumnsArgs& args) {
  using C = compute_t<T>;
  const int64_t rows = args.rows, columns = args.columns;
  for_column_tiles(rows, columns, [&](int64_t column, int64_t n) {
    const T* x = static_cast<const T*>(args.x) + column;
    T* y = static_cast<T*>(args.y) + column;
    alignas(64) C buffer[kTile];
    alignas(64) double mean[kTile], squares[kTile], factor[kTile];
    add_rows(rows, mean, [&](int64_t r, double* piece) {
      const C* row = row_of(x + r * columns, n, buffer);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) piece[i] += static_cast<double>(row[i]);
    });
    for (int64_t i = 0; i < kTile; ++i) mean[i] /= static_cast<double>(rows);
    add_rows(rows, squares, [&](int64_t r, double* piece) {
      const C* row = row_of(x + r * columns, n, buffer);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const double d = static_cast<double>(row[i]) - mean[i];
        piece[i] += d * d;
      }
    });
    for (int64_t i = 0; i < n; ++i) {
      const double variance = column_variance(squares[i], rows, args.correction);
      factor[i] = column_factor(args, variance);
      static_cast<C*>(args.mean)[column + i] = static_cast<C>(mean[i]);
      static_cast<C*>(args.variance)[column + i] = static_cast<C>(variance);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const C* row = row_of(x + r * columns, n, buffer);
      C* out = buffer;
      if constexpr (sizeof(T) == sizeof(C)) out = y + r * columns;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = standardized(row[i], mean[i], factor[i]);
      if constexpr (sizeof(T) != sizeof(C)) store_elements(buffer, n, y + r * columns);
    }
  });
}

template <typename T>
void products_as(const ColumnProductsArgs& args) {
  using C = compute_t<T>;
  const int64_t columns = args.columns;
  for_column_tiles(args.rows, columns, [&](int64_t column, int64_t n) {
    const T* a = static_cast<const T*>(args.a) + column;
    const T* b = static_cast<const T*>(args.b) + column;
    alignas(64) C as[kTile], bs[kTile];
    alignas(64) double sums[kTile] = {}, products[kTile] = {};
    for (int64_t first = 0; first < args.rows; first += kRowPiece) {
      alignas(64) double along[kTile] = {}, across[kTile] = {};
      const int64_t stop = first + kRowPiece < args.rows ? first + kRowPiece : args.rows;
      for (int64_t r = first; r < stop; ++r) {
        const C* p = row_of(a + r * columns, n, as);
        const C* q = row_of(b + r * columns, n, bs);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          along[i] += static_cast<double>(p[i]);
          across[i] += static_cast<double>(p[i]) * static_cast<double>(q[i]);
        }
      }
      for (int64_t i = 0; i < kTile; ++i) {
        sums[i] += along[i];
        products[i] += across[i];
      }
    }
    C* out = static_cast<C*>(args.sums) + column;
    for (int64_t i = 0; i < n; ++i) {
      out[i] = static_cast<C>(sums[i]);
      out[columns + i] = static_cast<C>(products[i]);
    }
  });
}

template <typename T>
void combine_as(const ColumnCombineArgs& args) {
  using C = compute_t<T>;
  const int64_t columns = args.columns, grain = 1 + kGrain / (columns + 1);
  const C* p = static_cast<const C*>(args.numbers);
  const C* q = p + columns;
  const C* constant = q + columns;
  parallel_for(args.rows, grain, [&](int64_t begin, int64_t end) {
    alignas(64) C as[kTile], bs[kTile];
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t column = 0; column < columns; column += kTile) {
        const int64_t left = columns - column, n = left < kTile ? left : kTile;
        const int64_t at = r * columns + column;
        const C* a = static_cast<const C*>(args.a) + (sizeof(T) == sizeof(C) ? at : 0);
        const C* b = static_cast<const C*>(args.b) + (sizeof(T) == sizeof(C) ? at : 0);
        C* y = static_cast<C*>(args.y) + (sizeof(T) == sizeof(C) ? at : 0);
        if constexpr (sizeof(T) != sizeof(C)) {
          load_elements(static_cast<const T*>(args.a) + at, n, as);
          load_elements(static_cast<const T*>(args.b) + at, n, bs);
          a = as;
          b = bs;
          y = as;
        }
#pragma omp simd
        for (int64_t i = 0; i < n; ++i)
          y[i] = p[column + i] * a[i] + q[column + i] * b[i] + constant[column + i];
        if constexpr (sizeof(T) != sizeof(C)) store_elements(as, n, static_cast<T*>(args.y) + at);
      }
    }
  });
}

}  // namespace

void standardize_columns(const StandardizeColumnsArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { standardize_as<decltype(zero)>(args); });
}

void column_products(const ColumnProductsArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { products_as<decltype(zero)>(args); });
}

void column_combine(const ColumnCombineArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { combine_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
