#pragma once

#include <cstdint>

#include "core/bits.h"
#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"
#include "core/philox.h"
#include "masks/image.h"

// Masks of whole pixels in shapes, a bit for each pixel of a sample (1: kept), and what is put
// where they are 0: a fill, or a partner's pixel.

namespace regkern::masks {

enum class Shape : int {
  grid,     // squares in a lattice, turned and shifted by sample (GridMask)
  patches,  // each cell of a grid by itself (Hide-and-Seek)
  boxes     // given boxes
};

struct ShapeBitsArgs {
  Shape shape;
  const int64_t* seed;
  int64_t batch, height, width;
  bool invert;                      // keeps what else is hidden
  double p;                         // of a sample's grid; of each cell
  int64_t least, most;              // the lattice's period
  double ratio;                     // the share of a period that is kept
  double turns;                     // the largest angle
  int64_t cell_height, cell_width;  // of patches
  const int32_t* boxes;             // (batch, boxes_per_sample, 4)
  int64_t boxes_per_sample;
  uint32_t* bits;  // (batch, bit_words(height · width))
  int32_t* kept;   // (batch): the number of ones
};

// What a sample's bits are made from.
class ShapeRow {
 public:
  REGKERN_HD ShapeRow(const ShapeBitsArgs& args, int64_t b) : args_(args), b_(b) {
    if (args.shape != Shape::grid) return;
    Draws draws(load_seed(args.seed), Stream::box, static_cast<uint64_t>(b));
    applied_ = draws.uniform() < args.p;
    period_ = static_cast<int32_t>(
        args.least +
        static_cast<int64_t>(draws.below(static_cast<uint32_t>(args.most - args.least + 1))));
    const auto width = static_cast<int32_t>(static_cast<double>(period_) * args.ratio + 0.5);
    kept_ = width < 1 ? 1 : width > period_ - 1 ? period_ - 1 : width;
    shift_y_ = static_cast<int32_t>(draws.below(static_cast<uint32_t>(period_)));
    shift_x_ = static_cast<int32_t>(draws.below(static_cast<uint32_t>(period_)));
    if (args.turns > 0.0)
      cos_sin_turns(static_cast<float>(args.turns * draws.uniform()), &cosine_, &sine_);
  }

  // Rows of one number are alike.
  REGKERN_HD int64_t kind_of(int64_t y) const {
    if (args_.shape == Shape::patches) return y / args_.cell_height;
    if (args_.shape == Shape::grid && args_.turns == 0.0)
      return beyond(static_cast<int32_t>(y) + shift_y_) ? 1 : 0;
    return y;
  }

  REGKERN_HD bool keeps(int64_t y, int64_t x) { return hides(y, x) == args_.invert; }

 private:
  REGKERN_HD static int32_t nearest(float v) {
    const float up = v + 0.5f;
    const auto whole = static_cast<int32_t>(up);
    return static_cast<float>(whole) > up ? whole - 1 : whole;
  }
  REGKERN_HD bool beyond(int32_t at) const {
    const int32_t rest = at % period_;
    return (rest < 0 ? rest + period_ : rest) >= kept_;
  }

  REGKERN_HD bool hides(int64_t y, int64_t x) {
    if (args_.shape == Shape::grid) {
      // Without a grid a sample is as it was, whichever way round grids are.
      if (!applied_) return args_.invert;
      auto v = static_cast<int32_t>(y), u = static_cast<int32_t>(x);
      if (args_.turns > 0.0) {
        const float dy = static_cast<float>(y) - 0.5f * static_cast<float>(args_.height - 1);
        const float dx = static_cast<float>(x) - 0.5f * static_cast<float>(args_.width - 1);
        v = nearest(cosine_ * dy - sine_ * dx);
        u = nearest(sine_ * dy + cosine_ * dx);
      }
      return beyond(v + shift_y_) && beyond(u + shift_x_);
    }
    if (args_.shape == Shape::boxes) {
      for (int64_t k = 0; k < args_.boxes_per_sample; ++k)
        if (contains(load_box(args_.boxes, b_ * args_.boxes_per_sample + k), y, x)) return true;
      return false;
    }
    const int64_t columns = (args_.width + args_.cell_width - 1) / args_.cell_width;
    const int64_t rows = (args_.height + args_.cell_height - 1) / args_.cell_height;
    const int64_t cell = (b_ * rows + y / args_.cell_height) * columns + x / args_.cell_width;
    if (cell != cell_) {
      cell_ = cell;
      const uint32_t word =
          philox(load_seed(args_.seed), Stream::mask, static_cast<uint64_t>(cell)).w[0];
      cell_hidden_ = (static_cast<double>(word) + 0.5) * (1.0 / 4294967296.0) < args_.p;
    }
    return cell_hidden_;
  }

