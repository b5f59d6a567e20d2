#include "quantize/moments.h"

#include "core/parallel.h"
#include "core/registers.h"
#include "core/vec.h"
#include "quantize/range.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

constexpr int64_t kGroup = 16;                // chunks of a task
constexpr int64_t kShort = 16;                // a cache line of float
constexpr int kWide = 16;                     // channels side by side
constexpr int64_t kTile = 4 * kWide;          // channels of a task where their runs are short
constexpr int64_t kPiece = int64_t{1} << 16;  // elements of a task of the backward

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
inline void widen_run(const T* x, int64_t n, compute_t<T>* out) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) load_block(x + i, out + i);
  for (; i < n; ++i) out[i] = widen(x[i]);
}

// A vector register: gcc 12 does not vectorise over the outer of two loops whose inner one has no
// constant length, and that is 1.9 against 0.5 ns per element.
template <typename C>
struct RegisterOf {
  typedef C type __attribute__((vector_size(kRegisterBytes)));
};
template <typename C>
using Register = typename RegisterOf<C>::type;
template <typename C>
constexpr int kRegister = kRegisterBytes / static_cast<int>(sizeof(C));

template <typename C>
inline __attribute__((always_inline)) Register<C> loaded(const C* x) {
  Register<C> v;
  memcpy(&v, x, sizeof(v));
  return v;
}

// The moments of a chunk of n elements; of W chunks side by side, with x[q W + w] the element q of
// chunk w. The arrays have room for whole rows of lanes: what is beyond n adds zeros.
template <typename T, int W>
class Chunk {
 public:
  using C = compute_t<T>;
  using K = order_key_t<C>;

  void moments(C* x, int64_t n, MomentsPartial* out) {
    const auto rows = static_cast<int>((n + L - 1) / L);
    const auto count = static_cast<double>(n);
    C low[W], high[W];
    extremes(x, n, low, high);
    // The next chunk, most likely: else nothing is loaded while this one is computed on, which
    // is 1.3 against 1.0 times the copy.
    for (int64_t i = 0; i < n * W; i += 64 / static_cast<int64_t>(sizeof(C)))
      __builtin_prefetch(x + n * W + i);
    for (int64_t i = n * W; i < rows * L * W; ++i) x[i] = C(0);
    double sum[W], s1[W], s2[W], s3[W], s4[W];
    lane_sums(x, rows);
    tree(first_, sum);
    MomentsUnit<C> units[W];
    for (int w = 0; w < W; ++w) {
      units[w] = unit_of<C>(sum[w], count, low[w], high[w]);
      inverse_[w] = units[w].inverse;
      pivot_[w] = units[w].scaled_pivot;
    }
    for (int64_t i = n * W; i < rows * L * W; ++i) x[i] = units[i % W].pivot;
    lane_powers(x, rows);
    tree(first_, s1);
    tree(second_, s2);
    tree(third_, s3);
    tree(fourth_, s4);
    for (int w = 0; w < W; ++w)
      out[w] = chunk_partial(units[w], count, s1[w], s2[w], s3[w], s4[w],
                             static_cast<double>(low[w]), static_cast<double>(high[w]));
  }

 private:
  static constexpr int L = kMomentsLanes<T>, V = kMomentsVector<T>;
  static constexpr int kAll = L * W;

  // The least and the largest, both NaN if an element is.
  static void extremes(const C* x, int64_t n, C* low, C* high) {
    K least[W], largest[W];
    for (int w = 0; w < W; ++w) {
      least[w] = kLeastKey<C>;
      largest[w] = kLargestKey<C>;
    }
    if constexpr (W == 1) {
      K a = kLeastKey<C>, b = kLargestKey<C>;
#pragma omp simd reduction(min : a) reduction(max : b)
      for (int64_t i = 0; i < n; ++i) {
        const K key = order_key(x[i]);
        a = key < a ? key : a;
        b = key > b ? key : b;
      }
      least[0] = a;
      largest[0] = b;
    } else {
      for (int64_t i = 0; i < n; ++i) {
#pragma omp simd
        for (int w = 0; w < W; ++w) {
          const K key = order_key(x[i * W + w]);
          least[w] = key < least[w] ? key : least[w];
          largest[w] = key > largest[w] ? key : largest[w];
        }
      }
    }
    for (int w = 0; w < W; ++w) {
      finish_range<C>(least[w], largest[w], least + w, largest + w);
      low[w] = bit_cast<C>(least[w]);
      high[w] = bit_cast<C>(largest[w]);
    }
  }

  void lane_sums(const C* x, int rows) {
    for (int l = 0; l < kAll; l += kRegister<C>) {
      Register<C> sum = {};
      for (int j = 0; j < rows; ++j) sum += loaded<C>(x + j * kAll + l);
      memcpy(first_ + l, &sum, sizeof(sum));
    }
  }

