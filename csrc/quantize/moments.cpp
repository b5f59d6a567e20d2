#include "quantize/moments.h"

#include "core/parallel.h"
#include "core/vec.h"
#include "quantize/range.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

constexpr int64_t kGroup = 16;                // chunks of a task
constexpr int64_t kTile = 16;                 // channels of a task where their runs are short
constexpr int64_t kShort = 16;                // a cache line of float
constexpr int64_t kPiece = int64_t{1} << 16;  // elements of a task of the backward
// Channels would start at the same place of the cache.
template <typename T>
constexpr int64_t kTileStride = kMomentsChunk<T> + 16;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
inline void widen_run(const T* x, int64_t n, compute_t<T>* out) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) load_block(x + i, out + i);
  for (; i < n; ++i) out[i] = widen(x[i]);
}

// The lanes of each thread from the first to the last, then the threads' butterfly.
template <typename T, typename C>
inline double tree_sum(const C* lanes) {
  constexpr int V = kVectorLanes<T>;
  double sums[kWarpThreads];
#pragma omp simd
  for (int p = 0; p < kWarpThreads; ++p) {
    double sum = static_cast<double>(lanes[V * p]);
    for (int k = 1; k < V; ++k) sum += static_cast<double>(lanes[V * p + k]);
    sums[p] = sum;
  }
  for (int half = kWarpThreads / 2; half > 0; half /= 2)
#pragma omp simd
    for (int p = 0; p < half; ++p) sums[p] += sums[p + half];
  return sums[0];
}

template <typename C>
struct Keys {
  order_key_t<C> low = kLeastKey<C>, high = kLargestKey<C>;
};

// The extremes of a chunk, both NaN if an element is.
template <typename C>
inline void chunk_range(const Keys<C>& keys, C* low, C* high) {
  order_key_t<C> least, largest;
  finish_range<C>(keys.low, keys.high, &least, &largest);
  *low = bit_cast<C>(least);
  *high = bit_cast<C>(largest);
}

// The moments of a whole chunk. Row j holds the elements [j L, (j + 1) L).
template <typename T>
MomentsPartial whole_chunk(const compute_t<T>* x) {
  using C = compute_t<T>;
  constexpr int L = kMomentsLanes<T>;
  constexpr double n = kMomentsChunk<T>;
  alignas(64) C s1[L], s2[L], s3[L], s4[L];
  order_key_t<C> least = kLeastKey<C>, largest = kLargestKey<C>;
#pragma omp simd reduction(min : least) reduction(max : largest)
  for (int l = 0; l < L; ++l) {
    C sum = C(0);
#pragma GCC unroll 8
    for (int j = 0; j < kMomentsRows; ++j) {
      const C v = x[j * L + l];
      const order_key_t<C> key = order_key(v);
      sum += v;
      least = key < least ? key : least;
      largest = key > largest ? key : largest;
    }
    s1[l] = sum;
  }
  C low, high;
  chunk_range<C>({least, largest}, &low, &high);
  const MomentsUnit<C> u = unit_of<C>(tree_sum<T>(s1), n, low, high);
#pragma omp simd
  for (int l = 0; l < L; ++l) {
    C t1 = C(0), t2 = C(0), t3 = C(0), t4 = C(0);
#pragma GCC unroll 8
    for (int j = 0; j < kMomentsRows; ++j) {
      const C t = x[j * L + l] * u.inverse - u.scaled_pivot, q = t * t;
      t1 += t;
      t2 += q;
      t3 += q * t;
      t4 += q * q;
    }
    s1[l] = t1;
    s2[l] = t2;
    s3[l] = t3;
    s4[l] = t4;
  }
  return chunk_partial(u, n, tree_sum<T>(s1), tree_sum<T>(s2), tree_sum<T>(s3), tree_sum<T>(s4),
                       static_cast<double>(low), static_cast<double>(high));
}

// The same of the first n elements; x has room for a whole chunk. What is beyond them adds zeros.
template <typename T>
MomentsPartial part_of_chunk(compute_t<T>* x, int64_t n) {
  using C = compute_t<T>;
  constexpr int L = kMomentsLanes<T>;
  const int rows = static_cast<int>((n + L - 1) / L);
  order_key_t<C> least = kLeastKey<C>, largest = kLargestKey<C>;
#pragma omp simd reduction(min : least) reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) {
    const order_key_t<C> key = order_key(x[i]);
    least = key < least ? key : least;
    largest = key > largest ? key : largest;
  }
  C low, high;
  chunk_range<C>({least, largest}, &low, &high);
  alignas(64) C s1[L] = {}, s2[L] = {}, s3[L] = {}, s4[L] = {};
  for (int64_t i = n; i < rows * L; ++i) x[i] = C(0);
  for (int j = 0; j < rows; ++j)
