#include "quantize/select.h"

#include <cstring>
#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

// Blocks of at most so many elements are chosen element by element, longer ones copied.
constexpr int kShortBlock = 32;

template <typename F>
void dispatch_width(int itemsize, F&& f) {
  if (itemsize == 2) return f(uint16_t{});
  if (itemsize == 4) return f(uint32_t{});
  f(uint64_t{});
}

// f(n) with n a constant for the lengths that matter, else 0.
template <typename F>
void dispatch_length(int64_t length, F&& f) {
  switch (length) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 8:
      return f(std::integral_constant<int, 8>{});
    case 9:
      return f(std::integral_constant<int, 9>{});
    case 16:
      return f(std::integral_constant<int, 16>{});
    case 32:
      return f(std::integral_constant<int, 32>{});
    default:
      return f(std::integral_constant<int, 0>{});
  }
}

// 64 blocks from `first` on: on[i] is all ones where block first + i is replaced. Returns how many
// there are.
template <typename U>
int64_t draw_blocks(const BlockSelectArgs& args, const Threshold& threshold, int64_t first,
                    U on[kBlock]) {
  uint32_t words[kBlock];
  item_words_block(load_seed(args.draw.seed), Stream::mask, static_cast<uint64_t>(first), words);
  const U ones = static_cast<U>(~U{0}), flip = args.invert ? ones : U{0};
  const U any = threshold.any ? ones : U{0};
#pragma omp simd
  for (int i = 0; i < kBlock; ++i)
    on[i] = static_cast<U>(((words[i] <= threshold.last ? ones : U{0}) & any) ^ flip);
  const int64_t left = block_count(args.blocks) - first;
  return left < kBlock ? left : kBlock;
}

// y = on ? q : w for n elements, without a branch. q may be null.
template <typename U>
void choose(const U* w, const U* q, const U* on, U* y, int64_t n, bool streaming) {
  alignas(64) U block[kBlock];
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    U* out = streaming ? block : y + i;
    if (q == nullptr) {
#pragma omp simd
      for (int j = 0; j < kBlock; ++j) out[j] = static_cast<U>(w[i + j] & ~on[i + j]);
    } else {
#pragma omp simd
      for (int j = 0; j < kBlock; ++j)
        out[j] = static_cast<U>((w[i + j] & ~on[i + j]) | (q[i + j] & on[i + j]));
    }
    if (streaming) stream_block(block, y + i);
  }
  for (; i < n; ++i) y[i] = static_cast<U>((w[i] & ~on[i]) | (q == nullptr ? U{0} : q[i] & on[i]));
}

// Short blocks: bits are spread over elements, 64 blocks at a time.
template <typename U, int kLength>
void select_short(const BlockSelectArgs& args, const Threshold& threshold, int64_t begin,
                  int64_t end, bool streaming) {
  const RowBlocks& b = args.blocks;
  const bool even = is_even(b);
  const int64_t across = blocks_per_row(b), length = kLength > 0 ? kLength : b.block;
  const auto* w = static_cast<const U*>(args.w);
  const auto* q = static_cast<const U*>(args.q);
  auto* y = static_cast<U*>(args.y);
  U on[kBlock], spread[kBlock * kShortBlock], pattern[kBlock * kShortBlock];
  if (q != nullptr && args.q_shared && even)
    for (int64_t i = 0; i < kBlock * length; ++i) pattern[i] = q[i % length];
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t count = draw_blocks(args, threshold, chunk * kBlock, on);
    const int64_t start = block_range(b, chunk * kBlock).start;
    int64_t n = 0;
    if (even) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < length; ++j) spread[i * length + j] = on[i];
      n = count * length;
    } else {
      int64_t column = chunk * kBlock % across;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t left = b.row_size - column * b.block;
        const int64_t size = left < b.block ? left : b.block;
        for (int64_t j = 0; j < size; ++j) spread[n + j] = on[i];
        if (q != nullptr && args.q_shared)
          for (int64_t j = 0; j < size; ++j) pattern[n + j] = q[j];
        n += size;
        column = column + 1 == across ? 0 : column + 1;
      }
    }
    choose(w + start,
           q == nullptr    ? nullptr
           : args.q_shared ? pattern
                           : q + start,
           spread, y + start, n, streaming);
  }
}

