#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"
#include "core/philox.h"

// Tokens of a row dealt out to parts of exact sizes, without a sort: the token with the r-th
// smallest priority is of the part that rank r falls in, so a few selections of thresholds do.
//
// A priority is a key above the token's index, and no two are equal. The key has 31 random bits, or
//
//     blocks    0xFFFFFFFF − b, where rectangle b is the first to cover the token
//     scores    0xFFFFFFFF, for the ⌊α · size of the last part⌋ tokens of highest score
//
// which all come after the random ones, in the last part.

namespace regkern::masks {

constexpr int kMostParts = 64;
constexpr uint32_t kLastKey = 0xFFFFFFFFu;
// What makes up for the rounding of α times a size.
constexpr double kShareSlack = 1e-9;

struct PatchPartsArgs {
  int64_t rows, n;
  const int64_t* seed;
  // Sizes are uniform in [least, most], drawn for each row; the last part has what remains. With
  // `apart` = false a row has one of them, range row % ranges, and the rest.
  int32_t least[kMostParts], most[kMostParts];
  int ranges;
  bool apart;
  const float* scores;  // null, or (rows, n)
  double alpha;
  const double* alpha_at;  // null, or where alpha stands instead
  int boxes;               // rectangles of a row, on a grid (depth, height, width) of n tokens
  int64_t depth, height, width;
  double min_area, max_area;  // share of height · width
  double log_min_ratio, log_max_ratio;
  uint8_t* mask;
  int first_plane, planes;  // mask (rows, planes, n): whether part first_plane + q has the token
  int64_t* ids;
  int64_t listed, id_width;  // ids (rows, listed, id_width): tokens of a part, ascending; then −1
  int64_t* sizes;            // null, or (rows, parts − 1)
  int64_t* restore;          // null, or (rows, n): the token's place behind all parts in turn
  uint32_t* keys;            // scratch on the GPU: (rows, padded_tokens(n))
};

// The generator makes 64 keys at a time.
constexpr int64_t kKeyBlock = 64;
REGKERN_HD int64_t padded_tokens(int64_t n) { return (n + kKeyBlock - 1) / kKeyBlock * kKeyBlock; }

// Key j · 16 + i of a block is word j of its counter i.
REGKERN_HD uint64_t key_counter(int64_t row, int64_t padded, int64_t block, int i) {
  return static_cast<uint64_t>(row * (padded / kKeyBlock) + block) * 16 + static_cast<uint64_t>(i);
}
REGKERN_HD uint32_t random_key(uint32_t word) { return word >> 1; }

// Ascending from the highest score; NaN before all, −0 as 0.
REGKERN_HD uint32_t score_key(float score) {
  const uint32_t bits = bit_cast<uint32_t>(score + 0.0f);
  const uint32_t order = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return score != score ? 0u : ~order;
}

REGKERN_HD uint64_t token_priority(uint32_t key, int64_t token) {
  return static_cast<uint64_t>(key) << 32 | static_cast<uint64_t>(token);
}

REGKERN_HD int part_count(const PatchPartsArgs& args) { return args.apart ? args.ranges + 1 : 2; }

REGKERN_HD int64_t part_size(const PatchPartsArgs& args, Seed seed, int64_t row, int part) {
  const int64_t slot = args.apart ? part : row % args.ranges;
  const int32_t least = args.least[slot], most = args.most[slot];
  if (least == most) return least;
  const auto item = static_cast<uint64_t>(args.apart ? row * args.ranges + part : row);
  Draws draws(seed, Stream::choice, item);
  return least + static_cast<int32_t>(draws.below(static_cast<uint32_t>(most - least + 1)));
}

REGKERN_HD int64_t top_count(const PatchPartsArgs& args, int64_t last) {
  const double alpha = args.alpha_at != nullptr ? *args.alpha_at : args.alpha;
  const double share = alpha >= 0.0 ? (alpha <= 1.0 ? alpha : 1.0) : 0.0;
  return static_cast<int64_t>(share * static_cast<double>(last) + kShareSlack);
}

struct PatchBox {
  int32_t t0, t1, y0, y1, x0, x1;
};

REGKERN_HD PatchBox draw_patch_box(const PatchPartsArgs& args, Seed seed, int64_t row, int b) {
  Draws draws(
      seed, Stream::box,
      static_cast<uint64_t>(row) * static_cast<uint64_t>(args.boxes) + static_cast<uint64_t>(b));
  const double share = args.min_area + (args.max_area - args.min_area) * draws.uniform();
  const double area = share * static_cast<double>(args.height) * static_cast<double>(args.width);
  const double span = args.log_max_ratio - args.log_min_ratio;
  const double ratio = regkern::exp(args.log_min_ratio + span * draws.uniform());
  const auto fit = [](double side, int64_t most) {
    const auto whole = static_cast<int64_t>(side + 0.5);
    return static_cast<int32_t>(whole < 1 ? 1 : whole > most ? most : whole);
  };
  const int32_t h = fit(regkern::sqrt(area * ratio), args.height);
  const int32_t w = fit(regkern::sqrt(area / ratio), args.width);
  const auto depth = static_cast<uint32_t>(args.depth);
  const int32_t d = 1 + static_cast<int32_t>(draws.below(depth));
  PatchBox box;
  box.y0 = static_cast<int32_t>(draws.below(static_cast<uint32_t>(args.height - h + 1)));
  box.x0 = static_cast<int32_t>(draws.below(static_cast<uint32_t>(args.width - w + 1)));
  box.t0 = static_cast<int32_t>(draws.below(depth - static_cast<uint32_t>(d) + 1));
  box.t1 = box.t0 + d;
  box.y1 = box.y0 + h;
  box.x1 = box.x0 + w;
  return box;
}

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(patch_parts, masks::PatchPartsArgs)
}  // namespace regkern
