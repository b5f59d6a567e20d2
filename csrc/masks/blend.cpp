#include "masks/blend.h"

#include <type_traits>

#include "core/fetch.h"
#include "core/parallel.h"
#include "masks/drop_factors.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

static_assert(kListAlign % kWide == 0);
constexpr int64_t kGrain = 32768;

// factors[i] ← hit where the event of probability p[i] happens, else miss; NaN for what is none.
template <typename C>
inline void event_factors(Seed seed, uint64_t element, const float p[kWide], C hit, C miss,
                          C factors[kWide]) {
  alignas(64) uint32_t words[4][16];
  alignas(64) int32_t upper[kWide];
  philox16(seed, Stream::mask, element / 8, words);
  int32_t outside = 0;
#pragma omp simd reduction(| : outside)
  for (int i = 0; i < kWide; ++i) {
    const bool inside = (p[i] >= 0.0f) & (p[i] <= 1.0f);
    outside |= !inside;
    upper[i] = static_cast<int32_t>(choose(inside, p[i], 0.0f) * 65536.0f);
  }
  int32_t ties = 0;
  for (int w = 0; w < 4; ++w) {
    const int32_t *low = upper + 32 * w, *high = low + 16;
    C *low_out = factors + 32 * w, *high_out = low_out + 16;
#pragma omp simd reduction(| : ties)
    for (int i = 0; i < 16; ++i) {
      const auto u = static_cast<int32_t>(words[w][i] & 0xFFFFu);
      const auto v = static_cast<int32_t>(words[w][i] >> 16);
      ties |= (u == low[i]) | (v == high[i]);
      low_out[i] = choose(u < low[i], hit, miss);
      high_out[i] = choose(v < high[i], hit, miss);
    }
  }
  if (ties != 0) {
    for (int e = 0; e < kWide; ++e) {
      const uint32_t word = words[e / 32][e % 16];
      const uint32_t bits = e % 32 < 16 ? word & 0xFFFFu : word >> 16;
      const DropLevel level = drop_level(static_cast<double>(p[e]));
      if (bits == level.upper && !keeps_tie(seed, element + static_cast<uint64_t>(e), level))
        factors[e] = hit;
    }
  }
  if (outside == 0) return;
  for (int e = 0; e < kWide; ++e)
    if (!(p[e] >= 0.0f && p[e] <= 1.0f)) factors[e] = static_cast<C>(__builtin_nanf(""));
}

// A whole block as it stands in memory, or its copy in `wide`.
template <typename T, typename C>
inline const C* widened(const T* from, int64_t n, C wide[kWide]) {
  if constexpr (std::is_same_v<T, C>)
    if (n == kWide) return from;
  load_elements(from, n, wide);
  return wide;
}

// The probabilities of n elements, and zeros: as they stand in memory, or in `wide`.
template <typename T>
inline const float* probabilities(const BlendArgs& args, const void* own, int64_t e, int64_t n,
                                  float wide[kWide]) {
  const auto times = static_cast<float>(args.p_at != nullptr ? *args.p_at : args.p);
  const float* p = wide;
  if constexpr (std::is_same_v<T, double>) {
    if (args.each == nullptr) {
      double some[kWide];
      const double* const all = widened(static_cast<const double*>(own) + e, n, some);
#pragma omp simd
      for (int i = 0; i < kWide; ++i) wide[i] = static_cast<float>(all[i]);
    } else {
      p = widened(args.each + e, n, wide);
    }
  } else {
    p = args.each != nullptr ? widened(args.each + e, n, wide)
                             : widened(static_cast<const T*>(own) + e, n, wide);
  }
  if (times == 1.0f && n == kWide) return p;
#pragma omp simd
  for (int i = 0; i < kWide; ++i) wide[i] = p[i] * times;
  for (int64_t i = n; i < kWide; ++i) wide[i] = 0.0f;
  return wide;
}

