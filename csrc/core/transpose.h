#pragma once

#include <cstdint>
#include <cstring>

// Transposition in squares, for CPU kernels.

namespace regkern {
namespace {

constexpr int kSquare = 16;

// out[r · pitch + k] ← in[k][r].
inline void transpose_square(const float in[kSquare][kSquare], int64_t pitch, float* out) {
  // Four by four in registers: left to itself gcc moves element by element.
  using V [[gnu::vector_size(16)]] = float;
  using I [[gnu::vector_size(16)]] = int32_t;
  constexpr I low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
  for (int k = 0; k < kSquare; k += 4)
    for (int r = 0; r < kSquare; r += 4) {
      V row[4];
      for (int i = 0; i < 4; ++i) memcpy(row + i, &in[k + i][r], sizeof(V));
      const V a = __builtin_shuffle(row[0], row[1], low),
              b = __builtin_shuffle(row[2], row[3], low);
      const V c = __builtin_shuffle(row[0], row[1], high);
      const V d = __builtin_shuffle(row[2], row[3], high);
      const V columns[4] = {__builtin_shuffle(a, b, first), __builtin_shuffle(a, b, second),
                            __builtin_shuffle(c, d, first), __builtin_shuffle(c, d, second)};
      for (int i = 0; i < 4; ++i) memcpy(out + (r + i) * pitch + k, columns + i, sizeof(V));
    }
}
inline void transpose_square(const double in[kSquare][kSquare], int64_t pitch, double* out) {
  for (int k = 0; k < kSquare; ++k)
    for (int r = 0; r < kSquare; ++r) out[r * pitch + k] = in[k][r];
}

}  // namespace
}  // namespace regkern
