#include "masks/noise_inject.h"

#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"
#include "masks/mask_walk.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

constexpr int kWide = static_cast<int>(kNoiseBlock);
static_assert(kWide == 2 * kBlock);
constexpr int64_t kGrain = 256;  // blocks: 32768 elements

void draw_block(Seed seed, bool normal, int64_t first, float out[kWide]) {
  const auto e = static_cast<uint64_t>(first);
  if (normal) return normals_apart_block(seed, e, out);
  signed_uniform_block(seed, e, out);
  signed_uniform_block(seed, e + kBlock, out + kBlock);
}

template <typename T>
void store_noisy(const compute_t<T>* in, int64_t n, bool past, T* out) {
  if (n < kWide) return store_elements(in, n, out);
  alignas(64) T block[kBlock];
  for (int i = 0; i < kWide; i += kBlock) {
    store_block<T>(in + i, past ? block : out + i);
    if (past) stream_block(block, out + i);
  }
}

bool goes_past(const void* y, int64_t bytes) {
  return bytes > kStreamingBytes && reinterpret_cast<uintptr_t>(y) % 64 == 0;
}

// The coefficients of a block's elements.
template <typename C>
class Coefficients {
 public:
  Coefficients(const NoiseInjectArgs& args, int64_t e) : args_(args), walk_(args.index, e) {
    for (int k = 0; k < kCoefficients; ++k) {
      const C* const given = static_cast<const C*>(args.coefficients[k]);
      const C value = given != nullptr ? given[0] : C(k == kFactor ? 1 : 0);
      for (int i = 0; i < kWide; ++i) at[k][i] = value;
    }
    one_ = args.index.width >= args.numel;
  }

  void next(int64_t n) {
    if (one_) return;
    for (int64_t got = 0; got < n;) {
      const int64_t left = walk_.left(), take = left < n - got ? left : n - got;
      const int64_t group = walk_.bit();
      for (int k = 0; k < kCoefficients; ++k) {
        const C* const given = static_cast<const C*>(args_.coefficients[k]);
        if (given == nullptr) continue;
        if (walk_.shares())
          for (int64_t i = 0; i < take; ++i) at[k][got + i] = given[group];
        else
          for (int64_t i = 0; i < take; ++i) at[k][got + i] = given[group + i];
      }
      walk_.advance(take);
      got += take;
    }
  }

  alignas(64) C at[kCoefficients][kWide];

 private:
  const NoiseInjectArgs& args_;
  MaskWalk walk_;
  bool one_;
};

