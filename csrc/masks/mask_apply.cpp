#include "masks/mask_apply.h"

#include <cstring>

#include "core/bits.h"
#include "core/noise.h"
#include "core/parallel.h"
#include "core/vec.h"
#include "masks/mask_walk.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

// Hands out the mask bits of the next kBlock elements.
class MaskCursor {
 public:
  MaskCursor(const MaskApplyArgs& args, int64_t e)
      : mask_(args.mask), words_(args.mask_words), walk_(args.index, e) {}

  uint64_t next() {
    if (!walk_.shares() && walk_.bit() % 32 == 0 && walk_.left() > kBlock) {
      // Most blocks: two whole words.
      const uint32_t* word = mask_ + walk_.bit() / 32;
      walk_.advance(kBlock);
      return word[0] | static_cast<uint64_t>(word[1]) << 32;
    }
    uint64_t bits = 0;
    for (int got = 0; got < kBlock;) {
      const int64_t left = walk_.left(), bit = walk_.bit();
      const int take = static_cast<int>(left < kBlock - got ? left : kBlock - got);
      const uint64_t ones = take == 64 ? ~uint64_t{0} : (uint64_t{1} << take) - 1;
      uint64_t piece;
      if (walk_.shares()) {
        const bool kept = bit >> 5 < words_ && (mask_[bit >> 5] >> (bit & 31) & 1u) != 0;
        piece = kept ? ~uint64_t{0} : 0;
      } else {
        piece = load_bits(mask_, words_, bit);
        if (take > 32) piece |= static_cast<uint64_t>(load_bits(mask_, words_, bit + 32)) << 32;
      }
      walk_.advance(take);
      bits |= (piece & ones) << got;
      got += take;
    }
    return bits;
  }

 private:
  const uint32_t* mask_;
  int64_t words_;
  MaskWalk walk_;
};

template <typename C>
inline void expand(uint64_t bits, C scale, C* out) {
  for (int half = 0; half < 2; ++half) {
    const auto word = static_cast<uint32_t>(bits >> (32 * half));
#pragma omp simd
    for (int i = 0; i < 32; ++i) out[32 * half + i] = (word >> i & 1u) ? scale : C(0);
  }
}

// Walks along with the mask and turns its bits into factors: the scale of the element, or zero.
template <typename C>
class Factors {
 public:
  Factors(const MaskApplyArgs& args, int64_t e)
      : args_(args), e_(e), group_(e / args.per_scale), end_((group_ + 1) * args.per_scale) {}

  void next(uint64_t bits, C* out) {
    if (e_ + kBlock <= end_ || end_ >= args_.numel) {
      expand<C>(bits, static_cast<C>(args_.scale[group_]), out);
      e_ += kBlock;
    } else {
      // The block crosses a boundary between scales.
      for (int i = 0; i < kBlock; ++i, ++e_) {
        settle();
        out[i] = bits >> i & 1 ? static_cast<C>(args_.scale[group_]) : C(0);
      }
    }
    settle();
  }

 private:
  void settle() {
    if (e_ < end_ || end_ >= args_.numel) return;
    ++group_;
    end_ += args_.per_scale;
  }

  const MaskApplyArgs& args_;
  int64_t e_, group_, end_;
};

