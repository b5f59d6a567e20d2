#include "core/vec.h"
#include "proximal/group_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kTile = 4096;  // elements whose factors are spread at a time: several pages
constexpr int64_t kLong = 64;    // runs from this length on have their factor in a register

// y ← x · a + z · b over n elements with the factors of each.
template <typename T, typename P, typename A, typename B>
inline void scale_elements(P x, const T* z, A a, B b, int64_t n, T* y) {
  using C = compute_t<T>;
  if (z == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = narrowed<T>(scaled_by(a(i), x(i)));
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const C value = scaled_by(a(i), x(i)) + scaled_by(b(i), widen(z[i]));
    y[i] = narrowed<T>(value);
  }
}

template <Before kBefore, typename T>
void scale_row(const GroupScaleArgs& args, const GroupRow& row) {
  using C = compute_t<T>;
  const auto x = prepared<kBefore, T>(row, args.soft, args.positive);
  const T* const raw = static_cast<const T*>(row.x);
  const T* const z = static_cast<const T*>(row.z);
  T* const y = static_cast<T*>(row.y);
  const C* const a = static_cast<const C*>(args.a);
  const C* const b = static_cast<const C*>(args.b);
  const auto group_of = [&](int64_t slice) {
    return args.map != nullptr ? static_cast<int64_t>(args.map[row.slice + slice])
                               : row.slice + slice;
  };
  const auto copy = [&](int64_t at, int64_t n) {
    if (raw != y) memcpy(y + at, raw + at, static_cast<size_t>(n) * sizeof(T));
  };
  if (row.inner >= kLong) {
    // Long runs in pieces, so that few of them are shared out as well.
    const int64_t pieces = (row.inner + kGrain - 1) / kGrain;
    const int64_t units = row.outer * row.slices * pieces;
    parallel_for(units, grain_of(smaller(row.inner, kGrain)), [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        const int64_t run = u / pieces, from = (u - run * pieces) * kGrain;
        const int64_t at = run * row.inner + from, n = smaller(row.inner - from, kGrain);
        const int64_t group = group_of(run % row.slices);
        const C factor = group < 0 ? C(1) : a[group];
        if (group < 0 && !args.keep) {
          memset(y + at, 0, static_cast<size_t>(n) * sizeof(T));
        } else if (group < 0 || (kBefore == Before::nothing && z == nullptr && factor == C(1))) {
          copy(at, n);
        } else {
          const C other = b != nullptr ? b[group] : C(0);
          scale_elements<T>(
              x.from(at), z != nullptr ? z + at : nullptr, [=](int64_t) { return factor; },
              [=](int64_t) { return other; }, n, y + at);
        }
      }
    });
    return;
  }
  // Short runs: the factors of a tile of columns, over the rows of a chunk.
  const int64_t columns = row.slices * row.inner;
  const int64_t tiles = (columns + kTile - 1) / kTile, chunks = chunks_of(row);
  const int64_t width = smaller(columns, kTile);
  parallel_for(chunks * tiles, grain_of(kChunkRows * width), [&](int64_t begin, int64_t end) {
    alignas(64) C spread_a[kTile], spread_b[kTile];
    for (int64_t u = begin; u < end; ++u) {
      const int64_t chunk = u / tiles, left = u % tiles * kTile;
      const int64_t n = smaller(kTile, columns - left);
      bool covered = true;
      for (int64_t j = 0, slice = left / row.inner, i = left % row.inner; j < n; ++slice, i = 0) {
        const int64_t stop = smaller(j + row.inner - i, n), group = group_of(slice);
        const C factor = group < 0 ? C(0) : a[group];
        const C other = group < 0 || b == nullptr ? C(0) : b[group];
        covered = covered && (group >= 0 || !args.keep);
        for (; j < stop; ++j) {
          spread_a[j] = factor;
          spread_b[j] = other;
        }
      }
      const C* const fa = spread_a;
      const C* const fb = spread_b;
      const int64_t stop = smaller((chunk + 1) * kChunkRows, row.outer);
      for (int64_t o = chunk * kChunkRows; o < stop; ++o) {
        const int64_t at = o * columns + left;
        const T* const other = z != nullptr ? z + at : nullptr;
        const auto factors = [=](int64_t i) { return fa[i]; };
        const auto others = [=](int64_t i) { return fb[i]; };
        if (covered) {
          scale_elements<T>(x.from(at), other, factors, others, n, y + at);
          continue;
        }
        // What no group has stays as it is.
        T out[kTile];
        scale_elements<T>(x.from(at), other, factors, others, n, out);
        for (int64_t j = 0; j < n; ++j)
          y[at + j] = group_of((left + j) / row.inner) < 0 ? raw[at + j] : out[j];
      }
    }
  });
}

}  // namespace

void group_scale(const GroupScaleArgs& args, Context) {
  dispatch_before(args.before, args.dtype, [&](auto before, auto zero) {
    for (int64_t r = 0; r < args.count; ++r)
      scale_row<decltype(before)::value, decltype(zero)>(args, args.rows[r]);
  });
}

}  // namespace regkern::REGKERN_ISA
