#include "proximal/magnitude_select.h"

#include <cstring>
#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

// Neighbours often fall into one bin; counting them apart, no increment waits for the one before.
constexpr int kCopies = 4;
constexpr int kSlots = kBins + 1;
constexpr int64_t kMost = int64_t{1} << 31;  // elements that 32-bit counts hold
constexpr int64_t kGrain = int64_t{1} << 17;
constexpr int64_t kFew = 4096;  // elements that are counted one by one

// Keys of n ≤ kBlock elements from e on.
template <typename T, bool kDifference, typename U>
void load_keys(const MagnitudeRow& row, int64_t e, int64_t n, U* keys) {
  const T* x = static_cast<const T*>(row.x) + e;
  if constexpr (kDifference) {
    using C = compute_t<T>;
    C a[kBlock], b[kBlock];
    load_elements(x, n, a);
    load_elements(static_cast<const T*>(row.minus) + e, n, b);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) keys[i] = magnitude_key(a[i] - b[i]);
  } else if (n == kBlock) {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) keys[i] = magnitude_key(x[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) keys[i] = magnitude_key(x[i]);
  }
}

template <typename T, bool kDifference>
using Keyed = std::conditional_t<kDifference, compute_t<T>, T>;

template <typename T, bool kDifference>
void count_piece(const MagnitudeSelectArgs& args, const MagnitudeRow& row, int64_t begin,
                 int64_t end, int pass) {
  using K = Keyed<T, kDifference>;
  using U = key_t<K>;
  const Digit digit = digit_of<K>(pass);
  const int64_t s = search_of(row);
  const U prefix = static_cast<U>(args.search[s].prefix);
  int64_t* totals = args.counts + s * kBins;
  U keys[kBlock];
  uint32_t slots[kBlock];
  if (end - begin <= kFew) {
    for (int64_t e = begin; e < end; e += kBlock) {
      const int64_t n = end - e < kBlock ? end - e : kBlock;
      load_keys<T, kDifference>(row, e, n, keys);
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t slot = slot_of(keys[i], prefix, digit);
        if (slot < kBins) __atomic_fetch_add(totals + slot, int64_t{1}, __ATOMIC_RELAXED);
      }
    }
    return;
  }
  const Scratch<uint32_t> counts(int64_t{kCopies} * kSlots);
  for (int64_t from = begin; from < end; from += kMost) {
    const int64_t to = from + kMost < end ? from + kMost : end;
    memset(counts.data(), 0, sizeof(uint32_t) * kCopies * kSlots);
    for (int64_t e = from; e < to; e += kBlock) {
      const int64_t n = to - e < kBlock ? to - e : kBlock;
      load_keys<T, kDifference>(row, e, n, keys);
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) slots[i] = slot_of(keys[i], prefix, digit);
      if (n == kBlock && pass > 0) {
        // Few have the prefix: most groups of eight have none.
        for (int g = 0; g < kBlock; g += 8) {
          uint32_t least = slots[g];
          for (int i = 1; i < 8; ++i) least = slots[g + i] < least ? slots[g + i] : least;
          if (least == kBins) continue;
          for (int i = 0; i < 8; ++i) ++counts[i % kCopies * kSlots + slots[g + i]];
        }
      } else {
        for (int64_t i = 0; i < n; ++i) ++counts[i % kCopies * kSlots + slots[i]];
      }
    }
    for (int i = 0; i < kBins; ++i) {
      int64_t total = 0;
      for (int c = 0; c < kCopies; ++c) total += counts[c * kSlots + i];
      if (total != 0) __atomic_fetch_add(totals + i, total, __ATOMIC_RELAXED);
    }
  }
}

// The next digit of a search, from the counts of those that have the digits before.
void pick(Search& s, int64_t* counts, int width) {
  int64_t before = 0;
  int bin = 0;
  while (bin < (1 << width) - 1 && before + counts[bin] < s.rank) before += counts[bin++];
  s.prefix = s.prefix << width | static_cast<uint64_t>(bin);
  s.rank -= before;
  s.below += before;
  s.equal = counts[bin];
  memset(counts, 0, sizeof(int64_t) * kBins);
}

template <typename T, bool kDifference, typename F>
void for_tiles(const MagnitudeSelectArgs& args, F&& f) {
  parallel_for_list(args.rows, args.count, kGrain,
                    [&](const MagnitudeRow& row, int64_t begin, int64_t end) {
                      // Pieces are cut anywhere: a tile is done by whoever has its beginning.
                      const int64_t from = (begin + kMagnitudeTile - 1) / kMagnitudeTile;
                      for (int64_t tile = from; tile * kMagnitudeTile < end; ++tile) {
                        const int64_t e = tile * kMagnitudeTile, left = row.numel - e;
                        f(row, tile, e, left < kMagnitudeTile ? left : kMagnitudeTile);
                      }
                    });
}