#pragma omp simd
    for (int l = 0; l < L; ++l) s1[l] += x[j * L + l];
  const auto count = static_cast<double>(n);
  const MomentsUnit<C> u = unit_of<C>(tree_sum<T>(s1), count, low, high);
  for (int64_t i = n; i < rows * L; ++i) x[i] = u.pivot;
  for (int l = 0; l < L; ++l) s1[l] = C(0);
  for (int j = 0; j < rows; ++j) {
#pragma omp simd
    for (int l = 0; l < L; ++l) {
      const C t = x[j * L + l] * u.inverse - u.scaled_pivot, q = t * t;
      s1[l] += t;
      s2[l] += q;
      s3[l] += q * t;
      s4[l] += q * q;
    }
  }
  return chunk_partial(u, count, tree_sum<T>(s1), tree_sum<T>(s2), tree_sum<T>(s3), tree_sum<T>(s4),
                       static_cast<double>(low), static_cast<double>(high));
}

// The binary tree over neighbours; the result is in p[0].
inline void merge_tree(MomentsPartial* p, int64_t n) {
  for (int64_t step = 1; step < n; step *= 2)
    for (int64_t i = 0; i + step < n; i += 2 * step) p[i] = merged_moments(p[i], p[i + step]);
}

// The elements [q, q + n) of a channel, side by side.
template <typename T>
void gather_channel(const MomentsItem& m, int64_t channel, int64_t q, int64_t n,
                    compute_t<T>* out) {
  const T* x = static_cast<const T*>(m.x);
  int64_t o = q / m.inner, i = q % m.inner;
  for (int64_t done = 0; done < n; ++o, i = 0) {
    const int64_t run = smaller(m.inner - i, n - done);
    widen_run(x + (o * m.channels + channel) * m.inner + i, run, out + done);
    done += run;
  }
}

// The same of neighbouring channels whose runs share cache lines.
template <typename T>
void gather_tile(const MomentsItem& m, int64_t channel, int64_t channels, int64_t q, int64_t n,
                 compute_t<T>* out) {
  const T* x = static_cast<const T*>(m.x);
  int64_t o = q / m.inner, i = q % m.inner;
  for (int64_t done = 0; done < n; ++o, i = 0) {
    const int64_t run = smaller(m.inner - i, n - done);
    const T* row = x + (o * m.channels + channel) * m.inner + i;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t k = 0; k < run; ++k)
        out[c * kTileStride<T> + done + k] = widen(row[c * m.inner + k]);
    done += run;
  }
}

template <typename T>
void item_moments(const MomentsArgs& args, const MomentsItem& m) {
  using C = compute_t<T>;
  constexpr int64_t kSize = kMomentsChunk<T>;
  const int64_t n = channel_elements(m), chunks = (n + kSize - 1) / kSize;
  const int64_t groups = (chunks + kGroup - 1) / kGroup;
  const int64_t width = m.inner < kShort ? smaller(kTile, m.channels) : 1;
  const int64_t tiles = (m.channels + width - 1) / width;
  const Scratch<MomentsPartial> partials(m.channels * groups);
  const T* x = static_cast<const T*>(m.x);
  const int64_t grain = 1 + kPiece / (1 + width * smaller(n, kGroup * kSize));
  parallel_for(groups * tiles, grain, [&](int64_t begin, int64_t end) {
    const Scratch<C> buffer(width * kTileStride<T>);
    MomentsPartial p[kTile][kGroup];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / tiles, channel = task % tiles * width;
      const int64_t channels = smaller(width, m.channels - channel);
      const int64_t count = smaller(kGroup, chunks - group * kGroup);
      for (int64_t k = 0; k < count; ++k) {
        const int64_t q = (group * kGroup + k) * kSize, size = smaller(kSize, n - q);
        const int64_t o = q / m.inner, i = q % m.inner;
        if (width == 1 && sizeof(T) == sizeof(C) && size == kSize && i + kSize <= m.inner) {
          const T* data = x + (o * m.channels + channel) * m.inner + i;
          p[0][k] = whole_chunk<T>(reinterpret_cast<const C*>(data));
          continue;
        }
        if (width == 1)
          gather_channel<T>(m, channel, q, size, buffer.data());
        else
          gather_tile<T>(m, channel, channels, q, size, buffer.data());
        for (int64_t c = 0; c < channels; ++c) {
          C* data = buffer.data() + c * kTileStride<T>;
          p[c][k] = size == kSize ? whole_chunk<T>(data) : part_of_chunk<T>(data, size);
        }
      }
      for (int64_t c = 0; c < channels; ++c) {
        merge_tree(p[c], count);
        partials[(channel + c) * groups + group] = p[c][0];
      }
    }
  });
  parallel_for(m.channels, 1 + 4096 / (groups + 1), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      merge_tree(partials.data() + c * groups, groups);
      write_moments(groups > 0 ? partials[c * groups] : no_elements(), m.first + c, args.stride,
                    args.range, args.moments);
    }
  });
}

