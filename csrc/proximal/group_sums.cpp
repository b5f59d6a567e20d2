#include "core/vec.h"
#include "proximal/group_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kTile = 2048;  // columns whose sums stay in the first-level cache
constexpr int64_t kStrip = 128;  // columns between two looks ahead

// Products with z, in double.
template <typename T>
struct Product {
  const T* x;
  const T* z;
  double operator()(int64_t i) const {
    return static_cast<double>(widen(x[i])) * static_cast<double>(widen(z[i]));
  }
};

// The partial sums of runs: run_sum(first element, elements, elements that can be read).
template <typename RunSum>
void sum_runs(const GroupRow& row, double* out, const RunSum& run_sum) {
  const int64_t segments = segments_of(row), units = row.outer * row.slices * segments;
  parallel_for(units, grain_of(smaller(row.inner, kSegment)), [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t run = segments == 1 ? u : u / segments;
      const int64_t at = (segments == 1 ? 0 : u - run * segments) * kSegment;
      const int64_t first = run * row.inner + at;
      out[u] =
          run_sum(first, static_cast<int>(smaller(row.inner - at, kSegment)), row.numel - first);
    }
  });
}

// The partial sums of columns: term(i) is what element i adds, in double. The rows of a tile are
// too short for the hardware to look ahead, so the next ones are asked for.
template <typename T, typename Term>
void sum_columns(const GroupRow& row, double* out, Term term) {
  const T* const x = static_cast<const T*>(row.x);
  const int64_t columns = row.slices * row.inner;
  const int64_t tiles = (columns + kTile - 1) / kTile, chunks = chunks_of(row);
  const int64_t width = smaller(columns, kTile);
  parallel_for(chunks * tiles, grain_of(kChunkRows * width), [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t chunk = u / tiles, left = u % tiles * kTile;
      const int64_t n = smaller(kTile, columns - left), first = chunk * kChunkRows;
      const int64_t stop = smaller(first + kChunkRows, row.outer);
      double* const sums = out + chunk * columns + left;
      for (int64_t j = 0; j < n; ++j) sums[j] = 0.0;
      int64_t o = first;
      // Four rows at a time spare most of the traffic of the sums.
      for (; o + 4 <= stop; o += 4) {
        const int64_t at = o * columns + left;
        for (int64_t begin = 0; begin < n; begin += kStrip) {
          const int64_t end = smaller(begin + kStrip, n);
          for (int64_t k = 4; k < 8 && o + k < stop; ++k)
            fetch<false>(x + at + k * columns + begin, end - begin, end - begin);
#pragma omp simd
          for (int64_t j = begin; j < end; ++j)
            sums[j] =
                (((sums[j] + term(at + j)) + term(at + j + columns)) + term(at + j + 2 * columns)) +
                term(at + j + 3 * columns);
        }
      }
      for (; o < stop; ++o) {
        const int64_t at = o * columns + left;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) sums[j] += term(at + j);
      }
    }
  });
}

template <typename T, typename Term>
void sum_products(const GroupRow& row, double* out, Term term) {
  if (by_columns(row)) return sum_columns<T>(row, out, term);
  sum_runs(row, out, [&](int64_t first, int n, int64_t) {
    return n == 0 ? 0.0 : segment_sum<double>(n, [=](int i) { return term(first + i); });
  });
}

template <Before kBefore, typename T>
void sum_squares(const GroupSumsArgs& args, const GroupRow& row, double* out) {
  const auto x = prepared<kBefore, T>(row, args.soft, args.positive);
  if (by_columns(row))
    return sum_columns<T>(row, out, [=](int64_t i) {
      const double value = static_cast<double>(x(i));
      return value * value;
    });
  sum_runs(row, out, [=](int64_t first, int n, int64_t readable) {
    const auto run = x.from(first);
    return run_square_sum<compute_t<T>>(n, readable, [=](int i) { return run(i); });
  });
}

}  // namespace

void group_sums(const GroupSumsArgs& args, Context) {
  dispatch_before(args.before, args.dtype, [&](auto before, auto zero) {
    using T = decltype(zero);
    for (int64_t r = 0; r < args.count; ++r) {
      const GroupRow& row = args.rows[r];
      double* const sums = args.sums + row.slice;
      double* const out = in_one_pass(row) ? sums : args.partials + row.partial;
      if (row.z != nullptr)
        sum_products<T>(row, out,
                        Product<T>{static_cast<const T*>(row.x), static_cast<const T*>(row.z)});
      else
        sum_squares<decltype(before)::value, T>(args, row, out);
      if (out == sums) continue;
      const int64_t each = row.slices > 0 ? row.numel / row.slices / kChunkRows + 1 : 1;
      parallel_for(row.slices, grain_of(each), [&](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s) sums[s] = sum_partials(row, args.partials, s);
      });
    }
  });
}

void group_fold(const GroupFoldArgs& args, Context) {
  parallel_for(args.groups, kGrain / kGroupLanes, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int32_t* const members = args.members + args.starts[g];
      const int64_t n = args.starts[g + 1] - args.starts[g];
      double lanes[kGroupLanes] = {};
      for (int64_t k = 0; k < n; ++k) lanes[k % kGroupLanes] += args.slice_sums[members[k]];
      args.sums[g] = fold_lanes(lanes, kGroupLanes);
    }
  });
}

}  // namespace regkern::REGKERN_ISA
