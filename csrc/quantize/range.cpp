#include "quantize/range.h"

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

constexpr int64_t kPiece = int64_t{1} << 16;  // elements of a task, about
constexpr int64_t kTile = 1024;               // columns whose keys stay in the first-level cache
// Narrower blocks of several rows go column by column: their runs are too short to vectorise.
constexpr int64_t kNarrow = 64;

// The bits of an element as stored: halves need no widening to be compared.
template <typename T>
struct Stored {
  using type = int16_t;
};
template <>
struct Stored<float> {
  using type = int32_t;
};
template <>
struct Stored<double> {
  using type = int64_t;
};
template <typename T>
using stored_t = typename Stored<T>::type;

template <typename T>
constexpr stored_t<T> kInfinityBits = stored_t<T>(OrderKey<compute_t<T>>::kInfinity);
template <>
constexpr int16_t kInfinityBits<bfloat16> = 0x7F80;
template <>
constexpr int16_t kInfinityBits<float16> = 0x7C00;

template <typename S>
inline S stored_key(S bits) {
  constexpr int kSign = 8 * static_cast<int>(sizeof(S)) - 1;
  return static_cast<S>(bits ^ ((bits >> kSign) & static_cast<S>(~(S(1) << kSign))));
}

// Keys of stored bits while a block is read.
template <typename T>
struct Extremes {
  stored_t<T> low = kInfinityBits<T>;
  stored_t<T> high = static_cast<stored_t<T>>(~kInfinityBits<T>);
};

template <typename T>
inline order_key_t<compute_t<T>> widened_key(stored_t<T> key) {
  return order_key(widen(bit_cast<T>(stored_key(key))));
}

template <typename S>
inline void fold_run(const S* x, int64_t n, S* low, S* high) {
  S least = *low, largest = *high;
#pragma omp simd reduction(min : least) reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) {
    const S key = stored_key(x[i]);
    least = key < least ? key : least;
    largest = key > largest ? key : largest;
  }
  *low = least;
  *high = largest;
}

template <int kN, typename S>
inline void fold_run_of(const S* x, S* low, S* high) {
  S least = *low, largest = *high;
#pragma omp simd reduction(min : least) reduction(max : largest)
  for (int i = 0; i < kN; ++i) {
    const S key = stored_key(x[i]);
    least = key < least ? key : least;
    largest = key > largest ? key : largest;
  }
  *low = least;
  *high = largest;
}

// The keys of the blocks, which several tasks may share.
template <typename T>
struct Keys {
  using C = compute_t<T>;
  using K = order_key_t<C>;
  K* low;
  K* high;

  // The result of a block that one task has read.
  void store(int64_t block, const Extremes<T>& e) const {
    finish_range<C>(widened_key<T>(e.low), widened_key<T>(e.high), low + block, high + block);
  }

  // Most tasks change nothing, and then do not write.
  void fold(int64_t block, stored_t<T> least, stored_t<T> largest) const {
    const K l = widened_key<T>(least), h = widened_key<T>(largest);
    K old = __atomic_load_n(low + block, __ATOMIC_RELAXED);
    while (l < old && !__atomic_compare_exchange_n(low + block, &old, l, true, __ATOMIC_RELAXED,
                                                   __ATOMIC_RELAXED)) {
    }
    old = __atomic_load_n(high + block, __ATOMIC_RELAXED);
    while (h > old && !__atomic_compare_exchange_n(high + block, &old, h, true, __ATOMIC_RELAXED,
                                                   __ATOMIC_RELAXED)) {
    }
  }
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t pieces_of(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }

// Blocks of neighbours, several to a task.
template <typename T>
void flat_blocks(const stored_t<T>* x, const Blocks& b, const Keys<T>& keys) {
  using S = stored_t<T>;
  const int64_t width = b.block_cols, n = b.cols;
  parallel_for(blocks_across(b), 1 + kPiece / width, [&](int64_t begin, int64_t end) {
    const auto each = [&](auto fold) {
      for (int64_t i = begin; i < end; ++i) {
        Extremes<T> e;
        fold(x + i * width, smaller(width, n - i * width), &e.low, &e.high);
        keys.store(i, e);
      }
    };
    // Groups of formats: the loop over one of them is unrolled. The last one may be shorter.
    const bool whole = n % width == 0;
    if (whole && width == 16)
      each([](const S* p, int64_t, S* l, S* h) { fold_run_of<16>(p, l, h); });
    else if (whole && width == 32)
      each([](const S* p, int64_t, S* l, S* h) { fold_run_of<32>(p, l, h); });
    else if (whole && width == 64)
      each([](const S* p, int64_t, S* l, S* h) { fold_run_of<64>(p, l, h); });
    else if (whole && width == 128)
      each([](const S* p, int64_t, S* l, S* h) { fold_run_of<128>(p, l, h); });
    else
      each([](const S* p, int64_t m, S* l, S* h) { fold_run(p, m, l, h); });
  });
}

// Wide blocks of several rows, one after the other.
template <typename T>
void whole_blocks(const stored_t<T>* x, const Blocks& b, const Keys<T>& keys) {
  const int64_t down = blocks_down(b), across = blocks_across(b);
  const int64_t grain = 1 + kPiece / (b.block_rows * b.block_cols);
  parallel_for(b.outer * down * across, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t c = block % across * b.block_cols, r = block / across % down * b.block_rows;
      const int64_t o = block / across / down, width = smaller(b.block_cols, b.cols - c);
      Extremes<T> e;
      for (int64_t i = r; i < smaller(r + b.block_rows, b.rows); ++i)
        fold_run(x + (o * b.rows + i) * b.cols + c, width, &e.low, &e.high);
      keys.store(block, e);
    }
  });
}

