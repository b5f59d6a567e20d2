#include "proximal/zero_counts.h"

#include <cstring>

#include "core/parallel.h"
#include "core/tensor_list.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 15;

// Neighbours of one column in a row are looked at so many at a time.
constexpr int64_t kRun = 4096;

template <typename T>
int32_t count_zeros(const T* x, int64_t n) {
  int32_t zeros = 0;
#pragma omp simd reduction(+ : zeros)
  for (int64_t i = 0; i < n; ++i) zeros += widen(x[i]) == 0 ? 1 : 0;
  return zeros;
}

void set(int32_t* flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }

template <typename T>
int64_t count_piece(const ZeroRow& row, int32_t* seen, int64_t begin, int64_t end) {
  const T* const x = static_cast<const T*>(row.data);
  const int64_t inner = row.inner, width = row.columns * inner;
  int32_t* const row_flags = seen + row.row_flags;
  int32_t* const column_flags = seen + row.column_flags;
  int64_t zeros = 0;
  for (int64_t e = begin; e < end;) {
    const int64_t r = e / width, row_end = (r + 1) * width < end ? (r + 1) * width : end;
    int64_t here = 0;
    const int64_t from = e;
    if (inner == 1) {
      // Columns that are elements: a flag is set with the count.
      int32_t* const flags = column_flags + (e - r * width);
      for (; e < row_end; e += kRun) {
        const int64_t n = row_end - e < kRun ? row_end - e : kRun;
        here += count_zeros(x + e, n);
        int32_t* const at = flags + (e - from);
        for (int64_t i = 0; i < n; ++i)
          if (widen(x[e + i]) != 0 && at[i] == 0) set(at + i);
      }
      e = row_end;
    } else {
      while (e < row_end) {
        const int64_t column = (e - r * width) / inner;
        const int64_t column_end = r * width + (column + 1) * inner;
        int64_t stop = column_end < row_end ? column_end : row_end;
        stop = stop - e > kRun ? e + kRun : stop;
        const int64_t some = count_zeros(x + e, stop - e);
        if (some < stop - e) set(column_flags + column);
        here += some;
        e = stop;
      }
    }
    if (here < row_end - from) set(row_flags + r);
    zeros += here;
  }
  return zeros;
}

int64_t unset(const int32_t* flags, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += flags[i] == 0 ? 1 : 0;
  return count;
}

}  // namespace

void zero_counts(const ZeroCountsArgs& args, Context) {
  memset(args.seen, 0, static_cast<size_t>(args.flags) * sizeof(int32_t));
  memset(args.out, 0, static_cast<size_t>(args.count) * 3 * sizeof(int64_t));
  parallel_for_list(
      args.rows, args.count, kGrain, [&](const ZeroRow& row, int64_t begin, int64_t end) {
        int64_t zeros = 0;
        dispatch_floating(row.dtype, [&](auto zero) {
          zeros = count_piece<decltype(zero)>(row, args.seen, begin, end);
        });
        __atomic_fetch_add(args.out + 3 * (&row - args.rows), zeros, __ATOMIC_RELAXED);
      });
  for (int64_t i = 0; i < args.count; ++i) {
    const ZeroRow& row = args.rows[i];
    args.out[3 * i + 1] = unset(args.seen + row.row_flags, row.rows);
    args.out[3 * i + 2] = unset(args.seen + row.column_flags, row.columns);
  }
}

}  // namespace regkern::REGKERN_ISA