// ---- backward ----

template <typename T>
void cubic_run(const MomentsCubicAs<compute_t<T>>& cubic, const T* x, int64_t n, T* dx) {
  compute_t<T> v[kBlock] = {};
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t size = smaller(kBlock, n - i);
    if (size == kBlock)
      load_block(x + i, v);
    else
      for (int64_t k = 0; k < size; ++k) v[k] = widen(x[i + k]);
#pragma omp simd
    for (int k = 0; k < kBlock; ++k) v[k] = cubic_at(cubic, v[k]);
    if (size == kBlock)
      store_block(v, dx + i);
    else
      for (int64_t k = 0; k < size; ++k) narrow(v[k], dx + i + k);
  }
}

// The coefficients of neighbouring columns, one array after the other.
template <typename C>
struct Columns {
  C mean[kBlock], rest[kBlock], inverse[kBlock], a0[kBlock], a1[kBlock], a2[kBlock], a3[kBlock];

  void set(int k, const MomentsCubicAs<C>& c) {
    mean[k] = c.mean;
    rest[k] = c.rest;
    inverse[k] = c.inverse;
    a0[k] = c.a0;
    a1[k] = c.a1;
    a2[k] = c.a2;
    a3[k] = c.a3;
  }
};

template <typename T>
void cubic_columns(const Columns<compute_t<T>>& c, const T* x, int64_t n, T* dx) {
  compute_t<T> v[kBlock] = {};
  if (n == kBlock)
    load_block(x, v);
  else
    for (int64_t k = 0; k < n; ++k) v[k] = widen(x[k]);
#pragma omp simd
  for (int k = 0; k < kBlock; ++k) {
    const compute_t<T> z = ((v[k] - c.mean[k]) - c.rest[k]) * c.inverse[k];
    v[k] = c.a0[k] + z * (c.a1[k] + z * (c.a2[k] + z * c.a3[k]));
  }
  if (n == kBlock)
    store_block(v, dx);
  else
    for (int64_t k = 0; k < n; ++k) narrow(v[k], dx + k);
}

template <typename T>
void item_backward(const MomentsBackwardArgs& args, const MomentsItem& m) {
  using C = compute_t<T>;
  const auto n = static_cast<double>(channel_elements(m));
  const T* x = static_cast<const T*>(m.x);
  T* dx = static_cast<T*>(m.dx);
  const Scratch<MomentsCubicAs<C>> cubics(m.channels);
  for (int64_t c = 0; c < m.channels; ++c) cubics[c] = cubic_as<C>(cubic_of(args, m.first + c, n));
  if (m.inner >= kBlock || m.channels == 1) {
    const int64_t pieces = (m.inner + kPiece - 1) / kPiece;
    const int64_t grain = 1 + kPiece / smaller(m.inner + 1, kPiece);
    parallel_for(m.outer * m.channels * pieces, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t run = i / pieces, at = i % pieces * kPiece;
        const int64_t e = run * m.inner + at;
        cubic_run(cubics[run % m.channels], x + e, smaller(kPiece, m.inner - at), dx + e);
      }
    });
    return;
  }
  // Rows of columns, each with coefficients of its own.
  const int64_t columns = m.channels * m.inner, tiles = (columns + kBlock - 1) / kBlock;
  const Scratch<Columns<C>> coefficients(tiles);
  for (int64_t i = 0; i < tiles * kBlock; ++i)
    coefficients[i / kBlock].set(static_cast<int>(i % kBlock),
                                 cubics[(i < columns ? i : 0) / m.inner]);
  parallel_for(m.outer * tiles, kPiece / kBlock, [&](int64_t begin, int64_t end) {
    int64_t row = begin / tiles, tile = begin % tiles;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = tile * kBlock, e = row * columns + c;
      cubic_columns(coefficients[tile], x + e, smaller(kBlock, columns - c), dx + e);
      if (++tile == tiles) {
        tile = 0;
        ++row;
      }
    }
  });
}

}  // namespace

void moments(const MomentsArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    for (int64_t i = 0; i < args.count; ++i) item_moments<decltype(zero)>(args, args.items[i]);
  });
}

void moments_backward(const MomentsBackwardArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    for (int64_t i = 0; i < args.count; ++i) item_backward<decltype(zero)>(args, args.items[i]);
  });
}

}  // namespace regkern::REGKERN_ISA