// Blocks too large for a task, or with parts far apart: the pieces of their runs.
template <typename T>
void shared_runs(const stored_t<T>* x, const Blocks& b, const Keys<T>& keys) {
  const int64_t across = blocks_across(b), pieces = pieces_of(b.block_cols, kPiece);
  const int64_t grain = 1 + kPiece / smaller(b.block_cols, kPiece);
  parallel_for(b.outer * b.rows * across * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t run = i / pieces, row = run / across;
      const int64_t first = run % across * b.block_cols, c = first + i % pieces * kPiece;
      const int64_t stop = smaller(smaller(first + b.block_cols, c + kPiece), b.cols);
      Extremes<T> e;
      if (c < stop) fold_run(x + row * b.cols + c, stop - c, &e.low, &e.high);
      keys.fold(block_of(b, row / b.rows, row % b.rows, first), e.low, e.high);
    }
  });
}

// Narrow blocks: the keys of a tile of columns, over the rows of a block or a piece of them.
template <typename T>
void columns(const stored_t<T>* x, const Blocks& b, const Keys<T>& keys) {
  using S = stored_t<T>;
  const int64_t tile = smaller(kTile / b.block_cols * b.block_cols, b.cols);
  const int64_t tiles = pieces_of(b.cols, tile), down = blocks_down(b);
  const int64_t step = smaller(1 + kPiece / tile, b.block_rows);
  const int64_t slices = pieces_of(b.block_rows, step);
  const int64_t grain = 1 + kPiece / (tile * step);
  parallel_for(b.outer * down * slices * tiles, grain, [&](int64_t begin, int64_t end) {
    alignas(64) S low[kTile], high[kTile];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i % tiles * tile, width = smaller(tile, b.cols - c);
      const int64_t slice = i / tiles % slices, unit = i / tiles / slices;
      const int64_t top = unit % down * b.block_rows, o = unit / down;
      const int64_t first = top + slice * step;
      const int64_t stop = smaller(smaller(top + b.block_rows, first + step), b.rows);
      if (first >= stop) continue;
      for (int64_t k = 0; k < width; ++k) low[k] = Extremes<T>{}.low;
      for (int64_t k = 0; k < width; ++k) high[k] = Extremes<T>{}.high;
      for (int64_t r = first; r < stop; ++r) {
        const S* row = x + (o * b.rows + r) * b.cols + c;
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const S key = stored_key(row[k]);
          low[k] = key < low[k] ? key : low[k];
          high[k] = key > high[k] ? key : high[k];
        }
      }
      const int64_t block = block_of(b, o, first, c);
      for (int64_t k = 0, n = 0; k < width; k += b.block_cols, ++n) {
        S least = low[k], largest = high[k];
        for (int64_t j = k + 1; j < smaller(k + b.block_cols, width); ++j) {
          least = low[j] < least ? low[j] : least;
          largest = high[j] > largest ? high[j] : largest;
        }
        keys.fold(block + n, least, largest);
      }
    }
  });
}

template <typename T>
void range_as(const BlockRangeArgs& args) {
  using C = compute_t<T>;
  using K = order_key_t<C>;
  const Blocks b = flattened(args.blocks);
  const auto* x = static_cast<const stored_t<T>*>(args.x);
  const Keys<T> keys{static_cast<K*>(args.minimum), static_cast<K*>(args.maximum)};
  const bool empty = b.outer * b.rows * b.cols == 0;
  const bool apart = b.shared && b.outer != 1;
  const bool narrow = b.block_cols < kNarrow && (b.block_rows > 1 || apart);
  const bool small = smaller(b.block_rows, b.rows) * smaller(b.block_cols, b.cols) <= kPiece;
  if (!apart && !narrow && !empty && small) {
    if (b.outer == 1 && b.rows == 1) return flat_blocks<T>(x, b, keys);
    return whole_blocks<T>(x, b, keys);
  }
  const int64_t blocks = block_count(args.blocks);
  for (int64_t i = 0; i < blocks; ++i) keys.low[i] = kLeastKey<C>;
  for (int64_t i = 0; i < blocks; ++i) keys.high[i] = kLargestKey<C>;
  if (empty) {
    // Blocks of nothing keep the keys that they have.
  } else if (narrow)
    columns<T>(x, b, keys);
  else
    shared_runs<T>(x, b, keys);
  parallel_for(blocks, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      finish_range<C>(keys.low[i], keys.high[i], keys.low + i, keys.high + i);
  });
}

}  // namespace

void block_range(const BlockRangeArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { range_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
