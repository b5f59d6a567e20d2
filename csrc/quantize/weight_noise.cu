#include "core/vector.cuh"
#include "quantize/weight_noise.h"

namespace regkern::cuda {
namespace {

using namespace quantize;

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;

// e / d; on 32 bits where both fit, which is several times faster.
__device__ __forceinline__ int64_t quotient(int64_t e, int64_t d, bool narrow) {
  return narrow ? static_cast<int64_t>(static_cast<uint32_t>(e) / static_cast<uint32_t>(d)) : e / d;
}

// V elements from e on, e a multiple of V and less than total; zeros past the end.
template <typename T, int V>
__device__ __forceinline__ Vector<T, V> load_some(const T* data, int64_t e, int64_t total,
                                                  bool wide) {
  if (wide && e + V <= total) return load_vector<T, V>(data + e);
  Vector<T, V> x{};
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (e + i < total) x.v[i] = data[e + i];
  return x;
}
template <typename T, int V>
__device__ __forceinline__ void store_some(const Vector<T, V>& y, T* data, int64_t e, int64_t total,
                                           bool wide) {
  if (wide && e + V <= total) return store_vector(y, data + e);
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (e + i < total) data[e + i] = y.v[i];
}

// The words of V neighbours from e on. V divides 4, or 4 divides V, and e is a multiple of V.
template <int V>
__device__ __forceinline__ void item_words(Seed seed, Stream stream, int64_t e, uint32_t* out) {
#pragma unroll
  for (int i = 0; i < V; i += 4) {
    const Words words = philox(seed, stream, static_cast<uint64_t>((e + i) / 4));
    if constexpr (V == 2) {
      const bool second = (e & 2) != 0;
      out[0] = second ? words.w[2] : words.w[0];
      out[1] = second ? words.w[3] : words.w[1];
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) out[i + j] = words.w[j];
    }
  }
}

// normal_of() of V neighbours.
template <int V>
__device__ __forceinline__ void normals(Seed seed, int64_t e, float* out) {
  uint32_t words[V];
  item_words<V>(seed, Stream::noise, e, words);
#pragma unroll
  for (int i = 0; i < V; i += 2) normal_pair(words[i], words[i + 1], out + i, out + i + 1);
}

template <typename T, Noise kKind>
__global__ void __launch_bounds__(kThreads)
    weight_noise_kernel(WeightNoiseArgs args, bool wide, bool narrow_index) {
  using C = compute_t<T>;
  constexpr int V = kLanesOf<T>;
  const int64_t size = args.rows * args.row_size, total = args.copies * size;
  const T* w = static_cast<const T*>(args.w);
  T* y = static_cast<T*>(args.y);
  const C* scale = static_cast<const C*>(args.scale);
  const NoiseNumbers<C> numbers = noise_numbers<C>(args);
  const Threshold drop = threshold_of(args.drop);
  const Seed seed = args.seed != nullptr ? load_seed(args.seed) : Seed{0, 0};
  const bool by_place = args.scale_count > 1 || args.exempt_last_column;
  const C one_scale = args.scale_count == 1 ? scale[0] : C(1);
  double range = kKind == Noise::dorefa ? tanh_range(static_cast<double>(one_scale)) : 1.0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * V;
  for (int64_t e = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V; e < total;
       e += stride) {
    // Copies are read where `size` is a multiple of V, or element by element.
    int64_t from = args.copies > 1 ? e - quotient(e, size, narrow_index) * size : e;
    Vector<T, V> x{};
    if (wide || args.copies == 1) {
      x = load_some<T, V>(w, from, size, wide);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (e + i < total) x.v[i] = w[from + i < size ? from + i : (from + i) % size];
    }
    float n[V] = {};
    if (draws_normals(args)) normals<V>(seed, e, n);
    uint32_t dropped = 0;
    if (drop.any) {
      uint32_t words[V];
      item_words<V>(seed, Stream::mask, e, words);
#pragma unroll
      for (int i = 0; i < V; ++i) dropped |= static_cast<uint32_t>(words[i] <= drop.last) << i;
    }
    int64_t row = by_place ? quotient(from, args.row_size, narrow_index) : 0;
    int64_t left = by_place ? (row + 1) * args.row_size - from : 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const C s = args.scale_count > 1 ? scale[row] : one_scale;
      const uint32_t bits =
          args.stochastic ? random_bits<16>(seed, Stream::rounding, static_cast<uint64_t>(e + i))
                          : 0u;
      if (kKind == Noise::dorefa && args.scale_count > 1)
        range = tanh_range(static_cast<double>(s));
      const C value = static_cast<C>(widen(x.v[i]));
      const double unit =
          kKind == Noise::dorefa ? tanh_unit(static_cast<double>(value), range) : 0.0;
      C out = noisy<kKind>(numbers, value, s, unit, static_cast<C>(n[i]), bits);
      if (drop.any) out *= (dropped >> i & 1u) != 0 ? C(0) : static_cast<C>(args.kept_scale);
      if (!args.exempt_last_column || left != 1) narrow(out, x.v + i);
      if (by_place && --left == 0) {
        row = row + 1 == args.rows ? 0 : row + 1;
        left = args.row_size;
      }
    }
    store_some<T, V>(x, y, e, total, wide);
  }
}

