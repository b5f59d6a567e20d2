#include "quantize/weight_noise.h"

#include <cstring>
#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

constexpr int kRun = kRandomBlock;  // elements at a time
static_assert(kRun == 2 * kBlock);
constexpr int64_t kGrain = 256;  // runs that are worth a thread

// Calls f(kind) with the kind as a constant.
template <typename F>
void dispatch_kind(Noise kind, F&& f) {
  switch (kind) {
    case Noise::none:
      return f(std::integral_constant<Noise, Noise::none>{});
    case Noise::add:
      return f(std::integral_constant<Noise, Noise::add>{});
    case Noise::multiply:
      return f(std::integral_constant<Noise, Noise::multiply>{});
    case Noise::discretize:
      return f(std::integral_constant<Noise, Noise::discretize>{});
    case Noise::dorefa:
      return f(std::integral_constant<Noise, Noise::dorefa>{});
    case Noise::poly:
      return f(std::integral_constant<Noise, Noise::poly>{});
    case Noise::prog:
      return f(std::integral_constant<Noise, Noise::prog>{});
  }
}

template <typename T>
void store_run(const compute_t<T>* in, T* y, int64_t n, bool streaming) {
  if (n < kRun) {
    for (int64_t i = 0; i < n; ++i) narrow(in[i], y + i);
    return;
  }
  alignas(64) T block[kBlock];
  for (int half = 0; half < kRun; half += kBlock) {
    store_block(in + half, streaming ? block : y + half);
    if (streaming) stream_block(block, y + half);
  }
}

template <Noise kKind, typename T>
void noise_runs(const WeightNoiseArgs& args, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const int64_t size = args.rows * args.row_size, total = args.copies * size;
  const T* w = static_cast<const T*>(args.w);
  T* y = static_cast<T*>(args.y);
  const C* scale = static_cast<const C*>(args.scale);
  const NoiseNumbers<C> numbers = noise_numbers<C>(args);
  const Seed seed = args.seed != nullptr ? load_seed(args.seed) : Seed{0, 0};
  const bool normals = draws_normals(args);
  const bool streaming = total * static_cast<int64_t>(sizeof(T)) > kStreamingBytes &&
                         reinterpret_cast<uintptr_t>(y) % 64 == 0 && args.w != args.y;
  const Threshold drop = threshold_of(args.drop);
  const C kept = static_cast<C>(args.kept_scale);
  alignas(64) C x[kRun], out[kRun], s[kRun], n[kRun];
  alignas(64) double range[kRun], unit[kRun];
  alignas(64) float normal[kRun];
  alignas(64) uint32_t bits[kRun];
  for (int i = 0; i < kRun; ++i) {
    x[i] = C(0);
    s[i] = args.scale_count == 1 ? scale[0] : C(1);
    range[i] = kKind == Noise::dorefa ? tanh_range(static_cast<double>(s[i])) : 1.0;
    unit[i] = 0.0;
    n[i] = C(0);
    bits[i] = 0;
  }
  for (int64_t run = begin; run < end; ++run) {
    const int64_t e = run * kRun, left = total - e, count = left < kRun ? left : kRun;
    const int64_t from = args.copies > 1 ? e % size : e;
    if (count == kRun && from + kRun <= size) {
      load_block(w + from, x);
      load_block(w + from + kBlock, x + kBlock);
    } else {
      for (int64_t i = 0; i < count; ++i) x[i] = widen(w[(from + i) % size]);
    }
    if (args.scale_count > 1)
      for (int64_t i = 0; i < count;) {
        const int64_t place = (from + i) % size, row = place / args.row_size;
        const int64_t rest = (row + 1) * args.row_size - place;
        const int64_t stop = rest < count - i ? i + rest : count;
        const double range_of_row =
            kKind == Noise::dorefa ? tanh_range(static_cast<double>(scale[row])) : 1.0;
        for (; i < stop; ++i) {
          s[i] = scale[row];
          range[i] = range_of_row;
        }
      }
    if (normals) {
      normal_block(seed, static_cast<uint64_t>(e), normal);
      normal_block(seed, static_cast<uint64_t>(e + kBlock), normal + kBlock);
#pragma omp simd
      for (int i = 0; i < kRun; ++i) n[i] = static_cast<C>(normal[i]);
    }
    if (args.stochastic)
      random_bits_block<16>(seed, Stream::rounding, static_cast<uint64_t>(e), bits);
    if (kKind == Noise::dorefa) {
      // Apart from what follows, which the compiler would not vectorise together with it.
#pragma omp simd
      for (int i = 0; i < kRun; ++i) unit[i] = tanh_unit(static_cast<double>(x[i]), range[i]);
    }
#pragma omp simd
    for (int i = 0; i < kRun; ++i)
      out[i] = noisy<kKind>(numbers, x[i], s[i], unit[i], n[i], bits[i]);
    if (drop.any) {
      uint32_t words[kRun];
      item_words_block(seed, Stream::mask, static_cast<uint64_t>(e), words);
      item_words_block(seed, Stream::mask, static_cast<uint64_t>(e + kBlock), words + kBlock);
#pragma omp simd
      for (int i = 0; i < kRun; ++i) out[i] *= words[i] <= drop.last ? C(0) : kept;
    }
    if (args.exempt_last_column)
      for (int64_t i = args.row_size - 1 - from % args.row_size; i < count; i += args.row_size)
        out[i] = x[i];
    store_run(out, y + e, count, streaming);
  }
  if (streaming) stream_fence();
}

