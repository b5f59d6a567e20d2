#include "quantize/bitwise.h"

#include "quantize/segment_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

constexpr int64_t kGrain = int64_t{1} << 15;

// Calls body(e, n) for blocks of n ≤ kBlock elements.
template <typename F>
void by_blocks(int64_t numel, F&& body) {
  const int64_t blocks = (numel + kBlock - 1) / kBlock;
  parallel_for(blocks, kGrain / kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t e = b * kBlock;
      body(e, e + kBlock < numel ? kBlock : static_cast<int>(numel - e));
    }
  });
}

template <typename T>
void load_some(const void* data, int64_t e, int n, compute_t<T>* out) {
  if (n == kBlock) return load_block(static_cast<const T*>(data) + e, out);
  T block[kBlock] = {};
  memcpy(block, static_cast<const T*>(data) + e, static_cast<size_t>(n) * sizeof(T));
  load_block(block, out);
}

template <typename T>
void store_some(const compute_t<T>* in, int64_t e, int n, void* data) {
  if (n == kBlock) return store_block<T>(in, static_cast<T*>(data) + e);
  T block[kBlock];
  store_block<T>(in, block);
  memcpy(static_cast<T*>(data) + e, block, static_cast<size_t>(n) * sizeof(T));
}

// m and sgn(x_s) of a block.
template <typename T>
void decode(const BitwiseArgs& a, int64_t e, int n, compute_t<T>* m, compute_t<T>* s) {
  using C = compute_t<T>;
  C x[kBlock];
  for (int i = 0; i < kBlock; ++i) m[i] = C(0);
  for (int bit = 0; bit < a.bits; ++bit) {
    load_some<T>(a.planes, bit * a.numel + e, n, x);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) m[i] += magnitude_term(x[i], bit);
  }
  if (a.sign == nullptr) {
    for (int i = 0; i < kBlock; ++i) s[i] = C(1);
    return;
  }
  load_some<T>(a.sign, e, n, x);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) s[i] = sign_of(x[i]);
}

template <typename I>
void store_codes(const int32_t* code, int64_t e, int n, void* data) {
  for (int i = 0; i < n; ++i) static_cast<I*>(data)[e + i] = static_cast<I>(code[i]);
}

template <typename T>
void pack_block(const BitwiseArgs& a, int64_t e, int n) {
  using C = compute_t<T>;
  C x[kBlock];
  int32_t code[kBlock] = {};
  for (int bit = 0; bit < a.bits; ++bit) {
    load_some<T>(a.planes, bit * a.numel + e, n, x);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) code[i] |= (x[i] > C(0) ? 1 : 0) << bit;
  }
  if (a.sign != nullptr) {
    load_some<T>(a.sign, e, n, x);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) code[i] = x[i] < C(0) ? -code[i] : code[i];
  }
  if (a.itemsize == 1) return store_codes<int8_t>(code, e, n, a.w);
  if (a.itemsize == 2) return store_codes<int16_t>(code, e, n, a.w);
  store_codes<int32_t>(code, e, n, a.w);
}

template <typename T>
void weights_block(const BitwiseArgs& a, int64_t e, int n) {
  using C = compute_t<T>;
  C m[kBlock], s[kBlock];
  decode<T>(a, e, n, m, s);
  const C scale = *static_cast<const C*>(a.scale);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) m[i] = scale * (s[i] * m[i]);
  store_some<T>(m, e, n, a.w);
}

