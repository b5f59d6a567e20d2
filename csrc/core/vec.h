#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/philox.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

// Blocks of kBlock elements for CPU kernels. What a plain loop does as well is a plain loop; the
// intrinsics below stand where a measurement showed that it does not.

namespace regkern {
namespace {

constexpr int kBlock = 64;

// Beyond this many bytes written, the output cannot stay in the last-level cache, and a streaming
// store saves reading each line before it is written (3.7 against 4.8 ms for 103 MB).
constexpr int64_t kStreamingBytes = int64_t{24} << 20;

inline void load_block(const float* in, float* out) { memcpy(out, in, kBlock * sizeof(float)); }
inline void load_block(const double* in, double* out) { memcpy(out, in, kBlock * sizeof(double)); }
inline void load_block(const bfloat16* in, float* out) {
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) out[i] = widen(in[i]);
}
inline void load_block(const uint8_t* in, float* out) {
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) out[i] = widen(in[i]);
}
inline void load_block(const float16* in, float* out) {
#if defined(__AVX512F__)
  for (int i = 0; i < kBlock; i += 16)
    _mm512_storeu_ps(out + i,
                     _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i))));
#elif defined(__AVX2__)
  for (int i = 0; i < kBlock; i += 8)
    _mm256_storeu_ps(out + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
#else
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) out[i] = widen(in[i]);
#endif
}

template <typename T>
inline void store_block(const compute_t<T>* in, T* out) {
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) narrow(in[i], out + i);
}
template <>
inline void store_block<float16>(const float* in, float16* out) {
#if defined(__AVX512F__)
  for (int i = 0; i < kBlock; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        _mm512_cvtps_ph(_mm512_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  for (int i = 0; i < kBlock; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
#else
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) narrow(in[i], out + i);
#endif
}

// n elements; out has room for whole blocks and gets zeros behind the last element.
template <typename T, typename C>
inline void load_elements(const T* in, int64_t n, C* out) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) load_block(in + i, out + i);
  if (i == n) return;
  T tail[kBlock] = {};
  memcpy(tail, in + i, static_cast<size_t>(n - i) * sizeof(T));
  load_block(tail, out + i);
}
// n elements of in, which is as long as whole blocks.
template <typename T, typename C>
inline void store_elements(const C* in, int64_t n, T* out) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) store_block<T>(in + i, out + i);
  if (i == n) return;
  T tail[kBlock];
  store_block<T>(in + i, tail);
  memcpy(out + i, tail, static_cast<size_t>(n - i) * sizeof(T));
}

// Copies kBlock results past the cache. out is aligned to 64 bytes.
template <typename T>
inline void stream_block(const T* in, T* out) {
#if defined(__AVX512F__)
  const auto* from = reinterpret_cast<const char*>(in);
  auto* to = reinterpret_cast<char*>(out);
  for (int i = 0; i < kBlock * static_cast<int>(sizeof(T)); i += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
#elif defined(__AVX2__)
  const auto* from = reinterpret_cast<const char*>(in);
  auto* to = reinterpret_cast<char*>(out);
  for (int i = 0; i < kBlock * static_cast<int>(sizeof(T)); i += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
#else
  memcpy(out, in, kBlock * sizeof(T));
#endif
}

// Orders streaming stores before what follows: other threads may read the output next.
inline void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Copies n bytes; past the cache where `streaming`. The ends that are no whole lines go through it.
inline void copy_bytes(const void* from, void* to, int64_t n, bool streaming) {
  const auto* in = static_cast<const char*>(from);
  auto* out = static_cast<char*>(to);
  constexpr int64_t kLine = 64;
  if (!streaming || n < 4 * kLine) {
    memcpy(out, in, static_cast<size_t>(n));
    return;
  }
  const int64_t head =
      (kLine - static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kLine)) % kLine;
  memcpy(out, in, static_cast<size_t>(head));
  int64_t i = head;
  for (; i + kLine <= n; i += kLine) {
    static_assert(kBlock == kLine);
    stream_block(reinterpret_cast<const uint8_t*>(in + i), reinterpret_cast<uint8_t*>(out + i));
  }
  memcpy(out + i, in + i, static_cast<size_t>(n - i));
}

// Words of 16 consecutive counters: out[w][i] is word w of counter first + i.
inline void philox16(Seed seed, Stream stream, uint64_t first, uint32_t out[4][16]) {
#if defined(__AVX512F__)
  // The plain loop multiplies 32 x 32 bits through 64-bit lanes with conversions between; even and
  // odd lanes apart take 3.0 against 8 to 12 ms for 10⁷ words.
  const auto low = static_cast<uint32_t>(first);
  const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(low)), iota);
  const __mmask16 carry = _mm512_cmplt_epu32_mask(c0, _mm512_set1_epi32(static_cast<int>(low)));
  const uint32_t high = static_cast<uint32_t>(first >> 32) | (static_cast<uint32_t>(stream) << 24);
  __m512i c1 = _mm512_set1_epi32(static_cast<int>(high));
  c1 = _mm512_mask_add_epi32(c1, carry, c1, _mm512_set1_epi32(1));
  __m512i c2 = _mm512_set1_epi32(static_cast<int>(seed.offset));
  __m512i c3 = _mm512_set1_epi32(static_cast<int>(seed.offset >> 32));
  auto k0 = static_cast<uint32_t>(seed.key), k1 = static_cast<uint32_t>(seed.key >> 32);
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53u), m1 = _mm512_set1_epi64(0xCD9E8D57u);
  for (int round = 0; round < 10; ++round) {
    const __m512i e0 = _mm512_mul_epu32(c0, m0);
    const __m512i o0 = _mm512_mul_epu32(_mm512_srli_epi64(c0, 32), m0);
    const __m512i e1 = _mm512_mul_epu32(c2, m1);
    const __m512i o1 = _mm512_mul_epu32(_mm512_srli_epi64(c2, 32), m1);
    const __m512i lo0 = _mm512_mask_blend_epi32(0xAAAA, e0, _mm512_slli_epi64(o0, 32));
    const __m512i hi0 = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(e0, 32), o0);
    const __m512i lo1 = _mm512_mask_blend_epi32(0xAAAA, e1, _mm512_slli_epi64(o1, 32));
    const __m512i hi1 = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(e1, 32), o1);
    c0 = _mm512_ternarylogic_epi32(hi1, c1, _mm512_set1_epi32(static_cast<int>(k0)), 0x96);
    c2 = _mm512_ternarylogic_epi32(hi0, c3, _mm512_set1_epi32(static_cast<int>(k1)), 0x96);
    c1 = lo1;
    c3 = lo0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  _mm512_storeu_si512(out[0], c0);
  _mm512_storeu_si512(out[1], c1);
  _mm512_storeu_si512(out[2], c2);
  _mm512_storeu_si512(out[3], c3);