// ---- max |w| ----

template <typename C>
using BitsOf = std::conditional_t<sizeof(C) == 8, uint64_t, uint32_t>;

template <typename T>
BitsOf<compute_t<T>> absmax_of(const T* w, int64_t n) {
  using C = compute_t<T>;
  using B = BitsOf<C>;
  constexpr B kMagnitude = static_cast<B>(~B{0}) >> 1;
  B most[kBlock] = {};
  C x[kBlock];
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    load_block(w + i, x);
#pragma omp simd
    for (int j = 0; j < kBlock; ++j) {
      const B bits = bit_cast<B>(x[j]) & kMagnitude;
      most[j] = bits > most[j] ? bits : most[j];
    }
  }
  for (; i < n; ++i) {
    const B bits = bit_cast<B>(static_cast<C>(widen(w[i]))) & kMagnitude;
    most[0] = bits > most[0] ? bits : most[0];
  }
  for (int j = 1; j < kBlock; ++j) most[0] = most[j] > most[0] ? most[j] : most[0];
  return most[0];
}

template <typename T>
void absmax_rows(const WeightAbsmaxArgs& args) {
  using C = compute_t<T>;
  using B = BitsOf<C>;
  const T* w = static_cast<const T*>(args.w);
  C* out = static_cast<C*>(args.out);
  const int64_t exempt = args.exempt_last_column ? 1 : 0;
  const bool flat = !args.per_row && exempt == 0;
  const int64_t rows = flat ? 1 : args.rows,
                size = flat ? args.rows * args.row_size : args.row_size;
  const int64_t use = size - exempt;
  constexpr int64_t kSlice = int64_t{1} << 15;
  const int64_t slices = use > 0 ? (use + kSlice - 1) / kSlice : 0;
  Scratch<B> most(rows * slices);
  parallel_for(rows * slices, 1 + kSlice / (use + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / slices, start = i % slices * kSlice;
      const int64_t n = use - start < kSlice ? use - start : kSlice;
      most[i] = absmax_of(w + row * size + start, n);
    }
  });
  B all = 0;
  for (int64_t row = 0; row < rows; ++row) {
    B one = 0;
    for (int64_t i = row * slices; i < (row + 1) * slices; ++i) one = most[i] > one ? most[i] : one;
    if (args.per_row) out[row] = bit_cast<C>(one);
    all = one > all ? one : all;
  }
  if (!args.per_row) out[0] = bit_cast<C>(all);
}

// ---- uniform noise ----

template <typename T>
void uniform_runs(const UniformNoiseArgs& args, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const int64_t total = args.outer * args.channels * args.inner;
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const C* step = static_cast<const C*>(args.step);
  const Seed seed = load_seed(args.seed);
  const bool streaming = total * static_cast<int64_t>(sizeof(T)) > kStreamingBytes &&
                         reinterpret_cast<uintptr_t>(y) % 64 == 0 && args.x != args.y;
  alignas(64) C v[kRun] = {}, d[kRun];
  alignas(64) uint32_t words[kRun];
  for (int i = 0; i < kRun; ++i) d[i] = step[0];
  for (int64_t run = begin; run < end; ++run) {
    const int64_t e = run * kRun, left = total - e, count = left < kRun ? left : kRun;
    if (count == kRun) {
      load_block(x + e, v);
      load_block(x + e + kBlock, v + kBlock);
    } else {
      for (int64_t i = 0; i < count; ++i) v[i] = widen(x[e + i]);
    }
    if (args.channels > 1)
      for (int64_t i = 0; i < count;) {
        const int64_t segment = (e + i) / args.inner;
        const int64_t rest = (segment + 1) * args.inner - (e + i);
        const int64_t stop = rest < count - i ? i + rest : count;
        const C value = step[segment % args.channels];
        for (; i < stop; ++i) d[i] = value;
      }
    item_words_block(seed, Stream::noise, static_cast<uint64_t>(e), words);
    item_words_block(seed, Stream::noise, static_cast<uint64_t>(e + kBlock), words + kBlock);
#pragma omp simd
    for (int i = 0; i < kRun; ++i) v[i] = v[i] + d[i] * static_cast<C>(centred_uniform(words[i]));
    store_run(v, y + e, count, streaming);
  }
  if (streaming) stream_fence();
}

