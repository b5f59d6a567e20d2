#include "core/launch.cuh"
#include "masks/noise_inject.h"

namespace regkern::cuda {
namespace {

using namespace masks;

constexpr int kThreads = 256;
constexpr int kApart = 8;  // elements of a thread, 16 apart: the normals of one counter

// The numbers of elements 16 apart, `first` the first of them.
__device__ __forceinline__ void draw_apart(Seed seed, bool normal, int64_t first,
                                           float out[kApart]) {
  const auto u = static_cast<uint64_t>(first);
  if (normal) {
    const uint64_t counter = u / kNormalChunk * 16 + u % 16;
    return normals_apart(seed, counter, philox(seed, Stream::noise, counter), out);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Words words = philox(seed, Stream::noise, (u / 64 + half) * 16 + u % 16);
#pragma unroll
    for (int j = 0; j < 4; ++j) out[4 * half + j] = signed_uniform(words.w[j]);
  }
}

// What c, p, d, q and r are at a group.
template <typename C>
__device__ __forceinline__ C coefficient(const NoiseInjectArgs& args, int k, int64_t group) {
  const C* const given = static_cast<const C*>(args.coefficients[k]);
  return given != nullptr ? given[group] : C(k == kFactor ? 1 : 0);
}

// Sixteen threads have a chunk.
__device__ __forceinline__ int64_t first_element(int64_t thread) {
  return thread / 16 * kNormalChunk + thread % 16;
}

template <typename T, bool kPlain>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    noise_inject_kernel(const __grid_constant__ NoiseInjectArgs args, int64_t threads) {
  using C = compute_t<T>;
  const Seed seed = load_seed(args.seed);
  const bool one = args.index.width >= args.numel,
             multiply = args.coefficients[kFactorNoise] != nullptr;
  const bool more = args.coefficients[kShiftMore] != nullptr;
  const int64_t padded = padded_noise(args.numel);
  const T* const x = static_cast<const T*>(args.x);
  T *const y = static_cast<T*>(args.y), *const noise = static_cast<T*>(args.noise);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; t < threads;
       t += stride) {
    const int64_t first = first_element(t);
    T in[kApart];
#pragma unroll
    for (int j = 0; j < kApart; ++j)
      if (first + 16 * j < args.numel) in[j] = x[first + 16 * j];
    float n[kApart], m[kApart] = {};
    draw_apart(seed, args.normal, first, n);
    if (!kPlain && more) draw_apart(seed, args.normal, padded + first, m);
#pragma unroll
    for (int j = 0; j < kApart; ++j) {
      const int64_t e = first + 16 * j;
      if (e >= args.numel) continue;
      const int64_t group = one ? 0 : mask_bit(args.index, e);
      const C v = widen(in[j]);
      const C drawn = static_cast<C>(n[j]);
      C out;
      if constexpr (kPlain)
        out = multiply ? v * (C(1) + coefficient<C>(args, kFactorNoise, group) * drawn)
                       : v + coefficient<C>(args, kShiftNoise, group) * drawn;
      else
        out = noisy(v, coefficient<C>(args, kFactor, group),
                    coefficient<C>(args, kFactorNoise, group), coefficient<C>(args, kShift, group),
                    coefficient<C>(args, kShiftNoise, group),
                    coefficient<C>(args, kShiftMore, group), drawn, static_cast<C>(m[j]));
      narrow(out, y + e);
      if (noise != nullptr) narrow(drawn, noise + e);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    noise_triplet_kernel(const __grid_constant__ NoiseTripletArgs args, int64_t threads) {
  using C = compute_t<T>;
  const Seed seed = load_seed(args.seed);
  const int64_t numel = args.batch * args.size, padded = padded_noise(numel);
  const C eps = static_cast<C>(args.eps);
  const T* const x = static_cast<const T*>(args.x);
  T* const y = static_cast<T*>(args.y);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; t < threads;
       t += stride) {
    const int64_t first = first_element(t);
    float n[kApart], m[kApart];
    draw_apart(seed, false, first, n);
    draw_apart(seed, false, padded + first, m);
#pragma unroll
    for (int j = 0; j < kApart; ++j) {
      const int64_t e = first + 16 * j;
      if (e >= numel) continue;
      const C alpha = static_cast<C>(args.alpha[e / args.size]);
      const C v = widen(x[e]);
      const C a = v + eps * static_cast<C>(n[j]), b = v + eps * static_cast<C>(m[j]);
      narrow(a, y + e);
      narrow(b, y + numel + e);
      narrow((C(1) - alpha) * a + alpha * b, y + 2 * numel + e);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 4)
    triplet_weights_kernel(const __grid_constant__ NoiseTripletArgs args) {
  const Seed seed = load_seed(args.seed);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < args.batch;
       b += stride)
    args.alpha[b] = triplet_weight(seed, b);
}

}  // namespace

void noise_inject(const NoiseInjectArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t threads = padded_noise(args.numel) / kApart;
  const int64_t blocks = grid_blocks(ceil_div(threads, int64_t{kThreads}), 16);
  if (threads == 0) return;
  const auto has = [&](Coefficient k) { return args.coefficients[k] != nullptr; };
  const bool plain =
      !has(kFactor) && !has(kShift) && !has(kShiftMore) && !(has(kFactorNoise) && has(kShiftNoise));
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (plain)
      RK_LAUNCH((noise_inject_kernel<T, true>), blocks, kThreads, 0, stream, args, threads);
    else
      RK_LAUNCH((noise_inject_kernel<T, false>), blocks, kThreads, 0, stream, args, threads);
  });
}

void noise_triplet(const NoiseTripletArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t threads = padded_noise(args.batch * args.size) / kApart;
  if (args.batch == 0) return;
  RK_LAUNCH(triplet_weights_kernel, grid_blocks(ceil_div(args.batch, int64_t{kThreads}), 8),
            kThreads, 0, stream, args);
  if (threads == 0) return;
  const int64_t blocks = grid_blocks(ceil_div(threads, int64_t{kThreads}), 16);
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((noise_triplet_kernel<decltype(zero)>), blocks, kThreads, 0, stream, args, threads);
  });
}

}  // namespace regkern::cuda