template <typename T>
void inject_as(const NoiseInjectArgs& args) {
  using C = compute_t<T>;
  const Seed seed = load_seed(args.seed);
  const T* const x = static_cast<const T*>(args.x);
  T *const y = static_cast<T*>(args.y), *const noise = static_cast<T*>(args.noise);
  const int64_t padded = padded_noise(args.numel);
  const int64_t bytes = args.numel * static_cast<int64_t>(sizeof(T));
  const bool past = args.x != args.y && goes_past(y, bytes);
  const bool noise_past = noise != nullptr && goes_past(noise, bytes);
  const bool more = args.coefficients[kShiftMore] != nullptr;
  // Additive and multiplicative noise: what the rest would do is nothing.
  const bool plain =
      !more && args.coefficients[kFactor] == nullptr && args.coefficients[kShift] == nullptr &&
      (args.coefficients[kFactorNoise] == nullptr || args.coefficients[kShiftNoise] == nullptr);
  const bool one = args.index.width >= args.numel;
  const bool multiply = args.coefficients[kFactorNoise] != nullptr;
  const void* const given = args.coefficients[multiply ? kFactorNoise : kShiftNoise];
  const C number = given != nullptr ? *static_cast<const C*>(given) : C(0);
  parallel_for(padded / kWide, kGrain, [&](int64_t begin, int64_t end) {
    Coefficients<C> of(args, begin * kWide);
    const auto& k = of.at;
    alignas(64) float n[kWide], m[kWide];
    alignas(64) C v[kWide];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t e = block * kWide, left = args.numel - e, count = left < kWide ? left : kWide;
      draw_block(seed, args.normal, e, n);
      if (plain && one && count == kWide && std::is_same_v<T, C>) {
        // Straight from memory, and to it.
        const C* const from = reinterpret_cast<const C*>(x + e);
        C* const to = past ? v : reinterpret_cast<C*>(y + e);
        if (multiply) {
#pragma omp simd
          for (int i = 0; i < kWide; ++i) to[i] = from[i] * (C(1) + number * static_cast<C>(n[i]));
        } else {
#pragma omp simd
          for (int i = 0; i < kWide; ++i) to[i] = from[i] + number * static_cast<C>(n[i]);
        }
        if (past)
          for (int i = 0; i < kWide; i += kBlock)
            stream_block(v + i, reinterpret_cast<C*>(y + e) + i);
        continue;
      }
      load_elements(x + e, count, v);
      of.next(count);
      if (plain && one) {
        if (multiply) {
#pragma omp simd
          for (int i = 0; i < kWide; ++i) v[i] *= C(1) + number * static_cast<C>(n[i]);
        } else {
#pragma omp simd
          for (int i = 0; i < kWide; ++i) v[i] += number * static_cast<C>(n[i]);
        }
      } else if (plain && !multiply) {
#pragma omp simd
        for (int i = 0; i < kWide; ++i) v[i] += k[kShiftNoise][i] * static_cast<C>(n[i]);
      } else if (plain) {
#pragma omp simd
        for (int i = 0; i < kWide; ++i) v[i] *= C(1) + k[kFactorNoise][i] * static_cast<C>(n[i]);
      } else {
        if (more) {
          draw_block(seed, args.normal, padded + e, m);
        } else {
          for (int i = 0; i < kWide; ++i) m[i] = 0.0f;
        }
#pragma omp simd
        for (int i = 0; i < kWide; ++i)
          v[i] = noisy(v[i], k[kFactor][i], k[kFactorNoise][i], k[kShift][i], k[kShiftNoise][i],
                       k[kShiftMore][i], static_cast<C>(n[i]), static_cast<C>(m[i]));
      }
      store_noisy(v, count, past, y + e);
      if (noise == nullptr) continue;
#pragma omp simd
      for (int i = 0; i < kWide; ++i) v[i] = static_cast<C>(n[i]);
      store_noisy(v, count, noise_past, noise + e);
    }
    if (past || noise_past) stream_fence();
  });
}

template <typename T>
void triplet_as(const NoiseTripletArgs& args) {
  using C = compute_t<T>;
  const Seed seed = load_seed(args.seed);
  const int64_t numel = args.batch * args.size, padded = padded_noise(numel);
  const T* const x = static_cast<const T*>(args.x);
  T* const y = static_cast<T*>(args.y);
  const C eps = static_cast<C>(args.eps);
  const bool past =
      numel % kBlock == 0 && goes_past(y, 3 * numel * static_cast<int64_t>(sizeof(T)));
  parallel_for(padded / kWide, kGrain, [&](int64_t begin, int64_t end) {
    alignas(64) float n[kWide], m[kWide];
    alignas(64) C v[kWide], a[kWide], b[kWide], weight[kWide];
    int64_t filled = 0;  // the elements before this one have their weight
    C alpha = C(0);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t e = block * kWide, left = numel - e, count = left < kWide ? left : kWide;
      for (int64_t i = 0; i < count;) {
        if (e + i >= filled) {
          const int64_t sample = (e + i) / args.size;
          alpha = static_cast<C>(triplet_weight(seed, sample));
          filled = (sample + 1) * args.size;
        }
        const int64_t stop = filled - e < count ? filled - e : count;
        for (; i < stop; ++i) weight[i] = alpha;
      }
      for (int64_t i = count; i < kWide; ++i) weight[i] = C(0);
      draw_block(seed, false, e, n);
      draw_block(seed, false, padded + e, m);
      load_elements(x + e, count, v);
#pragma omp simd
      for (int i = 0; i < kWide; ++i) a[i] = v[i] + eps * static_cast<C>(n[i]);
#pragma omp simd
      for (int i = 0; i < kWide; ++i) b[i] = v[i] + eps * static_cast<C>(m[i]);
#pragma omp simd
      for (int i = 0; i < kWide; ++i) v[i] = (C(1) - weight[i]) * a[i] + weight[i] * b[i];
      store_noisy(a, count, past, y + e);
      store_noisy(b, count, past, y + numel + e);
      store_noisy(v, count, past, y + 2 * numel + e);
    }
    if (past) stream_fence();
  });
  for (int64_t b = 0; b < args.batch; ++b) args.alpha[b] = triplet_weight(seed, b);
}

}  // namespace

void noise_inject(const NoiseInjectArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { inject_as<decltype(zero)>(args); });
}

void noise_triplet(const NoiseTripletArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { triplet_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
