#include "core/bits.h"
#include "core/noise.h"
#include "core/vector.cuh"
#include "masks/mask_apply.h"

namespace regkern::cuda {
namespace {

using namespace masks;

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;

// The mask bits of V elements from e on, e < numel.
template <int V, bool kFlat, typename I>
__device__ __forceinline__ uint32_t mask_bits(const MaskApplyArgs& args, I e) {
  // V divides 32 and e is a multiple of it: the bits stand in one word.
  if constexpr (kFlat) return args.mask[e >> 5] >> (e & 31);
  const MaskIndex& index = args.index;
  const I bit = mask_bit(index, e);
  if constexpr (V == 1) return args.mask[bit >> 5] >> (bit & 31);
  const I width = static_cast<I>(index.width), run = static_cast<I>(index.run);
  if (width == 1 && bit % run + V <= run) return load_bits(args.mask, args.mask_words, bit);
  if (width > 1 && e % width + V <= width)
    return (args.mask[bit >> 5] >> (bit & 31) & 1u) != 0 ? low_bits(V) : 0u;
  uint32_t bits = 0;
#pragma unroll 1
  for (int i = 0; i < V; ++i) {  // a boundary of the mask: rare, so small rather than fast
    if (e + i >= static_cast<I>(args.numel)) break;
    const I b = mask_bit(index, static_cast<I>(e + i));
    bits |= (args.mask[b >> 5] >> (b & 31) & 1u) << i;
  }
  return bits;
}

// normal_of() of V elements; neighbours share a counter of the generator.
template <int V, typename I>
__device__ __forceinline__ void normals(const MaskApplyArgs& args, I e, uint32_t bits, float* out) {
  const Seed seed = load_seed(args.seed);
  if (V == 1 || args.channels != 1) {
    // Not unrolled, it would be V generators long; a constant index keeps the results in registers.
#pragma unroll 1
    for (int i = 0; i < V; ++i) {
      if ((bits >> i & 1u) != 0 || e + i >= static_cast<I>(args.numel)) continue;
      const float normal =
          normal_of(seed, static_cast<uint64_t>(logical_index(args, static_cast<I>(e + i))));
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = j == i ? normal : out[j];
    }
    return;
  }
  if constexpr (V == 2) {
    const Words words = philox(seed, Stream::noise, static_cast<uint64_t>(e / 4));
    const bool second = (e & 2) != 0;
    normal_pair(second ? words.w[2] : words.w[0], second ? words.w[3] : words.w[1], out, out + 1);
  } else if constexpr (V > 2) {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      const Words words = philox(seed, Stream::noise, static_cast<uint64_t>(e / 4 + i / 4));
      normal_pair(words.w[0], words.w[1], out + i, out + i + 1);
      normal_pair(words.w[2], words.w[3], out + i + 2, out + i + 3);
    }
  }
}

// The result of V elements; with ReLU, `active` gets the bits of those that it lets through.
template <typename T, int V, bool kFlat, bool kExtras, typename I>
__device__ __forceinline__ Vector<T, V> product(const MaskApplyArgs& args, compute_t<T> scale, I e,
                                                const Vector<T, V>& x, uint32_t bits,
                                                const Vector<T, V>& residual, uint32_t* active) {
  using C = compute_t<T>;
  C v[V];
  if constexpr (kFlat) {
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = widen(x.v[i]) * ((bits >> i & 1u) != 0 ? scale : C(0));
  } else {
    const I per_scale = static_cast<I>(args.per_scale), numel = static_cast<I>(args.numel);
    I group = e / per_scale, left = (group + 1) * per_scale - e;
    scale = static_cast<C>(args.scale[group]);
#pragma unroll
    for (int i = 0; i < V; ++i, --left) {
      if (i > 0 && left == 0 && e + i < numel) {
        scale = static_cast<C>(args.scale[++group]);
        left = per_scale;
      }
      v[i] = widen(x.v[i]) * ((bits >> i & 1u) != 0 ? scale : C(0));
    }
  }
  if constexpr (kExtras) {
    const C deviation = static_cast<C>(args.noise);
    if (deviation != C(0) && (~bits & low_bits(V)) != 0) {
      float normal[V] = {};
      normals<V>(args, e, bits, normal);
#pragma unroll
      for (int i = 0; i < V; ++i)
        v[i] = (bits >> i & 1u) != 0 ? v[i] : v[i] + static_cast<C>(normal[i]) * deviation;
    }
    if (args.residual != nullptr) {
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] += widen(residual.v[i]);
    }
    if (args.relu) {
      // !(v <= 0): a NaN is active, as in torch's ReLU.
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const bool zero = v[i] <= C(0);
        *active |= static_cast<uint32_t>(!zero && e + i < static_cast<I>(args.numel)) << i;
        v[i] = zero ? C(0) : v[i];
      }
    }
    if (args.active != nullptr) {
      const uint32_t on = args.active[e >> 5] >> (e & 31);
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] = (on >> i & 1u) != 0 ? v[i] : C(0);
    }
  }
  Vector<T, V> y;
#pragma unroll
  for (int i = 0; i < V; ++i) narrow(v[i], y.v + i);
  return y;
}

// Up to V elements, as many as there are.
template <typename T, int V, typename I>
__device__ __forceinline__ Vector<T, V> load_some(const T* data, I e, I numel) {
  if (e + V <= numel) return load_vector<T, V>(data + e);
  Vector<T, V> x{};
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (e + i < numel) x.v[i] = data[e + i];
  return x;
}
template <typename T, int V, typename I>
__device__ __forceinline__ void store_some(const Vector<T, V>& y, T* data, I e, I numel) {
  if (e + V <= numel) return store_vector<T, V>(y, data + e);
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (e + i < numel) data[e + i] = y.v[i];
}

