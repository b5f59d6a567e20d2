#include "masks/patch_mask.h"

#include <cstring>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

constexpr int64_t kTokensPerPiece = 8192;

void draw_keys(Seed seed, int64_t row, int64_t padded, uint32_t* keys) {
  alignas(64) uint32_t words[4][16];
  for (int64_t block = 0; block < padded / kKeyBlock; ++block) {
    philox16(seed, Stream::mask, key_counter(row, padded, block, 0), words);
    const uint32_t* const flat = words[0];
    uint32_t* const out = keys + block * kKeyBlock;
#pragma omp simd
    for (int i = 0; i < static_cast<int>(kKeyBlock); ++i) out[i] = random_key(flat[i]);
  }
}

// The number that is larger than exactly `rank` priorities, 0 ≤ rank ≤ n: digit by digit, until the
// tokens of a digit are all on one side.
uint64_t threshold(const uint32_t* keys, int64_t n, int64_t rank) {
  if (rank <= 0) return 0;
  if (rank >= n) return ~uint64_t{0};
  uint64_t prefix = 0;
  for (int shift = 56;; shift -= 8) {
    uint32_t count[256] = {};
    if (shift == 56) {
      for (int64_t i = 0; i < n; ++i) ++count[keys[i] >> 24];
    } else {
      for (int64_t i = 0; i < n; ++i) {
        const uint64_t priority = token_priority(keys[i], i);
        if (priority >> (shift + 8) == prefix >> (shift + 8)) ++count[priority >> shift & 255u];
      }
    }
    uint64_t digit = 0;
    for (; rank > count[digit]; ++digit) rank -= count[digit];
    prefix |= digit << shift;
    if (rank == count[digit]) return prefix + (uint64_t{1} << shift);
  }
}

// Rectangles until they cover `wanted` tokens: what more of them cover is not asked for.
void cover(const PatchPartsArgs& args, Seed seed, int64_t row, int64_t wanted, uint32_t* keys) {
  int64_t covered = 0;
  for (int b = 0; b < args.boxes && covered < wanted; ++b) {
    const PatchBox box = draw_patch_box(args, seed, row, b);
    for (int64_t t = box.t0; t < box.t1; ++t)
      for (int64_t y = box.y0; y < box.y1; ++y) {
        uint32_t* const line = keys + (t * args.height + y) * args.width;
        for (int64_t x = box.x0; x < box.x1; ++x) {
          if (line[x] > kLastKey >> 1) continue;
          line[x] = kLastKey - static_cast<uint32_t>(b);
          ++covered;
        }
      }
  }
}

// Two parts of which the first is listed: no branches.
void emit_two(const PatchPartsArgs& args, int64_t row, const uint32_t* keys, uint64_t limit,
              int64_t first, int64_t* listed) {
  const int64_t n = args.n;
  const int plane = args.first_plane;
  uint8_t* const mask = args.mask + row * n;
  int64_t at = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool below = token_priority(keys[i], i) < limit;
    listed[at] = i;
    mask[i] = static_cast<uint8_t>(below == (plane == 0));
    if (args.restore != nullptr) args.restore[row * n + i] = below ? at : first + i - at;
    at += below;
  }
  int64_t* const ids = args.ids + row * args.id_width;
  memcpy(ids, listed, static_cast<size_t>(first) * sizeof(int64_t));
  for (int64_t i = first; i < args.id_width; ++i) ids[i] = -1;
}

void emit(const PatchPartsArgs& args, int64_t row, const uint32_t* keys, const uint64_t* limits,
          const int64_t* sizes, int parts) {
  const int64_t n = args.n;
  int64_t before[kMostParts + 1] = {}, start[kMostParts + 1] = {};
  for (int p = 1; p < parts; ++p) start[p] = start[p - 1] + sizes[p - 1];
  int64_t* const ids = args.ids + row * args.listed * args.id_width;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t priority = token_priority(keys[i], i);
    int part = 0;
    for (int p = 0; p + 1 < parts; ++p) part += priority >= limits[p];
    for (int q = 0; q < args.planes; ++q)
      args.mask[(row * args.planes + q) * n + i] =
          static_cast<uint8_t>(part == args.first_plane + q);
    const int64_t rank = before[part]++;
    if (part < args.listed) ids[part * args.id_width + rank] = i;
    if (args.restore != nullptr) args.restore[row * n + i] = start[part] + rank;
  }
  for (int64_t p = 0; p < args.listed; ++p)
    for (int64_t i = before[p]; i < args.id_width; ++i) ids[p * args.id_width + i] = -1;
}

}  // namespace

void patch_parts(const PatchPartsArgs& args, Context) {
  const Seed seed = load_seed(args.seed);
  const int64_t padded = padded_tokens(args.n), n = args.n;
  const int parts = part_count(args);
  const int64_t grain = n > 0 ? kTokensPerPiece / n : kTokensPerPiece;
  parallel_for(args.rows, grain > 0 ? grain : 1, [&](int64_t begin, int64_t end) {
    const Scratch<uint32_t> keys(padded), scores(args.scores != nullptr ? padded : 0);
    const Scratch<int64_t> listed(n + 1);
    for (int64_t row = begin; row < end; ++row) {
      int64_t sizes[kMostParts + 1], rank = 0;
      uint64_t limits[kMostParts];
      for (int p = 0; p + 1 < parts; ++p) {
        sizes[p] = part_size(args, seed, row, p);
        if (args.sizes != nullptr) args.sizes[row * (parts - 1) + p] = sizes[p];
        rank += sizes[p];
      }
      const int64_t last = n - rank;
      draw_keys(seed, row, padded, keys.data());
      if (args.scores != nullptr) {
        const float* const given = args.scores + row * n;
        for (int64_t i = 0; i < n; ++i) scores[i] = score_key(given[i]);
        const uint64_t limit = threshold(scores.data(), n, top_count(args, last));
        for (int64_t i = 0; i < n; ++i)
          if (token_priority(scores[i], i) < limit) keys[i] = kLastKey;
      }
      if (args.boxes > 0) cover(args, seed, row, last, keys.data());
      rank = 0;
      for (int p = 0; p + 1 < parts; ++p) {
        rank += sizes[p];
        limits[p] = threshold(keys.data(), n, rank);
      }
      if (parts == 2 && args.planes == 1 && args.listed == 1)
        emit_two(args, row, keys.data(), limits[0], sizes[0], listed.data());
      else
        emit(args, row, keys.data(), limits, sizes, parts);
    }
  });
}

}  // namespace regkern::REGKERN_ISA
