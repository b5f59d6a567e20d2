#include "core/launch.cuh"
#include "quantize/bitwise.h"
#include "quantize/segments.cuh"

namespace regkern::cuda {
namespace {

using namespace quantize;

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 16;

template <typename T, int V, typename I>
__global__ void __launch_bounds__(kThreads, 4) weights_kernel(BitwiseArgs a) {
  using C = compute_t<T>;
  const I numel = static_cast<I>(a.numel);
  const C scale = *static_cast<const C*>(a.scale);
  for (I e = (static_cast<I>(blockIdx.x) * kThreads + threadIdx.x) * V; e < numel;
       e += static_cast<I>(gridDim.x) * kThreads * V) {
    C m[V] = {};
    for (int bit = 0; bit < a.bits; ++bit) {
      const Vector<T, V> x = load_vector<T, V>(static_cast<const T*>(a.planes) + bit * a.numel + e);
#pragma unroll
      for (int i = 0; i < V; ++i) m[i] += magnitude_term<C>(widen(x.v[i]), bit);
    }
    Vector<T, V> s{};
    if (a.sign != nullptr) s = load_vector<T, V>(static_cast<const T*>(a.sign) + e);
    Vector<T, V> w;
#pragma unroll
    for (int i = 0; i < V; ++i) narrow(scale * (sign_of<C>(widen(s.v[i])) * m[i]), w.v + i);
    store_vector<T, V>(w, static_cast<T*>(a.w) + e);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) pack_kernel(BitwiseArgs a) {
  using C = compute_t<T>;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < a.numel;
       e += static_cast<int64_t>(gridDim.x) * kThreads) {
    int32_t code = 0;
    for (int bit = 0; bit < a.bits; ++bit)
      code |= (widen(static_cast<const T*>(a.planes)[bit * a.numel + e]) > C(0) ? 1 : 0) << bit;
    if (a.sign != nullptr && widen(static_cast<const T*>(a.sign)[e]) < C(0)) code = -code;
    if (a.itemsize == 1)
      static_cast<int8_t*>(a.w)[e] = static_cast<int8_t>(code);
    else if (a.itemsize == 2)
      static_cast<int16_t*>(a.w)[e] = static_cast<int16_t>(code);
    else
      static_cast<int32_t*>(a.w)[e] = code;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) unpack_kernel(UnpackBitsArgs a) {
  using C = compute_t<T>;
  const C unset = a.latent ? C(-1) : C(0);
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < a.numel;
       e += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int32_t code = a.itemsize == 1   ? static_cast<const int8_t*>(a.codes)[e]
                         : a.itemsize == 2 ? static_cast<const int16_t*>(a.codes)[e]
                                           : static_cast<const int32_t*>(a.codes)[e];
    const auto size = static_cast<uint32_t>(code);
    const uint32_t magnitude = code < 0 ? 0u - size : size;
    narrow(code < 0 ? C(-1) : C(1), static_cast<T*>(a.sign) + e);
    for (int bit = 0; bit < a.bits; ++bit)
      narrow((magnitude >> bit & 1u) != 0 ? C(1) : unset,
             static_cast<T*>(a.planes) + bit * a.numel + e);
  }
}

template <typename T>
__global__ void __launch_bounds__(kSumThreads) bitwise_gradient_kernel(BitwiseGradientArgs a) {
  using C = compute_t<T>;
  RK_DYNAMIC_SHARED(double, shared);
  const BitwiseArgs& f = a.forward;
  const C scale = *static_cast<const C*>(f.scale);
  for_lanes(
      Segments{1, 1, f.numel}, 1, a.sums.lanes, shared,
      [&](int64_t, int64_t e, const LaneSums& sums) {
        C m = C(0);
        for (int bit = 0; bit < f.bits; ++bit)
          m += magnitude_term<C>(widen(static_cast<const T*>(f.planes)[bit * f.numel + e]), bit);
        const C s = f.sign == nullptr ? C(1) : sign_of<C>(widen(static_cast<const T*>(f.sign)[e]));
        const C g = widen(static_cast<const T*>(a.g)[e]);
        sums[0] += static_cast<double>(g * (s * m));
        if (a.dsign != nullptr) narrow((g * scale) * m, static_cast<T*>(a.dsign) + e);
        for (int bit = 0; bit < f.bits; ++bit)
          narrow((a.trainable >> bit & 1u) != 0 ? (g * scale) * s * static_cast<C>(1 << bit) : C(0),
                 static_cast<T*>(a.dplanes) + bit * f.numel + e);
      });
}

template <typename T, int V, typename I>
__global__ void __launch_bounds__(kThreads, 4) sign_kernel(SignArgs a) {
  const I numel = static_cast<I>(a.numel);
  for (I e = (static_cast<I>(blockIdx.x) * kThreads + threadIdx.x) * V; e < numel;
       e += static_cast<I>(gridDim.x) * kThreads * V) {
    Vector<T, V> x = load_vector<T, V>(static_cast<const T*>(a.x) + e);
#pragma unroll
    for (int i = 0; i < V; ++i) narrow(sign_of<compute_t<T>>(widen(x.v[i])), x.v + i);
    store_vector<T, V>(x, static_cast<T*>(a.y) + e);
  }
}

template <typename T, int V, typename I>
__global__ void __launch_bounds__(kThreads, 4) sign_gradient_kernel(SignGradientArgs a) {
  using C = compute_t<T>;
  const I numel = static_cast<I>(a.numel);
  for (I e = (static_cast<I>(blockIdx.x) * kThreads + threadIdx.x) * V; e < numel;
       e += static_cast<I>(gridDim.x) * kThreads * V) {
    Vector<T, V> g = load_vector<T, V>(static_cast<const T*>(a.g) + e);
    const Vector<T, V> x = load_vector<T, V>(static_cast<const T*>(a.x) + e);
#pragma unroll
    for (int i = 0; i < V; ++i)
      narrow(quantize::sign_gradient<C>(widen(g.v[i]), widen(x.v[i]), a.surrogate, a.beta),
             g.v + i);
    store_vector<T, V>(g, static_cast<T*>(a.dx) + e);
  }
}

int64_t blocks_of(int64_t numel, int lanes) {
  return grid_blocks(ceil_div(numel, int64_t{kThreads} * lanes), kBlocksPerSm);
}

// Calls launch(V, I) with the widest vectors and indices that fit.
template <typename T, typename F>
void by_vectors(int64_t numel, bool whole, F&& launch) {
  constexpr int V = kLanesOf<T>;
  const bool small = numel < (int64_t{1} << 31);
  if (whole && numel % V == 0)
    small ? launch.template operator()<V, uint32_t>() : launch.template operator()<V, int64_t>();
  else
    small ? launch.template operator()<1, uint32_t>() : launch.template operator()<1, int64_t>();
}

}  // namespace

void bitwise_weights(const BitwiseArgs& a, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (a.codes) return RK_LAUNCH((pack_kernel<T>), blocks_of(a.numel, 1), kThreads, 0, stream, a);
    const bool whole = is_aligned(a.planes) && is_aligned(a.sign) && is_aligned(a.w);
    by_vectors<T>(a.numel, whole, [&]<int V, typename I>() {
      RK_LAUNCH((weights_kernel<T, V, I>), blocks_of(a.numel, V), kThreads, 0, stream, a);
    });
  });
}