#elif defined(__AVX2__)
  // Even and odd counters apart, each in the lower half of a 64-bit lane, where a product takes it
  // from; what gathers in the upper halves is never read. The plain loop comes out scalar: with
  // it, copying 10⁷ elements with 16 random bits each takes 15.4 instead of 6.6 ms.
  const auto low = static_cast<uint32_t>(first);
  const uint32_t high = static_cast<uint32_t>(first >> 32) | (static_cast<uint32_t>(stream) << 24);
  const __m256i lows = _mm256_set1_epi32(static_cast<int>(low));
  const __m256i m0 = _mm256_set1_epi64x(0xD2511F53), m1 = _mm256_set1_epi64x(0xCD9E8D57);
  for (int half = 0; half < 16; half += 8) {
    const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i index = _mm256_add_epi32(_mm256_add_epi32(lows, _mm256_set1_epi32(half)), iota);
    // -1 where the lower word did not wrap around.
    const __m256i whole = _mm256_cmpeq_epi32(_mm256_max_epu32(index, lows), index);
    const __m256i upper = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(high + 1u)), whole);
    const __m256i offset_low = _mm256_set1_epi32(static_cast<int>(seed.offset));
    const __m256i offset_high = _mm256_set1_epi32(static_cast<int>(seed.offset >> 32));
    __m256i c0[2] = {index, _mm256_srli_epi64(index, 32)};
    __m256i c1[2] = {upper, _mm256_srli_epi64(upper, 32)};
    __m256i c2[2] = {offset_low, offset_low}, c3[2] = {offset_high, offset_high};
    __m256i k0 = _mm256_set1_epi32(static_cast<int>(seed.key));
    __m256i k1 = _mm256_set1_epi32(static_cast<int>(seed.key >> 32));
    for (int round = 0; round < 10; ++round) {
      for (int odd = 0; odd < 2; ++odd) {
        const __m256i p0 = _mm256_mul_epu32(c0[odd], m0), p1 = _mm256_mul_epu32(c2[odd], m1);
        c0[odd] = _mm256_xor_si256(_mm256_srli_epi64(p1, 32), _mm256_xor_si256(c1[odd], k0));
        c2[odd] = _mm256_xor_si256(_mm256_srli_epi64(p0, 32), _mm256_xor_si256(c3[odd], k1));
        c1[odd] = p1;
        c3[odd] = p0;
      }
      k0 = _mm256_add_epi32(k0, _mm256_set1_epi32(static_cast<int>(0x9E3779B9u)));
      k1 = _mm256_add_epi32(k1, _mm256_set1_epi32(static_cast<int>(0xBB67AE85u)));
    }
    const auto merged = [](const __m256i* c) {
      return _mm256_blend_epi32(c[0], _mm256_slli_epi64(c[1], 32), 0xAA);
    };
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[0] + half), merged(c0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[1] + half), merged(c1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[2] + half), merged(c2));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[3] + half), merged(c3));
  }
#else
#pragma omp simd
  for (int i = 0; i < 16; ++i) {
    const Words words = philox(seed, stream, first + static_cast<uint64_t>(i));
    for (int w = 0; w < 4; ++w) out[w][i] = words.w[w];
  }
#endif
}

// Standard normals of the elements first … first + kBlock − 1; first is a multiple of 4. Element e
// takes word pair (e mod 4) / 2 of counter e / 4, its cosine half if e is even.
inline void normal_block(Seed seed, uint64_t first, float out[kBlock]) {
  uint32_t words[4][16];
  philox16(seed, Stream::noise, first / 4, words);
  float n[4][16];
#pragma omp simd
  for (int i = 0; i < 16; ++i) {
    normal_pair(words[0][i], words[1][i], &n[0][i], &n[1][i]);
    normal_pair(words[2][i], words[3][i], &n[2][i], &n[3][i]);
  }
  for (int i = 0; i < 16; ++i)
    for (int w = 0; w < 4; ++w) out[4 * i + w] = n[w][i];
}

}  // namespace
}  // namespace regkern
