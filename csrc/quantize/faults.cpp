#include "quantize/faults.h"

#include "core/parallel.h"
#include "core/vec.h"
#include "quantize/fault_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

constexpr int64_t kGrain = int64_t{1} << 15;

// bytes of kBlock elements, each padded to `slots` bits, into elements of type M.
template <typename M>
void draw_masks(const StuckAtMasksArgs& a) {
  const Seed seed = load_seed(a.seed);
  const uint64_t keep = a.bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << a.bits) - 1;
  const int slots = fault_slots(a.bits);
  const int bytes = kBlock * slots / 8;
  const int64_t blocks = (a.numel + kBlock - 1) / kBlock;
  parallel_for(blocks, kGrain / kBlock, [&](int64_t begin, int64_t end) {
    uint8_t zeros[kBlock * 8], ones[kBlock * 8];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t e = block * kBlock;
      const int n = e + kBlock < a.numel ? kBlock : static_cast<int>(a.numel - e);
      const uint64_t first = static_cast<uint64_t>(block * bytes);
      for (int i = 0; i < bytes; i += 16)
        fault_bytes(seed, a.rate, first + static_cast<uint64_t>(i), zeros + i, ones + i);
      M* sa0 = static_cast<M*>(a.sa0) + e;
      M* sa1 = static_cast<M*>(a.sa1) + e;
      for (int i = 0; i < n; ++i) {
        uint64_t zero = 0, one = 0;
        if (slots == 4) {
          zero = zeros[i / 2] >> (i % 2 * 4);
          one = ones[i / 2] >> (i % 2 * 4);
        } else {
          for (int k = 0; k < slots / 8; ++k) {
            zero |= static_cast<uint64_t>(zeros[i * (slots / 8) + k]) << (8 * k);
            one |= static_cast<uint64_t>(ones[i * (slots / 8) + k]) << (8 * k);
          }
        }
        sa0[i] = static_cast<M>(zero & keep);
        sa1[i] = static_cast<M>(one & keep);
      }
    }
  });
}

template <typename T>
void load_masks(const void* masks, int64_t e, int n, uint32_t* out) {
  if (masks == nullptr) {
    for (int i = 0; i < kBlock; ++i) out[i] = 0;
    return;
  }
  for (int i = 0; i < n; ++i) out[i] = static_cast<const T*>(masks)[e + i];
  for (int i = n; i < kBlock; ++i) out[i] = 0;
}

template <typename T>
void inject_block(const InjectFaultsArgs& a, const Seed& seed, int64_t e, int n) {
  using C = compute_t<T>;
  T in[kBlock], out[kBlock];
  C w[kBlock], scale[kBlock], inverse[kBlock], zero[kBlock], y[kBlock];
  uint32_t sa0[kBlock], sa1[kBlock];
  memcpy(in, static_cast<const T*>(a.w) + e, static_cast<size_t>(n) * sizeof(T));
  for (int i = n; i < kBlock; ++i) in[i] = T{};
  load_block(in, w);
  if (a.seed != nullptr) {
    fault_block(seed, a.rate, static_cast<uint64_t>(e), a.bits, sa0, sa1);
  } else if (a.masks_wide) {
    load_masks<uint32_t>(a.sa0, e, n, sa0);
    load_masks<uint32_t>(a.sa1, e, n, sa1);
  } else {
    load_masks<uint8_t>(a.sa0, e, n, sa0);
    load_masks<uint8_t>(a.sa1, e, n, sa1);
  }
  int64_t c = a.channels == 1 ? 0 : e / a.inner % a.channels;
  int64_t left = a.channels == 1 ? kBlock : a.inner - e % a.inner;
  const int bits = a.bits;
  if (left >= kBlock) {
    const C s = static_cast<const C*>(a.scale)[c], z = static_cast<const C*>(a.zero_point)[c];
    const C inv = inverse_of(s);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) y[i] = faulty_value(w[i], s, inv, z, bits, sa0[i], sa1[i]);
  } else {
    for (int i = 0; i < kBlock; ++i) {
      scale[i] = static_cast<const C*>(a.scale)[c];
      zero[i] = static_cast<const C*>(a.zero_point)[c];
      if (--left == 0) {
        left = a.inner;
        c = c + 1 == a.channels ? 0 : c + 1;
      }
    }
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) inverse[i] = inverse_of(scale[i]);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i)
      y[i] = faulty_value(w[i], scale[i], inverse[i], zero[i], bits, sa0[i], sa1[i]);
  }
  store_block<T>(y, out);
  memcpy(static_cast<T*>(a.y) + e, out, static_cast<size_t>(n) * sizeof(T));
}

}  // namespace

void stuck_at(const StuckAtArgs& a, Context) {
  parallel_for(a.bytes, kGrain * 4, [&](int64_t begin, int64_t end) {
    const auto* code = static_cast<const uint8_t*>(a.code);
    const auto* sa0 = static_cast<const uint8_t*>(a.sa0);
    const auto* sa1 = static_cast<const uint8_t*>(a.sa1);
    auto* out = static_cast<uint8_t*>(a.out);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i)
      out[i] = static_cast<uint8_t>((code[i] | sa1[i]) & ~sa0[i]);
  });
}

void stuck_at_masks(const StuckAtMasksArgs& a, Context) {
  switch (a.itemsize) {
    case 1:
      return draw_masks<uint8_t>(a);
    case 2:
      return draw_masks<uint16_t>(a);
    case 4:
      return draw_masks<uint32_t>(a);
    default:
      return draw_masks<uint64_t>(a);
  }
}

void inject_faults(const InjectFaultsArgs& a, Context) {
  const int64_t blocks = (a.numel + kBlock - 1) / kBlock;
  const Seed seed = a.seed != nullptr ? load_seed(a.seed) : Seed{0, 0};
  parallel_for(blocks, kGrain / kBlock, [&](int64_t begin, int64_t end) {
    dispatch_floating(a.dtype, [&](auto zero) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t e = b * kBlock;
        inject_block<decltype(zero)>(a, seed, e,
                                     e + kBlock < a.numel ? kBlock : static_cast<int>(a.numel - e));
      }
    });
  });
}

}  // namespace regkern::REGKERN_ISA