// Vectors of a thread that are loaded before the first is used. The extras load two tensors and
// need registers for their arithmetic.
template <int V, bool kExtras>
constexpr int kUnroll = kExtras ? (V > 4 ? 1 : 2) : 4;

// kCount vectors of each thread, a block's width apart. kFull: the tile ends within the tensor and
// nothing needs a check.
template <typename T, int V, bool kFlat, bool kExtras, int kCount, bool kFull, typename I>
__device__ __forceinline__ void apply_tile(const MaskApplyArgs& args, compute_t<T> scale, I base) {
  const T* x = static_cast<const T*>(args.x);
  const T* residual = static_cast<const T*>(args.residual);
  T* y = static_cast<T*>(args.y);
  const I numel = static_cast<I>(args.numel);
  base += static_cast<I>(threadIdx.x) * V;
  Vector<T, V> in[kCount]{}, added[kExtras ? kCount : 1]{};
  uint32_t bits[kCount]{};
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    const I e = base + static_cast<I>(u * kThreads * V);
    if (!kFull && e >= numel) continue;
    in[u] = kFull ? load_vector<T, V>(x + e) : load_some<T, V>(x, e, numel);
    if constexpr (kExtras)
      if (residual != nullptr)
        added[u] = kFull ? load_vector<T, V>(residual + e) : load_some<T, V>(residual, e, numel);
    bits[u] = mask_bits<V, kFlat>(args, e);
  }
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    const I e = base + static_cast<I>(u * kThreads * V);
    uint32_t active = 0;
    if (kFull || e < numel) {
      const Vector<T, V> out = product<T, V, kFlat, kExtras>(args, scale, e, in[u], bits[u],
                                                             added[kExtras ? u : 0], &active);
      if constexpr (kFull)
        store_vector<T, V>(out, y + e);
      else
        store_some<T, V>(out, y, e, numel);
    }
    if constexpr (kExtras) {
      // 32 / V neighbouring lanes hold a word of `active_out` between them.
      if (args.active_out != nullptr) {
        active <<= e & 31;
#pragma unroll
        for (int offset = 1; offset < 32 / V; offset *= 2)
          active |= __shfl_xor_sync(kWholeWarp, active, offset);
        if ((e & 31) == 0 && e < numel) args.active_out[e >> 5] = active;
      }
    }
  }
}

template <typename T, int V, bool kFlat, bool kExtras, typename I>
__global__ void __launch_bounds__(kThreads, kExtras ? (V > 4 ? 2 : 3) : 4)
    mask_apply_kernel(MaskApplyArgs args) {
  constexpr int kCount = kUnroll<V, kExtras>;
  constexpr I kTile = kThreads * kCount * V;
  const I numel = static_cast<I>(args.numel);
  const auto scale = static_cast<compute_t<T>>(kFlat ? args.scale[0] : 0.0);
  for (I base = static_cast<I>(blockIdx.x) * kTile; base < numel;
       base += static_cast<I>(gridDim.x) * kTile) {
    if (base + kTile <= numel) {
      apply_tile<T, V, kFlat, kExtras, kCount, true>(args, scale, base);
      continue;
    }
#pragma unroll 1
    for (int u = 0; u < kCount; ++u)
      apply_tile<T, V, kFlat, kExtras, 1, false>(args, scale,
                                                 base + static_cast<I>(u * kThreads * V));
  }
}

template <typename T, int V, bool kFlat, bool kExtras, typename I>
void launch_apply(const MaskApplyArgs& args, cudaStream_t stream) {
  constexpr int64_t kTile = int64_t{kThreads} * kUnroll<V, kExtras> * V;
  RK_LAUNCH((mask_apply_kernel<T, V, kFlat, kExtras, I>),
            grid_blocks(ceil_div(args.numel, kTile), kBlocksPerSm), kThreads, 0, stream, args);
}

template <typename T>
void apply_all(const MaskApplyArgs& args, cudaStream_t stream) {
  constexpr int V = kLanesOf<T>;
  const MaskIndex& index = args.index;
  const bool flat = index.width == 1 && index.repeat == 1 && index.run == args.numel &&
                    args.per_scale == args.numel;
  const bool small = args.numel < (int64_t{1} << 31);
  const bool extras =
      args.relu || args.residual != nullptr || args.active != nullptr || args.noise != 0.0;
  const bool aligned = is_aligned(args.x) && is_aligned(args.y) && is_aligned(args.residual);
  const auto launch_indexed = [&]<typename I>(I) {
    if (!aligned)  // one at a time; the extras cost little next to that
      return flat ? launch_apply<T, 1, true, true, I>(args, stream)
                  : launch_apply<T, 1, false, true, I>(args, stream);
    if (flat)
      return extras ? launch_apply<T, V, true, true, I>(args, stream)
                    : launch_apply<T, V, true, false, I>(args, stream);
    return extras ? launch_apply<T, V, false, true, I>(args, stream)
                  : launch_apply<T, V, false, false, I>(args, stream);
  };
  if (small)
    launch_indexed(uint32_t{});
  else
    launch_indexed(int64_t{});
}

}  // namespace

void mask_apply(const MaskApplyArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.numel == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) { apply_all<decltype(zero)>(args, stream); });
}

}  // namespace regkern::cuda