void bitwise_gradient(const BitwiseGradientArgs& a, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Segments s{1, 1, a.forward.numel};
  if (a.forward.numel > 0)
    dispatch_floating(a.forward.dtype, [&](auto zero) {
      RK_LAUNCH((bitwise_gradient_kernel<decltype(zero)>), lane_blocks(s, 1), sum_threads(1),
                sum_bytes(1), stream, a);
    });
  launch_sums(s, a.sums, stream);
}

void unpack_bits(const UnpackBitsArgs& a, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(a.dtype, [&](auto zero) {
    RK_LAUNCH((unpack_kernel<decltype(zero)>), blocks_of(a.numel, 1), kThreads, 0, stream, a);
  });
}

void sign_ste(const SignArgs& a, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    by_vectors<T>(a.numel, is_aligned(a.x) && is_aligned(a.y), [&]<int V, typename I>() {
      RK_LAUNCH((sign_kernel<T, V, I>), blocks_of(a.numel, V), kThreads, 0, stream, a);
    });
  });
}

void sign_gradient(const SignGradientArgs& a, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool whole = is_aligned(a.g) && is_aligned(a.x) && is_aligned(a.dx);
    by_vectors<T>(a.numel, whole, [&]<int V, typename I>() {
      RK_LAUNCH((sign_gradient_kernel<T, V, I>), blocks_of(a.numel, V), kThreads, 0, stream, a);
    });
  });
}

}  // namespace regkern::cuda