// Long blocks, or in place: runs of blocks that stay, and single blocks that are replaced.
template <typename U>
void select_runs(const BlockSelectArgs& args, const Threshold& threshold, int64_t begin,
                 int64_t end, bool streaming) {
  const RowBlocks& b = args.blocks;
  constexpr auto kSize = static_cast<int64_t>(sizeof(U));
  const auto* w = static_cast<const U*>(args.w);
  const auto* q = static_cast<const U*>(args.q);
  auto* y = static_cast<U*>(args.y);
  const bool in_place = args.w == args.y;
  U on[kBlock];
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kBlock;
    const int64_t count = draw_blocks(args, threshold, first, on);
    int64_t kept = block_range(b, first).start;  // what begins here is not yet written
    for (int64_t i = 0; i <= count; ++i) {
      if (i < count && on[i] == 0) continue;
      const BlockRange last = block_range(b, first + i - (i == count ? 1 : 0));
      const int64_t start = i == count ? last.start + last.size : last.start;
      if (!in_place) copy_bytes(w + kept, y + kept, (start - kept) * kSize, streaming);
      if (i == count) break;
      if (q == nullptr)
        memset(y + start, 0, static_cast<size_t>(last.size * kSize));
      else
        copy_bytes(args.q_shared ? q : q + start, y + start, last.size * kSize, streaming);
      kept = start + last.size;
    }
  }
}

int64_t chunk_grain(const RowBlocks& b) {
  const int64_t chunk = kBlock * (b.block < b.row_size ? b.block : b.row_size);
  return 1 + (int64_t{1} << 15) / (chunk + 1);
}

// ---- centroids ----

constexpr int kBatch = 4;   // blocks that share a load of centroids
constexpr int kLanes = 16;  // centroids side by side

template <typename C>
struct Batch {
  int64_t block[kBatch];
  int64_t size;
  int count;
};

// The first k of the smallest distance. No distance below infinity: the first that is not NaN.
template <typename C>
int32_t lowest(const C* best, const int32_t* where, const C* values, const C* codebook,
               int64_t padded, int64_t centroids, int64_t size) {
  const C infinity = static_cast<C>(__builtin_inf());
  C least = infinity;
  int32_t found = kNoNearest;
  for (int i = 0; i < kLanes; ++i)
    if (best[i] < least || (best[i] == least && least < infinity && where[i] < found)) {
      least = best[i];
      found = where[i];
    }
  if (found != kNoNearest) return found;
  for (int64_t k = 0; k < centroids; ++k) {
    C sum = 0;
    for (int64_t j = 0; j < size; ++j) {
      const C d = values[j] - codebook[j * padded + k];
      sum += d * d;
    }
    if (sum == sum) return static_cast<int32_t>(k);
  }
  return kNoNearest;
}

template <typename T, int kCount>
void search(const NearestCentroidArgs& args, const Batch<compute_t<T>>& batch,
            const compute_t<T>* codebook, int64_t padded, compute_t<T>* values) {
  using C = compute_t<T>;
  const RowBlocks& b = args.blocks;
  const T* w = static_cast<const T*>(args.w);
  for (int i = 0; i < kCount; ++i) {
    const int64_t start = block_range(b, batch.block[i]).start;
    for (int64_t j = 0; j < batch.size; ++j) values[i * b.block + j] = widen(w[start + j]);
  }
  C best[kCount][kLanes];
  int32_t where[kCount][kLanes];
  for (int i = 0; i < kCount; ++i)
    for (int l = 0; l < kLanes; ++l) {
      best[i][l] = static_cast<C>(__builtin_inf());
      where[i][l] = kNoNearest;
    }
  for (int64_t k = 0; k < padded; k += kLanes) {
    C sum[kCount][kLanes] = {};
    for (int64_t j = 0; j < batch.size; ++j) {
      const C* c = codebook + j * padded + k;
      for (int i = 0; i < kCount; ++i) {
        const C v = values[i * b.block + j];
#pragma omp simd
        for (int l = 0; l < kLanes; ++l) {
          const C d = v - c[l];
          sum[i][l] += d * d;
        }
      }
    }
    for (int i = 0; i < kCount; ++i) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const bool less = sum[i][l] < best[i][l];
        best[i][l] = less ? sum[i][l] : best[i][l];
        where[i][l] = less ? static_cast<int32_t>(k) + l : where[i][l];
      }
    }
  }
  for (int i = 0; i < kCount; ++i)
    args.index[batch.block[i]] = lowest(best[i], where[i], values + i * b.block, codebook, padded,
                                        args.centroids, batch.size);
}