// What a product with a mask does not need: kept out of the plain path.
template <typename T, typename C>
void extras(const MaskApplyArgs& args, int64_t e, uint64_t bits, C* v) {
  if (args.noise != 0.0 && ~bits != 0) {
    const Seed seed = load_seed(args.seed);
    float normal[kBlock];
    if (args.channels == 1) {
      normal_block(seed, static_cast<uint64_t>(e), normal);
    } else {
      for (int i = 0; i < kBlock; ++i)
        normal[i] = (bits >> i & 1) || e + i >= args.numel
                        ? 0.0f
                        : normal_of(seed, static_cast<uint64_t>(logical_index(args, e + i)));
    }
    const C deviation = static_cast<C>(args.noise);
    C dropped[kBlock];
    expand<C>(~bits, deviation, dropped);
    // What is kept stays as it is, down to the sign of a zero.
#pragma omp simd
    for (int i = 0; i < kBlock; ++i)
      v[i] = dropped[i] != C(0) ? v[i] + static_cast<C>(normal[i]) * dropped[i] : v[i];
  }
  if (args.residual != nullptr) {
    const T* residual = static_cast<const T*>(args.residual) + e;
    C r[kBlock];
    T tail[kBlock] = {};
    if (args.numel - e < kBlock) {
      memcpy(tail, residual, static_cast<size_t>(args.numel - e) * sizeof(T));
      residual = tail;
    }
    load_block(residual, r);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) v[i] += r[i];
  }
  if (args.relu) {
    // !(v <= 0): a NaN is active, as in torch's ReLU. Bits past the end stay zero.
    uint32_t active[2] = {0, 0};
    for (int half = 0; half < 2; ++half) {
      uint32_t word = 0;
#pragma omp simd reduction(| : word)
      for (uint32_t i = 0; i < 32; ++i)
        word |= (v[32 * half + static_cast<int>(i)] <= C(0) ? 0u : 1u) << i;
      const int64_t left = args.numel - e - 32 * half;
      active[half] = left > 0 ? word & low_bits(left) : 0u;
    }
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) v[i] = v[i] <= C(0) ? C(0) : v[i];
    if (args.active_out != nullptr) {
      args.active_out[e >> 5] = active[0];
      if (e + 32 < args.numel) args.active_out[(e >> 5) + 1] = active[1];
    }
  }
  if (args.active != nullptr) {
    const int64_t words = bit_words(args.numel);
    const uint64_t high = (e >> 5) + 1 < words ? args.active[(e >> 5) + 1] : 0u;
    const uint64_t active = args.active[e >> 5] | high << 32;
    C on[kBlock];
    expand<C>(active, C(1), on);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) v[i] = on[i] != C(0) ? v[i] : C(0);
  }
}

// One block of kBlock elements at e.
template <typename T, bool kExtras>
inline void apply_block(const MaskApplyArgs& args, int64_t e, uint64_t bits,
                        Factors<compute_t<T>>& factors, const T* x, T* y) {
  using C = compute_t<T>;
  C v[kBlock], m[kBlock];
  load_block(x, v);
  factors.next(bits, m);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) v[i] *= m[i];
  if constexpr (kExtras) extras<T, C>(args, e, bits, v);
  store_block(v, y);
}

template <typename T, bool kExtras, bool kStreaming>
void apply(const MaskApplyArgs& args, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  MaskCursor cursor(args, begin);
  Factors<compute_t<T>> factors(args, begin);
  int64_t e = begin;
  for (; e + kBlock <= end; e += kBlock) {
    const uint64_t bits = cursor.next();
    if constexpr (kStreaming) {
      alignas(64) T block[kBlock];
      apply_block<T, kExtras>(args, e, bits, factors, x + e, block);
      stream_block(block, y + e);
    } else {
      apply_block<T, kExtras>(args, e, bits, factors, x + e, y + e);
    }
  }
  if (e < end) {
    T in[kBlock] = {}, out[kBlock];
    memcpy(in, x + e, static_cast<size_t>(end - e) * sizeof(T));
    apply_block<T, kExtras>(args, e, cursor.next(), factors, in, out);
    memcpy(y + e, out, static_cast<size_t>(end - e) * sizeof(T));
  }
  if constexpr (kStreaming) stream_fence();
}

template <typename T>
void apply_all(const MaskApplyArgs& args) {
  const bool extras =
      args.relu || args.residual != nullptr || args.active != nullptr || args.noise != 0.0;
  const bool streaming = args.x != args.y &&
                         args.numel * static_cast<int64_t>(sizeof(T)) > kStreamingBytes &&
                         reinterpret_cast<uintptr_t>(args.y) % 64 == 0;
  constexpr int64_t kGrain = 512;  // blocks: 32768 elements
  parallel_for((args.numel + kBlock - 1) / kBlock, kGrain, [&](int64_t begin, int64_t end) {
    begin *= kBlock;
    end = end * kBlock < args.numel ? end * kBlock : args.numel;
    if (extras && streaming)
      apply<T, true, true>(args, begin, end);
    else if (extras)
      apply<T, true, false>(args, begin, end);
    else if (streaming)
      apply<T, false, true>(args, begin, end);
    else
      apply<T, false, false>(args, begin, end);
  });
}

}  // namespace

void mask_apply(const MaskApplyArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { apply_all<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