  void lane_powers(const C* x, int rows) {
    // inverse_ and pivot_ repeat every W.
    C inverses[W < kRegister<C> ? kRegister<C> : W], pivots[W < kRegister<C> ? kRegister<C> : W];
    constexpr int kPeriod = sizeof(inverses) / sizeof(C);
    for (int w = 0; w < kPeriod; ++w) {
      inverses[w] = inverse_[w % W];
      pivots[w] = pivot_[w % W];
    }
    for (int l = 0; l < kAll; l += kRegister<C>) {
      Register<C> t1 = {}, t2 = {}, t3 = {}, t4 = {};
      const Register<C> inverse = loaded<C>(inverses + l % kPeriod);
      const Register<C> pivot = loaded<C>(pivots + l % kPeriod);
      for (int j = 0; j < rows; ++j) {
        const Register<C> t = loaded<C>(x + j * kAll + l) * inverse - pivot, q = t * t;
        t1 += t;
        t2 += q;
        t3 += q * t;
        t4 += q * q;
      }
      memcpy(first_ + l, &t1, sizeof(t1));
      memcpy(second_ + l, &t2, sizeof(t2));
      memcpy(third_ + l, &t3, sizeof(t3));
      memcpy(fourth_ + l, &t4, sizeof(t4));
    }
  }

  // The lanes of each thread from the first to the last, then the threads' butterfly.
  static void tree(const C* lanes, double* out) {
    double sums[kWarpThreads * W];
#pragma omp simd
    for (int i = 0; i < kWarpThreads * W; ++i) {
      const C* own = lanes + i / W * V * W + i % W;
      double sum = static_cast<double>(own[0]);
      for (int k = 1; k < V; ++k) sum += static_cast<double>(own[k * W]);
      sums[i] = sum;
    }
    for (int half = kWarpThreads / 2; half > 0; half /= 2)
#pragma omp simd
      for (int i = 0; i < half * W; ++i) sums[i] += sums[i + half * W];
    for (int w = 0; w < W; ++w) out[w] = sums[w];
  }

  alignas(64) C first_[kAll], second_[kAll], third_[kAll], fourth_[kAll];
  C inverse_[W], pivot_[W];
};

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

// The same of neighbouring channels whose runs share cache lines, kWide of them side by side.
template <typename T>
void gather_tile(const MomentsItem& m, int64_t channel, int64_t channels, int64_t q, int64_t n,
                 compute_t<T>* out) {
  const T* x = static_cast<const T*>(m.x);
  const int64_t width = m.channels * m.inner;
  constexpr int64_t kAhead = 16, kLine = 64 / static_cast<int64_t>(sizeof(T));
  int64_t o = q / m.inner, i = q % m.inner;
  for (int64_t done = 0; done < n; ++o, i = 0) {
    const int64_t run = smaller(m.inner - i, n - done);
    const T* row = x + o * width + channel * m.inner + i;
    // Far apart: no stream that the hardware would notice.
    for (int64_t k = 0; k < channels * m.inner; k += kLine)
      __builtin_prefetch(row + kAhead * width + k);
    for (int64_t c = 0; c < channels; c += kWide) {
      compute_t<T>* to = out + (c * kMomentsChunk<T> + done * kWide);
      if (m.inner == 1 && c + kWide <= channels) {
#pragma omp simd
        for (int k = 0; k < kWide; ++k) to[k] = widen(row[c + k]);
        continue;
      }
      for (int64_t k = 0; k < run * kWide; ++k) {
        const int64_t own = c + k % kWide < channels ? c + k % kWide : c;
        to[k] = widen(row[own * m.inner + k / kWide]);
      }
    }
    done += run;
  }
}

template <typename T>
void item_moments(const MomentsArgs& args, const MomentsItem& m) {
  using C = compute_t<T>;
  constexpr int64_t kSize = kMomentsChunk<T>;
  const int64_t n = channel_elements(m), chunks = (n + kSize - 1) / kSize;
  const int64_t groups = (chunks + kGroup - 1) / kGroup;
  const int64_t width = m.inner < kShort && m.channels > 1 ? kTile : 1;
  const int64_t tiles = (m.channels + width - 1) / width;
  const Scratch<MomentsPartial> partials(m.channels * groups);
  const T* x = static_cast<const T*>(m.x);
  const int64_t grain = 1 + kPiece / (1 + width * smaller(n, kGroup * kSize));
  parallel_for(groups * tiles, grain, [&](int64_t begin, int64_t end) {
    const Scratch<C> buffer(width * kSize);
    const Scratch<MomentsPartial> p(width * kGroup);
    Chunk<T, 1> chunk;
    Chunk<T, kWide> chunks_abreast;
    MomentsPartial abreast[kWide];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / tiles, channel = task % tiles * width;
      const int64_t channels = smaller(width, m.channels - channel);
      const int64_t count = smaller(kGroup, chunks - group * kGroup);
      for (int64_t k = 0; k < count; ++k) {
        const int64_t q = (group * kGroup + k) * kSize, size = smaller(kSize, n - q);
        const int64_t o = q / m.inner, i = q % m.inner;
        if (width == 1) {
          // A whole chunk is only read.
          const T* run = x + (o * m.channels + channel) * m.inner + i;
          C* data = const_cast<C*>(reinterpret_cast<const C*>(run));
          if (sizeof(T) != sizeof(C) || size != kSize || i + kSize > m.inner) {
            data = buffer.data();
            gather_channel<T>(m, channel, q, size, data);
          }
          chunk.moments(data, size, p.data() + k);
          continue;
        }
        gather_tile<T>(m, channel, channels, q, size, buffer.data());
        for (int64_t c = 0; c < channels; c += kWide) {
          chunks_abreast.moments(buffer.data() + c * kSize, size, abreast);
          for (int64_t w = 0; w < smaller(kWide, channels - c); ++w)
            p[(c + w) * kGroup + k] = abreast[w];
        }
      }
      for (int64_t c = 0; c < channels; ++c) {
        merge_tree(p.data() + c * kGroup, count);
        partials[(channel + c) * groups + group] = p[c * kGroup];
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