template <typename T>
void search_blocks(const NearestCentroidArgs& args, const compute_t<T>* codebook, int64_t padded,
                   int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const RowBlocks& b = args.blocks;
  const Threshold threshold = args.drawn ? threshold_of(args.draw) : Threshold{};
  const Seed seed = args.drawn ? load_seed(args.draw.seed) : Seed{0, 0};
  Scratch<C> values(kBatch * b.block);
  Batch<C> batch{};
  const auto flush = [&] {
    if (batch.count == kBatch) search<T, kBatch>(args, batch, codebook, padded, values.data());
    if (batch.count < kBatch)
      for (int i = 0; i < batch.count; ++i) {
        Batch<C> one{};
        one.block[0] = batch.block[i];
        one.size = batch.size;
        search<T, 1>(args, one, codebook, padded, values.data());
      }
    batch.count = 0;
  };
  for (int64_t i = begin; i < end; ++i) {
    if (args.drawn && !is_one(threshold, item_word(seed, Stream::mask, static_cast<uint64_t>(i)))) {
      args.index[i] = kNotDrawn;
      continue;
    }
    const int64_t size = block_range(b, i).size;
    if (batch.count > 0 && size != batch.size) flush();
    batch.size = size;
    batch.block[batch.count++] = i;
    if (batch.count == kBatch) flush();
  }
  flush();
}

template <typename U, int kLength>
void gather(const CentroidSelectArgs& args, int64_t begin, int64_t end) {
  const RowBlocks& b = args.blocks;
  const auto* w = static_cast<const U*>(args.w);
  const auto* codebook = static_cast<const U*>(args.codebook);
  auto* y = static_cast<U*>(args.y);
  const bool even = is_even(b);
  for (int64_t i = begin; i < end; ++i) {
    const BlockRange r = even ? BlockRange{i * b.block, b.block} : block_range(b, i);
    const int64_t size = even && kLength > 0 ? kLength : r.size;
    const int32_t k = args.index[i];
    const bool found = k >= 0 && k < args.centroids;
    if (!found && k != kNotDrawn) {
      memset(y + r.start, 0xFF, static_cast<size_t>(size) * sizeof(U));
      continue;
    }
    const U* from = found ? codebook + k * b.block : w + r.start;
    for (int64_t j = 0; j < size; ++j) y[r.start + j] = from[j];
  }
}

template <typename T>
void sum_list(const CentroidSumArgs& args, int64_t k, double* lanes) {
  const RowBlocks& b = args.blocks;
  const T* g = static_cast<const T*>(args.g);
  T* out = static_cast<T*>(args.out) + k * b.block;
  memset(lanes, 0, static_cast<size_t>(kSumLanes * b.block) * sizeof(double));
  const int64_t begin = args.offsets[k], end = args.offsets[k + 1];
  const bool even = is_even(b);
  for (int64_t i = begin; i < end; ++i) {
    const BlockRange r =
        even ? BlockRange{args.order[i] * b.block, b.block} : block_range(b, args.order[i]);
    double* lane = lanes + (i - begin) % kSumLanes * b.block;
#pragma omp simd
    for (int64_t j = 0; j < r.size; ++j) lane[j] += static_cast<double>(widen(g[r.start + j]));
  }
  for (int width = kSumLanes / 2; width > 0; width /= 2)
    for (int64_t j = 0; j < width * b.block; ++j) lanes[j] += lanes[width * b.block + j];
  for (int64_t j = 0; j < b.block; ++j) narrow(static_cast<compute_t<T>>(lanes[j]), out + j);
}

// ---- mean ----

