#include "core/kernels/bit_transpose.h"

#include <cstring>

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

// Transposes kTiles bit matrices of 32 x 32 in place, a[row][matrix]: swap halves, quarters, …,
// single bits. The matrices lie side by side so that a vector holds the same row of all of them.
constexpr int kTiles = 16;
void transpose_tiles(uint32_t a[32][kTiles]) {
  uint32_t mask = 0x0000FFFFu;
  for (int width = 16; width > 0; width >>= 1, mask ^= mask << width) {
    for (int i = 0; i < 32; i = ((i | width) + 1) & ~width) {
#pragma omp simd
      for (int t = 0; t < kTiles; ++t) {
        const uint32_t swap = ((a[i][t] >> width) ^ a[i | width][t]) & mask;
        a[i][t] ^= swap << width;
        a[i | width][t] ^= swap;
      }
    }
  }
}

// Columns [c, c + width) of batch entry b, width <= 32 kTiles.
void transpose_columns(const BitTransposeArgs& args, int64_t words, int64_t b, int64_t c,
                       int64_t width) {
  const int64_t rows = args.rows, cols = args.cols;
  alignas(64) uint32_t tiles[32][kTiles];
  for (int64_t r = 0; r < rows; r += 32) {
    const int64_t height = rows - r < 32 ? rows - r : 32;
    std::memset(tiles, 0, sizeof(tiles));
    for (int64_t i = 0; i < height; ++i) {
      const int64_t bit = (b * rows + r + i) * cols + c;
      if (bit % 32 == 0 && width % 32 == 0) {
        std::memcpy(tiles[i], args.in + bit / 32, static_cast<size_t>(width / 8));
      } else {
        for (int64_t t = 0; 32 * t < width; ++t)
          tiles[i][t] = load_bits(args.in, words, bit + 32 * t) & low_bits(width - 32 * t);
      }
    }
    transpose_tiles(tiles);
    for (int64_t j = 0; j < width; ++j) {
      const uint32_t column = tiles[j % 32][j / 32];
      const int64_t bit = (b * cols + c + j) * rows + r;
      const int shift = static_cast<int>(bit & 31);
      args.out[bit >> 5] |= column << shift;
      if (shift != 0 && height > 32 - shift) args.out[(bit >> 5) + 1] |= column >> (32 - shift);
    }
  }
}

}  // namespace

void bit_transpose(const BitTransposeArgs& args, Context) {
  const int64_t rows = args.rows, cols = args.cols, bits = args.batch * rows * cols;
  if (bits == 0) return;
  const int64_t words = bit_words(bits);
  std::memset(args.out, 0, static_cast<size_t>(words) * sizeof(uint32_t));
  // A piece is 32 output rows (of `rows` bits) times a number: it ends at a word boundary, so no
  // word is shared between threads.
  const int64_t columns = args.batch * cols, step = 32 * kTiles;
  parallel_for((columns + step - 1) / step, 1 + (int64_t{1} << 10) / (rows + 1),
               [&](int64_t begin, int64_t end) {
                 const int64_t last = end * step < columns ? end * step : columns;
                 for (int64_t column = begin * step; column < last;) {
                   const int64_t c = column % cols;
                   int64_t width = cols - c < last - column ? cols - c : last - column;
                   width = width < step ? width : step;
                   transpose_columns(args, words, column / cols, c, width);
                   column += width;
                 }
               });
}

}  // namespace regkern::REGKERN_ISA