template <typename T, Noise kKind>
void launch_noise(const WeightNoiseArgs& args, cudaStream_t stream) {
  constexpr int V = kLanesOf<T>;
  const int64_t size = args.rows * args.row_size, total = args.copies * size;
  const bool wide = is_aligned(args.w) && is_aligned(args.y) && (args.copies == 1 || size % V == 0);
  RK_LAUNCH((weight_noise_kernel<T, kKind>),
            grid_blocks(ceil_div(total, int64_t{kThreads} * V), kBlocksPerSm), kThreads, 0, stream,
            args, wide, total < int64_t{1} << 31);
}

// ---- max |w| ----

// The bits of |x| as an integer, ordered as the values.
__device__ __forceinline__ uint32_t magnitude(float x) {
  return bit_cast<uint32_t>(x) & ~(1u << 31);
}
__device__ __forceinline__ unsigned long long magnitude(double x) {
  return bit_cast<unsigned long long>(x) & ~(1ull << 63);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    absmax_kernel(WeightAbsmaxArgs args, int64_t rows, int64_t size, int64_t use, int64_t slices,
                  bool wide) {
  using C = compute_t<T>;
  using B = decltype(magnitude(C{}));
  constexpr int V = kLanesOf<T>;
  RK_SHARED(B, partial, kThreads / 32);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t work = blockIdx.x; work < rows * slices; work += gridDim.x) {
    const int64_t row = work / slices, slice = work - row * slices;
    const T* w = static_cast<const T*>(args.w) + row * size;
    B most = 0;
    for (int64_t e = (slice * kThreads + threadIdx.x) * V; e < use; e += slices * kThreads * V) {
      const Vector<T, V> x = load_some<T, V>(w, e, use, wide);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const B bits = magnitude(static_cast<C>(widen(x.v[i])));
        most = bits > most ? bits : most;
      }
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      const B other = __shfl_xor_sync(kWholeWarp, most, offset);
      most = other > most ? other : most;
    }
    if (lane == 0) partial[warp] = most;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = 1; i < kThreads / 32; ++i) most = partial[i] > most ? partial[i] : most;
      atomicMax(static_cast<B*>(args.out) + (args.per_row ? row : 0), most);
    }
    __syncthreads();
  }
}

// ---- uniform noise ----

template <typename T>
__global__ void __launch_bounds__(kThreads)
    uniform_noise_kernel(UniformNoiseArgs args, bool wide, bool narrow_index) {
  using C = compute_t<T>;
  constexpr int V = kLanesOf<T>;
  const int64_t total = args.outer * args.channels * args.inner;
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const C* step = static_cast<const C*>(args.step);
  const Seed seed = load_seed(args.seed);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * V;
  for (int64_t e = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V; e < total;
       e += stride) {
    Vector<T, V> v = load_some<T, V>(x, e, total, wide);
    uint32_t words[V];
    item_words<V>(seed, Stream::noise, e, words);
    int64_t channel = 0, left = V;
    if (args.channels > 1) {
      const int64_t segment = quotient(e, args.inner, narrow_index);
      channel = segment - quotient(segment, args.channels, narrow_index) * args.channels;
      left = (segment + 1) * args.inner - e;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      narrow(widen(v.v[i]) + step[channel] * static_cast<C>(centred_uniform(words[i])), v.v + i);
      if (args.channels > 1 && --left == 0) {
        channel = channel + 1 == args.channels ? 0 : channel + 1;
        left = args.inner;
      }
    }
    store_some<T, V>(v, y, e, total, wide);
  }
}

