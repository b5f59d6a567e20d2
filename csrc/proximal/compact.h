#pragma once

#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

// Elements beyond a threshold, moved together in their order.

namespace regkern::proximal {
namespace {

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each set of lanes the numbers of its members, a byte each.
struct MemberTable {
  uint64_t of[256];
};
constexpr MemberTable kMembers = [] {
  MemberTable table{};
  for (unsigned set = 0; set < 256; ++set) {
    unsigned place = 0;
    for (unsigned lane = 0; lane < 8; ++lane)
      if (set >> lane & 1u) table.of[set] |= uint64_t{lane} << (8 * place++);
  }
  return table;
}();
#endif

// a(x) = |x| − shift or x − shift of n elements; those above `threshold` go to `out`, which has
// room for n + 16 and may be `in` itself. Returns how many there are. With kAhead what lies behind
// the n elements is fetched meanwhile: the next row, most likely.
template <bool kMagnitude, bool kAhead, typename C>
inline int64_t compact(const C* in, int64_t n, C shift, C threshold, C* out) {
  int64_t k = 0, i = 0;
#if defined(__AVX512F__) || defined(__AVX2__)
  if constexpr (sizeof(C) == 4) {
#if defined(__AVX512F__)
    const __m512 s = _mm512_set1_ps(shift), t = _mm512_set1_ps(threshold);
    for (; i + 16 <= n; i += 16) {
      if constexpr (kAhead) __builtin_prefetch(in + n + i);
      __m512 v = _mm512_loadu_ps(in + i);
      if constexpr (kMagnitude) v = _mm512_abs_ps(v);
      v = _mm512_sub_ps(v, s);
      const __mmask16 set = _mm512_cmp_ps_mask(v, t, _CMP_GT_OQ);
      // Not the compressing store, which is microcoded on some processors.
      _mm512_storeu_ps(out + k, _mm512_maskz_compress_ps(set, v));
      k += __builtin_popcount(set);
    }
#else
    const __m256 s = _mm256_set1_ps(shift), t = _mm256_set1_ps(threshold);
    const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
    for (; i + 8 <= n; i += 8) {
      if constexpr (kAhead) __builtin_prefetch(in + n + i);
      __m256 v = _mm256_loadu_ps(in + i);
      if constexpr (kMagnitude) v = _mm256_and_ps(v, no_sign);
      v = _mm256_sub_ps(v, s);
      const auto set = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(v, t, _CMP_GT_OQ)));
      const __m128i bytes = _mm_cvtsi64_si128(static_cast<int64_t>(kMembers.of[set]));
      _mm256_storeu_ps(out + k, _mm256_permutevar8x32_ps(v, _mm256_cvtepu8_epi32(bytes)));
      k += __builtin_popcount(set);
    }
#endif
  }
#endif
  for (; i < n; ++i) {
    C v = in[i];
    if constexpr (kMagnitude) v = v < C(0) ? -v : v;
    v = v - shift;
    out[k] = v;
    k += v > threshold;
  }
  return k;
}

}  // namespace
}  // namespace regkern::proximal