template <typename T>
void mean_chunk(const SubvectorMeanArgs& args, int64_t chunk) {
  const RowBlocks& b = args.blocks;
  const int64_t step = kMeanLanes * b.block;
  const int64_t begin = chunk * kMeanChunk, count = block_count(b);
  const int64_t end = begin + kMeanChunk < count ? begin + kMeanChunk : count;
  const T* w = static_cast<const T*>(args.w);
  double* sum = args.partial + chunk * step;
  memset(sum, 0, static_cast<size_t>(step) * sizeof(double));
  int64_t i = begin;
  if (is_even(b))
    for (; i + kMeanLanes <= end; i += kMeanLanes) {
      const T* from = w + i * b.block;
#pragma omp simd
      for (int64_t j = 0; j < step; ++j) sum[j] += static_cast<double>(widen(from[j]));
    }
  for (; i < end; ++i) {
    const BlockRange r = block_range(b, i);
    double* lane = sum + i % kMeanLanes * b.block;
#pragma omp simd
    for (int64_t j = 0; j < r.size; ++j) lane[j] += static_cast<double>(widen(w[r.start + j]));
  }
}

}  // namespace

void block_select(const BlockSelectArgs& args, Context) {
  const RowBlocks& b = args.blocks;
  const Threshold threshold = threshold_of(args.draw);
  const int64_t chunks = (block_count(b) + kBlock - 1) / kBlock;
  const bool short_blocks = b.block <= kShortBlock && args.w != args.y;
  parallel_for(chunks, chunk_grain(b), [&](int64_t begin, int64_t end) {
    dispatch_width(args.itemsize, [&](auto zero) {
      using U = decltype(zero);
      bool streaming = b.rows * b.row_size * static_cast<int64_t>(sizeof(U)) > kStreamingBytes;
      if (short_blocks) {
        // Whole chunks of even blocks begin at a multiple of 64 elements.
        streaming = streaming && is_even(b) && reinterpret_cast<uintptr_t>(args.y) % 64 == 0;
        dispatch_length(is_even(b) ? b.block : 0, [&](auto length) {
          select_short<U, decltype(length)::value>(args, threshold, begin, end, streaming);
        });
      } else {
        select_runs<U>(args, threshold, begin, end, streaming);
      }
      if (streaming) stream_fence();
    });
  });
}

void nearest_centroid(const NearestCentroidArgs& args, Context) {
  const RowBlocks& b = args.blocks;
  const int64_t padded = (args.centroids + kLanes - 1) / kLanes * kLanes;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    Scratch<C> codebook(padded * b.block);
    const T* from = static_cast<const T*>(args.codebook);
    for (int64_t j = 0; j < b.block; ++j)
      for (int64_t k = 0; k < padded; ++k)
        codebook[j * padded + k] = k < args.centroids ? widen(from[j * args.centroids + k])
                                                      : static_cast<C>(__builtin_nan(""));
    const int64_t grain = 1 + (int64_t{1} << 16) / (padded * b.block + 1);
    parallel_for(block_count(b), grain, [&](int64_t begin, int64_t end) {
      search_blocks<T>(args, codebook.data(), padded, begin, end);
    });
  });
}

void centroid_select(const CentroidSelectArgs& args, Context) {
  const RowBlocks& b = args.blocks;
  const int64_t grain = 1 + (int64_t{1} << 15) / (b.block + 1);
  parallel_for(block_count(b), grain, [&](int64_t begin, int64_t end) {
    dispatch_width(args.itemsize, [&](auto zero) {
      dispatch_length(b.block, [&](auto length) {
        gather<decltype(zero), decltype(length)::value>(args, begin, end);
      });
    });
  });
}

void centroid_sum(const CentroidSumArgs& args, Context) {
  parallel_for(args.centroids, 1, [&](int64_t begin, int64_t end) {
    Scratch<double> lanes(kSumLanes * args.blocks.block);
    dispatch_floating(args.dtype, [&](auto zero) {
      for (int64_t k = begin; k < end; ++k) sum_list<decltype(zero)>(args, k, lanes.data());
    });
  });
}

void subvector_mean(const SubvectorMeanArgs& args, Context) {
  parallel_for(mean_chunks(args.blocks), 1, [&](int64_t begin, int64_t end) {
    dispatch_floating(args.dtype, [&](auto zero) {
      for (int64_t chunk = begin; chunk < end; ++chunk) mean_chunk<decltype(zero)>(args, chunk);
    });
  });
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t j = 0; j < args.blocks.block; ++j)
      narrow(static_cast<compute_t<T>>(mean_from(args, j)), static_cast<T*>(args.out) + j);
  });
}

}  // namespace regkern::REGKERN_ISA