template <typename T>
void gradient_all(const BitwiseGradientArgs& a) {
  using C = compute_t<T>;
  const BitwiseArgs& f = a.forward;
  const Segments segments{1, 1, f.numel};
  const C scale = *static_cast<const C*>(f.scale);
  for_blocks(segments, 1, a.sums.spans, [&](int64_t, int64_t e, int n, double* sums) {
    C g[kBlock], m[kBlock], s[kBlock], out[kBlock];
    load_some<T>(a.g, e, n, g);
    decode<T>(f, e, n, m, s);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) out[i] = g[i] * (s[i] * m[i]);
    add_to_bin(static_cast<const C*>(out), n, sums);
    if (a.dsign != nullptr) {
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) out[i] = (g[i] * scale) * m[i];
      store_some<T>(out, e, n, a.dsign);
    }
    for (int bit = 0; bit < f.bits; ++bit) {
      const C power = static_cast<C>(1 << bit);
      const bool trained = (a.trainable >> bit & 1u) != 0;
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) out[i] = trained ? (g[i] * scale) * s[i] * power : C(0);
      store_some<T>(out, bit * f.numel + e, n, a.dplanes);
    }
  });
  finish_sums<C>(segments, a.sums);
}

int32_t load_code(const UnpackBitsArgs& a, int64_t e) {
  if (a.itemsize == 1) return static_cast<const int8_t*>(a.codes)[e];
  if (a.itemsize == 2) return static_cast<const int16_t*>(a.codes)[e];
  return static_cast<const int32_t*>(a.codes)[e];
}

template <typename T>
void unpack_block(const UnpackBitsArgs& a, int64_t e, int n) {
  using C = compute_t<T>;
  int32_t code[kBlock] = {};
  C out[kBlock];
  for (int i = 0; i < n; ++i) code[i] = load_code(a, e + i);
  for (int i = 0; i < kBlock; ++i) out[i] = code[i] < 0 ? C(-1) : C(1);
  store_some<T>(out, e, n, a.sign);
  const C unset = a.latent ? C(-1) : C(0);
  for (int bit = 0; bit < a.bits; ++bit) {
    for (int i = 0; i < kBlock; ++i) {
      const auto size = static_cast<uint32_t>(code[i]);
      const uint32_t magnitude = code[i] < 0 ? 0u - size : size;
      out[i] = (magnitude >> bit & 1u) != 0 ? C(1) : unset;
    }
    store_some<T>(out, bit * a.numel + e, n, a.planes);
  }
}

}  // namespace

void bitwise_weights(const BitwiseArgs& a, Context) {
  by_blocks(a.numel, [&](int64_t e, int n) {
    dispatch_floating(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      a.codes ? pack_block<T>(a, e, n) : weights_block<T>(a, e, n);
    });
  });
}

void bitwise_gradient(const BitwiseGradientArgs& a, Context) {
  dispatch_floating(a.forward.dtype, [&](auto zero) { gradient_all<decltype(zero)>(a); });
}

void unpack_bits(const UnpackBitsArgs& a, Context) {
  by_blocks(a.numel, [&](int64_t e, int n) {
    dispatch_floating(a.dtype, [&](auto zero) { unpack_block<decltype(zero)>(a, e, n); });
  });
}

void sign_ste(const SignArgs& a, Context) {
  by_blocks(a.numel, [&](int64_t e, int n) {
    dispatch_floating(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      compute_t<T> x[kBlock];
      load_some<T>(a.x, e, n, x);
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) x[i] = sign_of(x[i]);
      store_some<T>(x, e, n, a.y);
    });
  });
}

void sign_gradient(const SignGradientArgs& a, Context) {
  by_blocks(a.numel, [&](int64_t e, int n) {
    dispatch_floating(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      compute_t<T> g[kBlock], x[kBlock];
      load_some<T>(a.g, e, n, g);
      load_some<T>(a.x, e, n, x);
      const double beta = a.beta;
      if (a.surrogate == Surrogate::hardtanh) {
#pragma omp simd
        for (int i = 0; i < kBlock; ++i)
          g[i] = quantize::sign_gradient(g[i], x[i], Surrogate::hardtanh, beta);
      } else {
#pragma omp simd
        for (int i = 0; i < kBlock; ++i)
          g[i] = quantize::sign_gradient(g[i], x[i], Surrogate::tanh, beta);
      }
      store_some<T>(g, e, n, a.dx);
    });
  });
}

}  // namespace regkern::REGKERN_ISA