// A warp adds a piece of a channel; a lane of it is a lane of the sum.
template <typename T>
__global__ void __launch_bounds__(kThreads) noise_pieces_kernel(UniformNoiseSumArgs args) {
  static_assert(kNoiseLanes == 32);
  const T* g = static_cast<const T*>(args.g);
  const Seed seed = load_seed(args.seed);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  const int64_t rows = piece_rows(args.inner), in = inner_pieces(args.inner);
  const int64_t work = outer_pieces(args.outer, args.inner) * args.channels * in;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       item < work; item += warps) {
    const int64_t p = item % in, c = item / in % args.channels,
                  o0 = item / in / args.channels * rows;
    const int64_t o1 = o0 + rows < args.outer ? o0 + rows : args.outer;
    const int64_t start = p * kPiece;
    const int64_t n = args.inner - start < kPiece ? args.inner - start : kPiece;
    double sum = 0.0;
    for (int64_t t = lane; t < (o1 - o0) * n; t += kNoiseLanes) {
      // A piece has at most kPiece elements.
      const int64_t o = quotient(t, n, true), i = t - o * n;
      const int64_t e = ((o0 + o) * args.channels + c) * args.inner + start + i;
      const uint32_t word = item_word(seed, Stream::noise, static_cast<uint64_t>(e));
      sum += static_cast<double>(widen(g[e])) * static_cast<double>(centred_uniform(word));
    }
    for (int width = kNoiseLanes / 2; width > 0; width /= 2)
      sum += __shfl_down_sync(kWholeWarp, sum, static_cast<unsigned>(width));
    if (lane == 0) args.partial[item] = sum;
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads) noise_channels_kernel(UniformNoiseSumArgs args) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; c < args.channels;
       c += stride)
    static_cast<C*>(args.out)[c] = static_cast<C>(channel_sum(args, c));
}

}  // namespace

void weight_noise(const WeightNoiseArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    switch (args.kind) {
      case Noise::none:
        return launch_noise<T, Noise::none>(args, stream);
      case Noise::add:
        return launch_noise<T, Noise::add>(args, stream);
      case Noise::multiply:
        return launch_noise<T, Noise::multiply>(args, stream);
      case Noise::discretize:
        return launch_noise<T, Noise::discretize>(args, stream);
      case Noise::dorefa:
        return launch_noise<T, Noise::dorefa>(args, stream);
      case Noise::poly:
        return launch_noise<T, Noise::poly>(args, stream);
      case Noise::prog:
        return launch_noise<T, Noise::prog>(args, stream);
    }
  });
}

void weight_absmax(const WeightAbsmaxArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t exempt = args.exempt_last_column ? 1 : 0;
  const bool flat = !args.per_row && exempt == 0;
  const int64_t rows = flat ? 1 : args.rows,
                size = flat ? args.rows * args.row_size : args.row_size;
  const int64_t use = size - exempt;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = kLanesOf<T>;
    zero_async(args.out,
               static_cast<std::size_t>(args.per_row ? args.rows : 1) * sizeof(compute_t<T>),
               stream);
    if (rows * use <= 0) return;
    const int64_t most = ceil_div(use, int64_t{4} * kThreads * V);
    const int64_t wanted = ceil_div(int64_t{device_sm_count()} * kBlocksPerSm, rows);
    const int64_t slices = wanted < most ? wanted : most;
    const bool wide = is_aligned(args.w) && size % V == 0;
    RK_LAUNCH((absmax_kernel<T>), grid_blocks(rows * slices, kBlocksPerSm), kThreads, 0, stream,
              args, rows, size, use, slices, wide);
  });
}

void uniform_noise(const UniformNoiseArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t total = args.outer * args.channels * args.inner;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    RK_LAUNCH((uniform_noise_kernel<T>),
              grid_blocks(ceil_div(total, int64_t{kThreads} * kLanesOf<T>), kBlocksPerSm), kThreads,
              0, stream, args, is_aligned(args.x) && is_aligned(args.y), total < int64_t{1} << 31);
  });
}

void uniform_noise_sum(const UniformNoiseSumArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t work =
      outer_pieces(args.outer, args.inner) * args.channels * inner_pieces(args.inner);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (work > 0)
      RK_LAUNCH((noise_pieces_kernel<T>),
                grid_blocks(ceil_div(work, int64_t{kThreads / 32}), kBlocksPerSm), kThreads, 0,
                stream, args);
    RK_LAUNCH((noise_channels_kernel<compute_t<T>>),
              grid_blocks(ceil_div(args.channels, int64_t{kThreads}), kBlocksPerSm), kThreads, 0,
              stream, args);
  });
}

}  // namespace regkern::cuda
