#include "proximal/column_pool.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kTile = 4 * kBlock;  // columns at a time
constexpr int64_t kGrain = int64_t{1} << 15;

int64_t tiles_of(int64_t columns) { return (columns + kTile - 1) / kTile; }

template <Pool kPool, typename C>
void add_row(const C* x, double* sums) {
#pragma omp simd
  for (int64_t i = 0; i < kTile; ++i) sums[i] += pooled_term<kPool>(x[i]);
}

template <typename C>
void take_greater(const C* x, int32_t t, C* best, int32_t* place) {
#pragma omp simd
  for (int64_t i = 0; i < kTile; ++i) {
    const bool greater = is_greater(x[i], best[i]);
    best[i] = greater ? x[i] : best[i];
    place[i] = greater ? t : place[i];
  }
}

template <typename T>
void pool_tile(const ColumnPoolArgs& a, int64_t b, int64_t column) {
  using C = compute_t<T>;
  const int64_t n = a.columns - column < kTile ? a.columns - column : kTile;
  const T* x = static_cast<const T*>(a.x) + b * a.length * a.columns + column;
  C row[kTile], best[kTile];
  double sums[kTile];
  int32_t place[kTile];
  for (int64_t i = 0; i < kTile; ++i) {
    sums[i] = 0.0;
    best[i] = C(0);
    place[i] = -1;
  }
  for (int64_t t = 0; t < a.length; ++t) {
    if (!keeps(a.keep, b * a.length + t)) continue;
    load_elements(x + t * a.columns, n, row);
    if (n < kTile)
      for (int64_t i = n; i < kTile; ++i) row[i] = C(0);
    if (a.pool == Pool::magnitude)
      add_row<Pool::magnitude>(row, sums);
    else if (a.pool == Pool::sum)
      add_row<Pool::sum>(row, sums);
    else
      take_greater(row, static_cast<int32_t>(t), best, place);
  }
  const int64_t at = b * a.columns + column;
  const double share = share_of<double>(a.length);
  for (int64_t i = 0; i < kTile; ++i) {
    if (a.pool == Pool::max)
      best[i] = log1p(best[i]);
    else
      best[i] = static_cast<C>(a.pool == Pool::magnitude ? sums[i] * share : sums[i]);
  }
  store_elements(best, n, static_cast<T*>(a.y) + at);
  if (a.pool == Pool::max) memcpy(a.place + at, place, static_cast<size_t>(n) * sizeof(int32_t));
}

template <Pool kPool, typename C>
void gradient_row(const C* g, const C* x, const int32_t* place, int32_t t, bool kept, C scale,
                  C* dx) {
  if constexpr (kPool == Pool::max) {
#pragma omp simd
    for (int64_t i = 0; i < kTile; ++i)
      dx[i] = pooled_gradient<kPool>(g[i], x[i], place[i] == t, scale);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < kTile; ++i) dx[i] = pooled_gradient<kPool>(g[i], x[i], kept, scale);
  }
}

template <typename T>
void gradient_tile(const ColumnPoolBackwardArgs& a, int64_t b, int64_t column) {
  using C = compute_t<T>;
  const int64_t n = a.columns - column < kTile ? a.columns - column : kTile;
  const int64_t at = b * a.columns + column, first = b * a.length * a.columns + column;
  C g[kTile], x[kTile], dx[kTile];
  int32_t place[kTile];
  load_elements(static_cast<const T*>(a.g) + at, n, g);
  if (a.pool == Pool::max) memcpy(place, a.place + at, static_cast<size_t>(n) * sizeof(int32_t));
  const C scale = share_of<C>(a.length);
  for (int64_t t = 0; t < a.length; ++t) {
    const int64_t from = first + t * a.columns;
    const bool kept = keeps(a.keep, b * a.length + t);
    const auto step = static_cast<int32_t>(t);
    load_elements(static_cast<const T*>(a.x) + from, n, x);
    if (a.pool == Pool::magnitude)
      gradient_row<Pool::magnitude>(g, x, place, step, kept, scale, dx);
    else if (a.pool == Pool::sum)
      gradient_row<Pool::sum>(g, x, place, step, kept, scale, dx);
    else
      gradient_row<Pool::max>(g, x, place, step, kept, scale, dx);
    store_elements(dx, n, static_cast<T*>(a.dx) + from);
  }
}

template <typename A, typename F>
void for_column_tiles(const A& a, F&& f) {
  const int64_t across = tiles_of(a.columns), work = kTile * (a.length > 0 ? a.length : 1);
  const int64_t grain = kGrain / work > 1 ? kGrain / work : 1;
  parallel_for(a.batch * across, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i / across, i % across * kTile);
  });
}

}  // namespace

void column_pool(const ColumnPoolArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    for_column_tiles(
        args, [&](int64_t b, int64_t column) { pool_tile<decltype(zero)>(args, b, column); });
  });
}

void column_pool_backward(const ColumnPoolBackwardArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    for_column_tiles(
        args, [&](int64_t b, int64_t column) { gradient_tile<decltype(zero)>(args, b, column); });
  });
}

}  // namespace regkern::REGKERN_ISA