// lanes[(t + i) mod kNoiseLanes] += Σ g (U − ½) over the elements [e, e + n).
template <typename T>
void add_segment(Seed seed, const T* g, int64_t e, int64_t n, int64_t t, double* lanes) {
  uint32_t words[kBlock];
  double product[kBlock];
  for (int64_t block = e / kBlock * kBlock; block < e + n; block += kBlock) {
    item_words_block(seed, Stream::noise, static_cast<uint64_t>(block), words);
    const int64_t from = block > e ? block : e;
    const int64_t to = block + kBlock < e + n ? block + kBlock : e + n;
#pragma omp simd
    for (int64_t i = from; i < to; ++i)
      product[i - block] =
          static_cast<double>(widen(g[i])) * static_cast<double>(centred_uniform(words[i - block]));
    for (int64_t i = from; i < to;) {
      const int64_t lane = (t + i - e) % kNoiseLanes;
      const int64_t run = to - i < kNoiseLanes - lane ? to - i : kNoiseLanes - lane;
#pragma omp simd
      for (int64_t j = 0; j < run; ++j) lanes[lane + j] += product[i - block + j];
      i += run;
    }
  }
}

double lanes_sum(double* lanes) {
  for (int width = kNoiseLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// The pieces [begin, end) of all outer ones. Rows of few elements are read in memory order, all
// channels at once; longer ones channel by channel.
template <typename T>
void sum_pieces(const UniformNoiseSumArgs& args, int64_t begin, int64_t end) {
  const T* g = static_cast<const T*>(args.g);
  const Seed seed = load_seed(args.seed);
  const int64_t rows = piece_rows(args.inner), in = inner_pieces(args.inner);
  Scratch<double> lanes(args.channels * kNoiseLanes);
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t o0 = piece / in * rows, p = piece % in;
    const int64_t o1 = o0 + rows < args.outer ? o0 + rows : args.outer;
    const int64_t start = p * kPiece;
    const int64_t n = args.inner - start < kPiece ? args.inner - start : kPiece;
    memset(lanes.data(), 0, static_cast<size_t>(args.channels * kNoiseLanes) * sizeof(double));
    if (args.inner >= kNoiseLanes) {
      for (int64_t o = o0; o < o1; ++o)
        for (int64_t c = 0; c < args.channels; ++c)
          add_segment(seed, g, (o * args.channels + c) * args.inner + start, n,
                      (o - o0) * args.inner, lanes.data() + c * kNoiseLanes);
    } else {
      uint32_t words[kBlock];
      int64_t drawn = -1;
      for (int64_t o = o0; o < o1; ++o)
        for (int64_t c = 0; c < args.channels; ++c)
          for (int64_t i = 0; i < args.inner; ++i) {
            const int64_t e = (o * args.channels + c) * args.inner + i;
            if (e / kBlock != drawn) {
              drawn = e / kBlock;
              item_words_block(seed, Stream::noise, static_cast<uint64_t>(drawn * kBlock), words);
            }
            lanes[c * kNoiseLanes + ((o - o0) * args.inner + i) % kNoiseLanes] +=
                static_cast<double>(widen(g[e])) *
                static_cast<double>(centred_uniform(words[e % kBlock]));
          }
    }
    for (int64_t c = 0; c < args.channels; ++c)
      args.partial[(piece / in * args.channels + c) * in + p] =
          lanes_sum(lanes.data() + c * kNoiseLanes);
  }
}

}  // namespace

void weight_noise(const WeightNoiseArgs& args, Context) {
  const int64_t total = args.copies * args.rows * args.row_size;
  parallel_for((total + kRun - 1) / kRun, kGrain, [&](int64_t begin, int64_t end) {
    dispatch_floating(args.dtype, [&](auto zero) {
      dispatch_kind(args.kind, [&](auto kind) {
        noise_runs<decltype(kind)::value, decltype(zero)>(args, begin, end);
      });
    });
  });
}

void weight_absmax(const WeightAbsmaxArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { absmax_rows<decltype(zero)>(args); });
}

void uniform_noise(const UniformNoiseArgs& args, Context) {
  const int64_t total = args.outer * args.channels * args.inner;
  parallel_for((total + kRun - 1) / kRun, kGrain, [&](int64_t begin, int64_t end) {
    dispatch_floating(args.dtype,
                      [&](auto zero) { uniform_runs<decltype(zero)>(args, begin, end); });
  });
}

void uniform_noise_sum(const UniformNoiseSumArgs& args, Context) {
  const int64_t pieces = outer_pieces(args.outer, args.inner) * inner_pieces(args.inner);
  const int64_t grain = 1 + (int64_t{1} << 15) / (kPiece * args.channels + 1);
  parallel_for(pieces, grain, [&](int64_t begin, int64_t end) {
    dispatch_floating(args.dtype, [&](auto zero) { sum_pieces<decltype(zero)>(args, begin, end); });
  });
  for (int64_t c = 0; c < args.channels; ++c) {
    const double sum = channel_sum(args, c);
    if (args.dtype == Dtype::float64)
      static_cast<double*>(args.out)[c] = sum;
    else
      static_cast<float*>(args.out)[c] = static_cast<float>(sum);
  }
}

}  // namespace regkern::REGKERN_ISA
