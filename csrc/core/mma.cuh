#pragma once

#include "core/dtype.h"
#include "core/launch.cuh"
#include "core/vector.cuh"

namespace regkern {

// d += a b on tensor cores, of a (16, 16) and b (16, 8) in halves T and d (16, 8) in float, spread
// over a warp. With i = lane / 4 and j = lane % 4, a thread has
//
//     a[0], a[2]   rows i of a, columns 2 j, 2 j + 1 and 2 j + 8, 2 j + 9
//     a[1], a[3]   rows i + 8, likewise
//     b[0], b[1]   column i of b, rows 2 j, 2 j + 1 and 2 j + 8, 2 j + 9
//     d            rows i and i + 8, columns 2 j and 2 j + 1
//
// Products are exact; in which order and how exactly they are added is the hardware's business.
template <typename T>
__device__ __forceinline__ void mma_16816(const uint32_t (&a)[4], const uint32_t (&b)[2],
                                          float (&d)[4]) {
  static_assert(std::is_same_v<T, bfloat16> || std::is_same_v<T, float16>);
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  const int lane = static_cast<int>(threadIdx.x) % 32, i = lane / 4, j = lane % 4;
  const auto half = [](uint32_t pair, int k) {
    return widen(T{static_cast<uint16_t>(pair >> 16 * k & 0xFFFFu)});
  };
  for (int from = 0; from < 4; ++from) {
    uint32_t rows[4];
    for (int r = 0; r < 4; ++r) rows[r] = __shfl_sync(kWholeWarp, a[r], 4 * i + from);
    for (int c = 0; c < 2; ++c) {
      const int column = 4 * (2 * j + c) + from;
      for (int part = 0; part < 2; ++part) {
        const uint32_t factors = __shfl_sync(kWholeWarp, b[part], column);
        for (int k = 0; k < 2; ++k) {
          d[c] += half(rows[2 * part], k) * half(factors, k);
          d[2 + c] += half(rows[2 * part + 1], k) * half(factors, k);
        }
      }
    }
  }
#endif
}

}  // namespace regkern