  const ShapeBitsArgs& args_;
  int64_t b_;
  bool applied_ = false;
  int32_t period_ = 2, kept_ = 1, shift_y_ = 0, shift_x_ = 0;
  float cosine_ = 1.0f, sine_ = 0.0f;
  int64_t cell_ = -1;
  bool cell_hidden_ = false;
};

// Bits of the word's pixels.
REGKERN_HD uint32_t shape_word(const ShapeBitsArgs& args, ShapeRow* row, int64_t word) {
  const int64_t plane = args.height * args.width;
  int64_t y = word * 32 / args.width, x = word * 32 % args.width;
  uint32_t bits = 0;
  for (int i = 0; i < 32 && word * 32 + i < plane; ++i) {
    bits |= static_cast<uint32_t>(row->keeps(y, x)) << i;
    if (++x == args.width) {
      x = 0;
      ++y;
    }
  }
  return bits;
}

// Bands of spectrograms as boxes: rows are frequencies, columns frames.
struct BandsArgs {
  const int64_t* seed;
  int64_t batch, height, width;
  int64_t row_bands, row_width, column_bands, column_width;
  double share;            // of its length that a column band takes at most
  const int64_t* lengths;  // null, or (batch)
  int32_t* boxes;          // (batch, row_bands + column_bands, 4)
};

REGKERN_HD void draw_bands(const BandsArgs& args, int64_t b) {
  Draws draws(load_seed(args.seed), Stream::box, static_cast<uint64_t>(b));
  int64_t length = args.lengths != nullptr ? args.lengths[b] : args.width;
  length = length < 0 ? 0 : length > args.width ? args.width : length;
  const int64_t bands = args.row_bands + args.column_bands;
  const auto most_columns = static_cast<int64_t>(args.share * static_cast<double>(length));
  for (int64_t k = 0; k < bands; ++k) {
    const bool rows = k < args.row_bands;
    const int64_t extent = rows ? args.height : length;
    int64_t most = rows ? args.row_width : args.column_width;
    const int64_t cap = rows ? args.height : most_columns;
    most = most < cap ? most : cap;
    const auto size = static_cast<int64_t>(draws.below(static_cast<uint32_t>(most + 1)));
    const auto at = static_cast<int64_t>(draws.below(static_cast<uint32_t>(extent - size + 1)));
    const auto from = static_cast<int32_t>(at), to = static_cast<int32_t>(at + size);
    const Box box = rows ? Box{from, to, 0, static_cast<int32_t>(length)}
                         : Box{0, static_cast<int32_t>(args.height), from, to};
    store_box(box, args.boxes, b * bands + k);
  }
}

struct MaskMixArgs {
  Dtype dtype;
  Images images;
  int64_t channels, frames;
  const void* x;
  void* y;  // may be x without a partner
  const uint32_t* bits;
  const int64_t* partner;  // null: the fill
  const double* values;    // (1) or (channels)
  int64_t value_count;
};

REGKERN_HD double fill_of(const MaskMixArgs& a, int64_t outer, int64_t inner) {
  if (a.value_count == 1) return a.values[0];
  return a.values[a.images.inner > 1 ? inner : outer / a.frames];
}

// out_j = bits_j g_j + Σ_{i: π(i) = j} (1 − bits_i) g_i, the i in rising order.
struct MaskMixAdjointArgs {
  Dtype dtype;
  Images images;
  const void* g;
  void* out;
  const uint32_t* bits;
  const int64_t* partner;
  int64_t* head;  // (batch), scratch
  int64_t* next;  // (batch), scratch
};

// Four samples around a centre: quadrant q = 2 (below) + (right) of sample b shows π(b, q), at the
// same place, or so that a corner of it lies in the centre.
struct MosaicArgs {
  Dtype dtype;
  Images images;
  const void* x;  // g in the adjoint
  void* y;
  const int64_t* partner;  // (batch, 4)
  const int32_t* centre;   // (batch, 2): row and column
  bool corner;
  int64_t* head;  // (batch), scratch of the adjoint
  int64_t* next;  // (4 batch), scratch of the adjoint
};

struct Quadrant {
  Box box;
  int32_t dy, dx;  // from a pixel to its source
};

REGKERN_HD Quadrant quadrant_of(const MosaicArgs& a, int64_t b, int q) {
  const auto h = static_cast<int32_t>(a.images.height), w = static_cast<int32_t>(a.images.width);
  int32_t cy = a.centre[2 * b], cx = a.centre[2 * b + 1];
  cy = cy < 0 ? 0 : cy > h ? h : cy;
  cx = cx < 0 ? 0 : cx > w ? w : cx;
  const bool below = q >= 2, right = q % 2 == 1;
  Quadrant r{{below ? cy : 0, below ? h : cy, right ? cx : 0, right ? w : cx}, 0, 0};
  if (a.corner) {
    r.dy = below ? -cy : h - cy;
    r.dx = right ? -cx : w - cx;
  }
  return r;
}

struct MosaicParamsArgs {
  const int64_t* seed;
  int64_t batch, height, width;
  double low, high;  // where the centre lies, in shares of a side
  int64_t* partner;
  int32_t* centre;
};

REGKERN_HD void draw_mosaic(const MosaicParamsArgs& args, int64_t b) {
  const Seed seed = load_seed(args.seed);
  Draws box(seed, Stream::box, static_cast<uint64_t>(b));
  const double span = args.high - args.low;
  args.centre[2 * b] =
      static_cast<int32_t>(static_cast<double>(args.height) * (args.low + span * box.uniform()));
  args.centre[2 * b + 1] =
      static_cast<int32_t>(static_cast<double>(args.width) * (args.low + span * box.uniform()));
  Draws pairing(seed, Stream::pairing, static_cast<uint64_t>(b));
  args.partner[4 * b] = b;
  for (int q = 1; q < 4; ++q)
    args.partner[4 * b + q] =
        static_cast<int64_t>(pairing.below(static_cast<uint32_t>(args.batch)));
}

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(shape_bits, masks::ShapeBitsArgs)
REGKERN_DECLARE_KERNEL(bands, masks::BandsArgs)
REGKERN_DECLARE_KERNEL(mask_mix, masks::MaskMixArgs)
REGKERN_DECLARE_KERNEL(mask_mix_adjoint, masks::MaskMixAdjointArgs)
REGKERN_DECLARE_KERNEL(mosaic, masks::MosaicArgs)
REGKERN_DECLARE_KERNEL(mosaic_adjoint, masks::MosaicArgs)
REGKERN_DECLARE_KERNEL(mosaic_params, masks::MosaicParamsArgs)
}  // namespace regkern