// factors ← what is on, of `n` elements from e on that are there.
template <typename T, typename C>
inline void on_factors(const BlendArgs& args, Seed seed, const OneLevel<C>& one, const void* own,
                       int64_t first, int64_t e, int64_t n, C factors[kWide]) {
  const auto element = static_cast<uint64_t>(first + e);
  const C hit = args.draw ? C(1) : C(0);
  if (args.each != nullptr || own != nullptr) {
    float wide[kWide];
    const float* const p = probabilities<T>(args, own, e, n, wide);
    event_factors(seed, element, p, hit, C(1) - hit, factors);
  } else {
    factors_of(seed, element, one, factors, hit);
  }
  if (args.given == nullptr) return;
  uint8_t some[kWide] = {};
  const uint8_t* given = args.given + e;
  if (n < kWide) given = static_cast<const uint8_t*>(memcpy(some, given, static_cast<size_t>(n)));
  const int32_t held = args.draw ? 1 : 0;
#pragma omp simd
  for (int i = 0; i < kWide; ++i)
    factors[i] = choose(static_cast<int32_t>(given[i]) == held, hit, factors[i]);
}

template <typename C>
inline void blend_wide(Blend blend, const C f[kWide], const C a[kWide], const C b[kWide],
                       C y[kWide]) {
  switch (blend) {
    case Blend::mix:
#pragma omp simd
      for (int i = 0; i < kWide; ++i) y[i] = b[i] + (a[i] - b[i]) * f[i];
      return;
    case Blend::product:
#pragma omp simd
      for (int i = 0; i < kWide; ++i) y[i] = a[i] * f[i];
      return;
    case Blend::select:
#pragma omp simd
      for (int i = 0; i < kWide; ++i)
        y[i] = choose(f[i] == C(1), a[i], choose(f[i] == C(0), b[i], f[i]));
      return;
    case Blend::other:
#pragma omp simd
      for (int i = 0; i < kWide; ++i)
        y[i] = choose(f[i] == C(1), C(0), choose(f[i] == C(0), a[i], f[i]));
      return;
    case Blend::sample:
      return;
  }
}

template <typename T>
void blend_as(const BlendArgs& args) {
  using C = compute_t<T>;
  constexpr int64_t kAhead = 4096 / sizeof(T);
  const Seed seed = load_seed(args.seed);
  const double p = args.p_at != nullptr ? *args.p_at : args.p;
  // The factor where the event does not happen.
  const double miss = args.draw ? kept_scale(p, false) - 1.0 : kept_scale(p, args.scaled);
  const OneLevel<C> one{drop_level(p), static_cast<C>(miss)};
  parallel_for_list(
      args.rows, args.count, kGrain, [&](const BlendRow& row, int64_t begin, int64_t end) {
        const T* const a = static_cast<const T*>(row.a);
        const T* const b = static_cast<const T*>(row.b);
        T* const y = static_cast<T*>(row.y);
        const bool sample = args.blend == Blend::sample;
        const bool past = a != y && b != y &&
                          row.numel * static_cast<int64_t>(sizeof(T)) > kStreamingBytes &&
                          reinterpret_cast<uintptr_t>(y) % 64 == 0;
        C f[kWide], out[kWide], wide_a[kWide], wide_b[kWide] = {};
        for (int64_t e = begin; e < end; e += kWide) {
          const int64_t left = end - e, n = left < kWide ? left : kWide;
          if (left > kAhead + kWide) {
            fetch<false>(a + e + kAhead, kWide, kWide);
            if (b != nullptr) fetch<false>(b + e + kAhead, kWide, kWide);
          }
          on_factors<T>(args, seed, one, sample ? row.a : args.own, row.first, e, n, f);
          if (!sample) {
            const C* const u = widened(a + e, n, wide_a);
            const C* const v = b == nullptr ? wide_b : widened(b + e, n, wide_b);
            blend_wide(args.blend, f, u, v, out);
          }
          store_wide(sample ? f : out, n, past, y + e);
        }
        if (past) stream_fence();
      });
}

}  // namespace

void blend(const BlendArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { blend_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
