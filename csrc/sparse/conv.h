#pragma once

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "sparse/spmm.h"

// Convolutions with a sparse weight W (O, I / groups, KH, KW), a pattern of the matrix (O, I /
// groups · KH · KW).
//
// What is read lies packed, kConvLanes elements of the batch side by side:
//
//     (tile of the batch, class, channel, row, column, lane)
//
// An axis of stride s is decimated: the class of a source row is its residue modulo s, and within a
// class neighbours are s apart in the source. A tap then belongs to one class and to one shift of
// it, for any stride and dilation, and an entry of W is one offset: with the rows of all positions
// side by side, lanes of columns and of the batch alike,
//
//     forward     y_o[i]  = Σ_e w_e x[shift_e + i]
//     backward    dx_c[i] = Σ_e w_e g[shift_e + i],     dw_e = Σ_i x_c[i] g[shift_e + i]
//
// Zeros stand around the planes of x as far as the padding goes, and around those of g as far as
// taps reach. They are numbers like others: 0 · ∞ is NaN.
//
// The order of sums is the same everywhere. Sums over entries go by entry, which are sorted by
// column and row of W in the backward. A sum over positions: rows go in groups, groups in strips of
// columns, and strips in tiles of kConvTile elements, row by row. Element k of a tile belongs to
// lane k mod kBatchLanes, which adds its products in that order over all tiles of a tile of the
// batch. The lanes are folded in halves, and tiles of the batch are added in order.

namespace regkern::sparse {

// The most elements of the batch that lie side by side.
constexpr int kConvLanes = 16;
// Elements of a tile of positions: as many bytes for both compute types.
template <typename C>
constexpr int kConvTile = sizeof(C) == 8 ? 32 : 64;

// One axis of a convolution.
struct ConvAxis {
  int64_t size, out;  // of the source and of the result
  int64_t taps, stride, dilation, before;

  // Taps that many apart belong to the same class.
  REGKERN_HD int64_t period() const {
    int64_t a = stride, b = dilation;
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return stride / a;
  }
  REGKERN_HD int64_t classes() const { return taps < period() ? taps : period(); }
  REGKERN_HD int64_t class_of(int64_t tap) const { return tap % period(); }
  REGKERN_HD int64_t shift_of(int64_t tap) const { return tap * dilation / stride; }
  REGKERN_HD int64_t reach() const { return (taps - 1) * dilation / stride; }
  // Row r of class j is row first(j) + r · stride of the source.
  REGKERN_HD int64_t first(int64_t j) const { return j * dilation % stride - before; }
  REGKERN_HD int64_t extent() const { return out + reach(); }
  // The rows of class j from begin(j) to end(j) are rows of the source.
  REGKERN_HD int64_t begin(int64_t j) const {
    const int64_t a = first(j);
    const int64_t r = a < 0 ? (-a + stride - 1) / stride : 0;
    return r < extent() ? r : extent();
  }
  REGKERN_HD int64_t end(int64_t j) const {
    const int64_t left = size - first(j);
    const int64_t r = left > 0 ? (left + stride - 1) / stride : 0;
    const int64_t most = r < extent() ? r : extent();
    return most > begin(j) ? most : begin(j);
  }
};

struct ConvShape {
  int64_t batch, channels, outputs, groups;
  ConvAxis rows, columns;

