#include "proximal/pattern.h"

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 15;
constexpr int kStrip = 64;  // slices side by side

template <typename S>
inline void write(const PatternItem& item, int64_t at, bool keep) {
  if (item.values == nullptr) {
    static_cast<uint8_t*>(item.out)[at] = keep;
  } else {
    const S value = static_cast<const S*>(item.values)[at];
    static_cast<S*>(item.out)[at] = keep ? value : S(0);
  }
}

// Neighbours in memory: `size` of them, at most m.
template <typename S>
void one_group(const PatternItem& item, int64_t start, int size, int n) {
  const S* scores = static_cast<const S*>(item.scores) + start;
  S keys[kLongestPattern];
  bool keep[kLongestPattern];
  for (int i = 0; i < size; ++i) keys[i] = scores[i] & kMagnitudeOf<S>;
  for (int i = 0; i < size; ++i) {
    int rank = 0;
    const S mine = keys[i], before = static_cast<S>(mine - 1);
    for (int j = 0; j < i; ++j) rank += keys[j] > before;
    for (int j = i + 1; j < size; ++j) rank += keys[j] > mine;
    keep[i] = rank < n;
  }
  for (int i = 0; i < size; ++i) write<S>(item, start + i, keep[i]);
}

// Groups of kM, whole vectors of them: each element meets the others of its group by rotations.
// Returns how many elements it has done.
template <int kM, typename S>
int64_t groups_in_vectors(const PatternItem& item, int64_t start, int64_t size, int n) {
  constexpr int kLanes = 32 / static_cast<int>(sizeof(S));
  if constexpr (kM > kLanes) {
    return 0;
  } else {
    typedef S Lanes __attribute__((vector_size(32)));
    Lanes rotated[kM - 1], earlier[kM - 1];
    for (int r = 0; r < kM - 1; ++r)
      for (int l = 0; l < kLanes; ++l) {
        rotated[r][l] = static_cast<S>((l & ~(kM - 1)) | ((l + r + 1) & (kM - 1)));
        earlier[r][l] = static_cast<S>((l & (kM - 1)) + r + 1 >= kM ? 1 : 0);
      }
    const S* scores = static_cast<const S*>(item.scores) + start;
    const S* values = static_cast<const S*>(item.values) + start;
    S* out = static_cast<S*>(item.out) + start;
    const S fewest = static_cast<S>(-n);
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      Lanes key, value;
      __builtin_memcpy(&key, scores + i, sizeof(Lanes));
      __builtin_memcpy(&value, values + i, sizeof(Lanes));
      key &= kMagnitudeOf<S>;
      Lanes negative_rank = {};
#pragma GCC unroll 16
      for (int r = 0; r < kM - 1; ++r)
        negative_rank += __builtin_shuffle(key, rotated[r]) > key - earlier[r];
      value &= negative_rank > fewest;
      __builtin_memcpy(out + i, &value, sizeof(Lanes));
    }
    return i;
  }
}

template <typename S>
int64_t whole_vectors(const PatternItem& item, int64_t start, int64_t size, int n, int m) {
  if (item.values == nullptr) return 0;
  if (m == 2) return groups_in_vectors<2, S>(item, start, size, n);
  if (m == 4) return groups_in_vectors<4, S>(item, start, size, n);
  if (m == 8) return groups_in_vectors<8, S>(item, start, size, n);
  if (m == 16) return groups_in_vectors<16, S>(item, start, size, n);
  return 0;
}

// Groups across slices that lie side by side.
template <typename S>
void strip(const PatternItem& item, int64_t start, int64_t step, int size, int width, int n) {
  const S* scores = static_cast<const S*>(item.scores) + start;
  S keys[kLongestPattern][kStrip];
  S kept[kLongestPattern][kStrip];  // all bits or none
  for (int i = 0; i < size; ++i) {
#pragma omp simd
    for (int w = 0; w < width; ++w) keys[i][w] = scores[i * step + w] & kMagnitudeOf<S>;
  }
  for (int i = 0; i < size; ++i) {
    S rank[kStrip] = {};
    for (int j = 0; j < size; ++j) {
      if (j == i) continue;
      const S less = j < i ? S(1) : S(0);
#pragma omp simd
      for (int w = 0; w < kStrip; ++w)
        rank[w] = static_cast<S>(rank[w] + (keys[j][w] > static_cast<S>(keys[i][w] - less)));
    }
#pragma omp simd
    for (int w = 0; w < kStrip; ++w) kept[i][w] = rank[w] < n ? S(-1) : S(0);
  }
  for (int i = 0; i < size; ++i) {
    const int64_t at = start + i * step;
    if (item.values == nullptr) {
      for (int w = 0; w < width; ++w)
        static_cast<uint8_t*>(item.out)[at + w] = static_cast<uint8_t>(kept[i][w] & 1);
      continue;
    }
    const S* values = static_cast<const S*>(item.values) + at;
    S* out = static_cast<S*>(item.out) + at;
#pragma omp simd
    for (int w = 0; w < width; ++w) out[w] = values[w] & kept[i][w];
  }
}

template <typename S>
void pattern_as(const PatternArgs& args, const PatternItem& item) {
  const Slices& s = item.slices;
  const int m = args.m;
  const int64_t along = groups_along(s, m);
  if (s.count == 1) {
    // Rows of whole groups are one long row.
    const bool whole = s.outer % m == 0;
    const int64_t rows = whole ? 1 : s.batch, length = whole ? s.batch * s.outer : s.outer;
    const int64_t groups = (length + m - 1) / m;
    parallel_for(rows * groups, 1 + kGrain / m, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t row = begin / groups, first = begin - row * groups;
        const int64_t last = first + (end - begin) < groups ? first + (end - begin) : groups;
        const int64_t start = row * length;
        const int64_t to = last * m < length ? last * m : length;
        int64_t i = first * m;
        i += whole_vectors<S>(item, start + i, to - i, args.n, m);
        for (; i < to; i += m)
          one_group<S>(item, start + i, static_cast<int>(to - i < m ? to - i : m), args.n);
        begin += last - first;
      }
    });
    return;
  }
  const int64_t strips = (s.count + kStrip - 1) / kStrip;
  parallel_for(s.batch * along * strips, 1 + kGrain / (m * kStrip),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t left = i % strips * kStrip, group = i / strips % along,
                                 b = i / strips / along;
                   const int64_t rest = s.outer - group * m, columns = s.count - left;
                   strip<S>(item, (b * s.outer + group * m) * s.count + left, s.count,
                            static_cast<int>(rest < m ? rest : m),
                            static_cast<int>(columns < kStrip ? columns : kStrip), args.n);
                 }
               });
}

}  // namespace

void n_m_pattern(const PatternArgs& args, Context) {
  dispatch_bytes(args.bytes, [&](auto zero) {
    for (int64_t i = 0; i < args.count; ++i) pattern_as<decltype(zero)>(args, args.items[i]);
  });
}

}  // namespace regkern::REGKERN_ISA