template <typename T, bool kDifference>
void cut_ties(const MagnitudeSelectArgs& args) {
  using U = key_t<Keyed<T, kDifference>>;
  bool any = false;
  for (int64_t i = 0; i < args.searches; ++i) {
    Search& s = args.search[i];
    any = any || cuts_ties(s);
    s.cut = dropped_equals(s) > 0 ? -1 : INT64_MAX;
    s.kept = 0;
  }
  if (!any) return;
  for_tiles<T, kDifference>(args, [&](const MagnitudeRow& row, int64_t tile, int64_t e, int64_t n) {
    const Search& s = args.search[search_of(row)];
    int32_t found = 0;
    U keys[kBlock];
    if (cuts_ties(s))
      for (int64_t b = 0; b < n; b += kBlock) {
        const int64_t m = n - b < kBlock ? n - b : kBlock;
        load_keys<T, kDifference>(row, e + b, m, keys);
        for (int64_t i = 0; i < m; ++i) found += keys[i] == static_cast<U>(s.prefix) ? 1 : 0;
      }
    args.ties[row.tile + tile] = found;
  });
  for (int64_t i = 0; i < args.searches; ++i) {
    Search& s = args.search[i];
    if (!cuts_ties(s)) continue;
    int64_t left = s.equal - dropped_equals(s);
    int64_t tile = s.tiles_begin;
    while (left > args.ties[tile]) left -= args.ties[tile++];
    s.cut = tile;
    s.kept = left;
  }
}

template <typename T, bool kDifference>
void apply(const MagnitudeSelectArgs& args) {
  using U = key_t<Keyed<T, kDifference>>;
  for_tiles<T, kDifference>(args, [&](const MagnitudeRow& row, int64_t tile, int64_t e, int64_t n) {
    const Search& s = args.search[search_of(row)];
    const U key = static_cast<U>(s.prefix);
    const int64_t number = row.tile + tile;
    int64_t left = number < s.cut ? kMagnitudeTile : number == s.cut ? s.kept : 0;
    const bool all = left == 0 || left == kMagnitudeTile;  // of the equal ones
    const U least = left == 0 ? key : key - 1;  // what is at most this is dropped; wraps for 0
    const bool none = left != 0 && key == 0;
    U keys[kBlock];
    uint8_t dropped[kBlock];
    for (int64_t b = 0; b < n; b += kBlock) {
      const int64_t m = n - b < kBlock ? n - b : kBlock, at = e + b;
      load_keys<T, kDifference>(row, at, m, keys);
      if (all) {
        for (int64_t i = 0; i < kBlock; ++i) dropped[i] = !none && keys[i] <= least ? 1 : 0;
      } else {
        for (int64_t i = 0; i < m; ++i) {
          dropped[i] = keys[i] < key || (keys[i] == key && left == 0) ? 1 : 0;
          if (keys[i] == key && left > 0) --left;
        }
      }
      if (args.selected == Selected::scaled) {
        T* y = static_cast<T*>(row.out) + at;
        for (int64_t i = 0; i < m; ++i) y[i] = scaled_element(y[i], dropped[i] != 0, args.factor);
      } else if (args.selected == Selected::mask) {
        uint8_t* y = static_cast<uint8_t*>(row.out) + at;
        for (int64_t i = 0; i < m; ++i) y[i] = dropped[i] ^ 1;
      } else {
        uint32_t* y = static_cast<uint32_t*>(row.out) + at / 32;
        for (int64_t i = 0; i < m; i += 32) {
          uint32_t word = 0;
          for (int64_t j = i; j < m && j < i + 32; ++j)
            word |= static_cast<uint32_t>(dropped[j] ^ 1) << (j - i);
          y[i / 32] = word;
        }
      }
    }
  });
}

template <typename T, bool kDifference>
void select_as(const MagnitudeSelectArgs& args) {
  using K = Keyed<T, kDifference>;
  for (int64_t i = 0; i < args.searches; ++i) args.search[i] = Search{};
  for (int64_t i = 0; i < args.count; ++i) {
    const MagnitudeRow& row = args.rows[i];
    Search& s = args.search[search_of(row)];
    if (row.search >= 0) {
      s.k = s.rank = row.k;
      s.tiles_begin = row.tile;
    }
    s.tiles_end = row.tile + tile_count(row.numel);
  }
  memset(args.counts, 0, sizeof(int64_t) * static_cast<size_t>(args.searches) * kBins);
  for (int pass = 0; pass < digit_count<K>(); ++pass) {
    parallel_for_list(args.rows, args.count, kGrain,
                      [&](const MagnitudeRow& row, int64_t begin, int64_t end) {
                        count_piece<T, kDifference>(args, row, begin, end, pass);
                      });
    for (int64_t i = 0; i < args.searches; ++i)
      pick(args.search[i], args.counts + i * kBins, digit_of<K>(pass).width);
  }
  for (int64_t i = 0; i < args.searches; ++i) {
    const Search& s = args.search[i];
    static_cast<compute_t<T>*>(args.magnitude)[i] = magnitude_of<K>(s.prefix);
    args.ranks[2 * i] = s.below;
    args.ranks[2 * i + 1] = s.equal;
  }
  if (args.selected == Selected::nothing) return;
  cut_ties<T, kDifference>(args);
  apply<T, kDifference>(args);
}

}  // namespace

void magnitude_select(const MagnitudeSelectArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.difference ? select_as<T, true>(args) : select_as<T, false>(args);
  });
}

}  // namespace regkern::REGKERN_ISA