  REGKERN_HD int64_t taps() const { return rows.taps * columns.taps; }
  REGKERN_HD int64_t classes() const { return rows.classes() * columns.classes(); }
  REGKERN_HD int64_t class_of(int64_t row_tap, int64_t column_tap) const {
    return rows.class_of(row_tap) * columns.classes() + columns.class_of(column_tap);
  }
};

// Packed planes: strides in elements. Behind the last there are as many as a tile may reach.
struct ConvField {
  int64_t lanes, row, plane, of_class, of_tile;
};

REGKERN_HD ConvField conv_field(int64_t lanes, int64_t classes, int64_t channels, int64_t rows,
                                int64_t columns) {
  ConvField field{};
  field.lanes = lanes;
  field.row = columns * lanes;
  // An odd number of cache lines: planes do not meet in one set of the cache.
  const int64_t lines = (rows * field.row + 15) / 16;
  field.plane = (lines | 1) * 16;
  field.of_class = channels * field.plane;
  field.of_tile = classes * field.of_class;
  return field;
}
REGKERN_HD int64_t conv_slack(const ConvField& field) { return 4 * field.row + 64; }

// Lanes of a batch: tiles of the same size, at most kConvLanes.
REGKERN_HD int64_t conv_lanes(int64_t batch) {
  const int64_t tiles = (batch + kConvLanes - 1) / kConvLanes;
  return tiles > 0 ? (batch + tiles - 1) / tiles : 1;
}

// Of rows of `length` elements: how many are read together.
REGKERN_HD int conv_rows_at_once(int64_t rows, int64_t length, int tile) {
  int best = 1;
  int64_t least = 0;
  for (int r = 1; r <= 4; r *= 2) {
    const int64_t width = tile / r;
    const int64_t cost = (rows + r - 1) / r * r * ((length + width - 1) / width * width);
    if (r == 1 || cost < least) {
      least = cost;
      best = r;
    }
  }
  return best;
}

// A strip of a row, which begins with a tile: four tiles at most.
REGKERN_HD int64_t conv_strip_columns(int64_t lanes, int tile, int rows_at_once) {
  return 4 * (tile / rows_at_once) / lanes;
}

// Some tiles of the batch, packed. `axis` has the classes; for a gradient it has one, and `before`
// says how far zeros go.
struct ConvPackArgs {
  Dtype dtype;
  int64_t batch, channels, tiles;  // `batch` is what there is in these tiles
  ConvAxis rows, columns;
  ConvField field;
  const void* x;
  int64_t strides[4];  // of batch, channel, row and column, in elements
  void* packed;        // in the compute type
};

// Entries in the order of what is written: of the rows of W, or of its columns as (class, channel).
struct ConvEntriesArgs {
  bool wide, by_columns;
  ConvShape shape;
  SparseView view;  // by rows or by columns
  ConvField field;  // of what is read
  const void* values;
  int64_t *begin, *end;  // of each plane that is written; where by_columns
  int64_t* shift;
  void* weight;    // the values in this order; where by_columns and there are values
  int32_t* place;  // where they are in the values; where by_columns
};

// The first entry of a column of W whose row is not below `row`, of the view by columns.
REGKERN_HD int64_t first_of_row(const SparseView& view, int64_t column, int64_t row) {
  int64_t low = view.offsets[column], high = view.offsets[column + 1];
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (view.index[middle] < row)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

struct ConvList {
  const int64_t *begin, *end, *shift;
  const void* weight;
  const int32_t* place;
};

// Planes of sums over entries.
struct ConvGatherArgs {
  Dtype dtype;  // of y; what is read is in the compute type
  int64_t batch, tiles, planes, rows, columns;
  ConvList list;
  ConvField field;
  const void* in;  // that of the first position
  const void* bias;
  Activation activation;
  void* y;
  int64_t strides[4];  // of batch, plane, row and column
};

// The planes of another class of columns.
struct ConvTwin {
  const int64_t *begin, *end;
  const void *in, *x;
};

// The same, and derivatives by the values. Here `planes` are those of x.
struct ConvSampleArgs {
  ConvGatherArgs gather;  // y may be null
  ConvField of_x;
  const void* x;
  // On a CPU, of a stride of 2: as many columns, each behind one of these. `y` has both, with a
  // stride of 1 between columns.
  const ConvTwin* twin;
  void* dvalues;
  bool add;  // to dvalues
};

}  // namespace regkern::sparse

namespace regkern {
REGKERN_DECLARE_KERNEL(sparse_conv_pack, sparse::ConvPackArgs)
REGKERN_DECLARE_KERNEL(sparse_conv_entries, sparse::ConvEntriesArgs)
REGKERN_DECLARE_KERNEL(sparse_conv_gather, sparse::ConvGatherArgs)
REGKERN_DECLARE_KERNEL(sparse_conv_sample, sparse::ConvSampleArgs)
}  // namespace regkern
