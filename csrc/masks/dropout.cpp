#include "masks/dropout.h"

#include <cstring>
#include <type_traits>

#include "core/bits.h"
#include "core/parallel.h"
#include "core/vec.h"
#include "masks/drop_factors.h"
#include "masks/mask_walk.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

constexpr int64_t kGrain = 256;  // blocks: 32768 elements

// Hands out the probabilities of the next kWide elements.
class Probabilities {
 public:
  Probabilities(const float* p, const MaskIndex& index, int64_t e) : p_(p), walk_(index, e) {}

  // n of them; the rest is 0.
  void next(int64_t n, float out[kWide]) {
    for (int64_t i = n; i < kWide; ++i) out[i] = 0.0f;
    for (int64_t got = 0; got < n;) {
      const int64_t left = walk_.left(), take = left < n - got ? left : n - got;
      const float* const from = p_ + walk_.bit();
      if (walk_.shares()) {
        for (int64_t i = 0; i < take; ++i) out[got + i] = *from;
      } else {
        memcpy(out + got, from, static_cast<size_t>(take) * sizeof(float));
      }
      walk_.advance(take);
      got += take;
    }
  }

 private:
  const float* p_;
  MaskWalk walk_;
};

// out[i] ← in[i] times the scale where it is kept. False where a tie has to be looked at, for which
// factors_of is asked.
template <typename C>
inline bool drop_wide(Seed seed, uint64_t element, const OneLevel<C>& one, const C in[kWide],
                      C out[kWide]) {
  alignas(64) uint32_t words[4][16];
  philox16(seed, Stream::mask, element / 8, words);
  const auto at = static_cast<int32_t>(one.level.upper);
  const C scale = one.scale;
  int32_t ties = 0;
  for (int w = 0; w < 4; ++w) {
    const C *low = in + 32 * w, *high = low + 16;
    C *low_out = out + 32 * w, *high_out = low_out + 16;
#pragma omp simd reduction(| : ties)
    for (int i = 0; i < 16; ++i) {
      const auto u = static_cast<int32_t>(words[w][i] & 0xFFFFu);
      const auto v = static_cast<int32_t>(words[w][i] >> 16);
      ties |= (u == at) | (v == at);
      low_out[i] = low[i] * choose(u >= at, scale, C(0));
      high_out[i] = high[i] * choose(v >= at, scale, C(0));
    }
  }
  return ties == 0 || one.level.lower == 0;
}

template <typename T>
void dropout_as(const DropoutArgs& args) {
  using C = compute_t<T>;
  const Seed seed = load_seed(args.seed);
  const double p = args.p_at != nullptr ? *args.p_at : args.p;
  const OneLevel<C> one{drop_level(p), static_cast<C>(kept_scale(p, args.scaled))};
  const int64_t blocks = padded_mask(args.numel) / kWide;
  const int64_t outputs = args.sums ? 1 : args.copies, terms = args.sums ? args.copies : 1;
  const int64_t bytes = outputs * args.numel * static_cast<int64_t>(sizeof(T));
  const bool past = args.x != args.y && bytes > kStreamingBytes &&
                    reinterpret_cast<uintptr_t>(args.y) % 64 == 0 &&
                    (args.numel % kBlock == 0 || outputs == 1);
  parallel_for(blocks * outputs, kGrain, [&](int64_t begin, int64_t end) {
    C factors[kWide], v[kWide], sum[kWide], scales[kWide];
    const C* in = v;
    int32_t uppers[kWide];
    float each[kWide];
    int64_t copy = begin / blocks, block = begin % blocks;
    Probabilities ps(args.p_each, args.p_index, args.p_each != nullptr ? block * kWide : 0);
    for (int64_t at = begin; at < end; ++at) {
      const int64_t e = block * kWide, left = args.numel - e, n = left < kWide ? left : kWide;
      if (args.p_each != nullptr) {
        ps.next(n, each);
        levels_of(each, args.scaled, uppers, scales);
      }
      // Most blocks: one mask, one probability, no tie.
      const bool plain = terms == 1 && args.p_each == nullptr;
      if (plain) {
        const T* const from = static_cast<const T*>(args.x) + e;
        in = v;
        if constexpr (std::is_same_v<T, C>)
          if (n == kWide) in = from;
        if (in == v) load_elements(from, n, v);
      }
      if (!plain ||
          !drop_wide(seed, static_cast<uint64_t>(copy * blocks * kWide + e), one, in, sum)) {
        for (int64_t term = 0; term < terms; ++term) {
          const int64_t mask = args.sums ? term : copy;
          const auto element = static_cast<uint64_t>(mask * blocks * kWide + e);
          if (args.p_each != nullptr)
            factors_of(seed, element, EachLevel<C>{each, uppers, scales}, factors);
          else
            factors_of(seed, element, one, factors);
          load_elements(static_cast<const T*>(args.x) + term * args.numel + e, n, v);
          if (term == 0) {
#pragma omp simd
            for (int i = 0; i < kWide; ++i) sum[i] = v[i] * factors[i];
          } else {
#pragma omp simd
            for (int i = 0; i < kWide; ++i) sum[i] += v[i] * factors[i];
          }
        }
      }
      store_wide(sum, n, past, static_cast<T*>(args.y) + copy * args.numel + e);
      if (++block == blocks) {
        block = 0;
        ++copy;
        if (args.p_each != nullptr) ps = Probabilities(args.p_each, args.p_index, 0);
      }
    }
    if (past) stream_fence();
  });
}

}  // namespace

void dropout(const DropoutArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { dropout_as<decltype(zero)>(args); });
}

void dropout_bits(const DropoutBitsArgs& args, Context) {
  const Seed seed = load_seed(args.seed);
  const double p = args.p_at != nullptr ? *args.p_at : args.p;
  const OneLevel<float> one{drop_level(p), 1.0f};
  if (args.p_each == nullptr) *args.scale = kept_scale(p, args.scaled);
  parallel_for(padded_mask(args.numel) / kWide, kGrain, [&](int64_t begin, int64_t end) {
    float factors[kWide], each[kWide], scales[kWide];
    int32_t uppers[kWide];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t e = block * kWide, left = args.numel - e, n = left < kWide ? left : kWide;
      const auto element = static_cast<uint64_t>(e);
      if (args.p_each != nullptr) {
        memset(each, 0, sizeof(each));
        memcpy(each, args.p_each + e, static_cast<size_t>(n) * sizeof(float));
        levels_of(each, false, uppers, scales);
        factors_of(seed, element, EachLevel<float>{each, uppers, scales}, factors);
        for (int64_t i = 0; i < n; ++i)
          args.scale[e + i] = kept_scale(static_cast<double>(each[i]), args.scaled);
      } else {
        factors_of(seed, element, one, factors);
      }
      for (int64_t i = 0; i < n; i += 32) {
        const int count = static_cast<int>(n - i < 32 ? n - i : 32);
        uint32_t word = 0;
        for (int k = 0; k < count; ++k) word |= static_cast<uint32_t>(factors[i + k] != 0.0f) << k;
        args.bits[(e + i) / 32] = word;
      }
    }
  });
}

}  // namespace regkern::REGKERN_ISA
