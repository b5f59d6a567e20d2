#pragma once

#include <type_traits>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"

// Products with a sparse matrix W of R rows and C columns, given by its values and by views of its
// pattern: rows (CSR), and columns (CSC), which are the rows of Wᵀ. With x (batch, C) and g (batch,
// R),
//
//     spmm    y_br = Σ_c W_rc x_bc                 of the view by rows
//             y_bc = Σ_r W_rc g_br                 of the view by columns
//     sddmm   ∂/∂W_rc = Σ_b g_br x_bc              at the entries alone
//
// Both read x and g in tiles of the batch, (⌈batch / tile⌉, features, tile): `tile` elements of the
// batch side by side, zeros behind the last one. What belongs to an entry of W is a few vectors
// then.
//
// The order of sums is the same everywhere. A sum over entries goes by entry. A sum over the batch:
// in a tile, element k belongs to lane k mod kBatchLanes, which adds its products in order; the
// lanes are folded in halves, and the tiles are added in order. No product is fused with a sum.

namespace regkern::sparse {

constexpr int kBatchLanes = 16;

enum class Activation { none, relu };

// The rows of a matrix, or of its transpose. Row r has the entries offsets[r] to offsets[r + 1], of
// which `index` is the column and values[order[e]] the value (values[e] without an order).
struct SparseView {
  int64_t rows, columns, nnz;
  const int64_t* offsets;
  const int32_t* index;
  const int32_t* order;
};

// Tiles of a batch: element k of tile t of feature f is at t · stride + f · pitch + k. What is
// feature-major and has whole tiles is read where it is.
struct BatchTiles {
  const void* data;
  int64_t pitch, stride;
};

struct PackArgs {
  Dtype dtype;
  int tile;
  int64_t batch, features;
  bool feature_major;  // x is (features, batch)
  const void* x;
  void* tiles;  // (tiles, features, tile) in the compute type
};

struct SpmmArgs {
  Dtype dtype;  // of y; all else is in the compute type
  int tile;
  int64_t batch;
  SparseView view;
  BatchTiles x;  // view.columns features
  const void* values;
  const void* bias;  // (view.rows) or null
  Activation activation;
  bool feature_major;  // y is (view.rows, batch)
  void* y;
};

struct SddmmArgs {
  Dtype dtype;  // of dx
  int tile;
  int64_t batch;
  SparseView view;     // by columns: its rows are the features of x
  BatchTiles x;        // view.rows features
  BatchTiles g;        // view.columns features
  const void* values;  // where dx is wanted
  bool feature_major;  // dx is (view.rows, batch)
  void* dx;            // Wᵀ g, or null
  void* dvalues;       // (nnz), in the order of the values
};

// The elements of a tile: as many bytes for both compute types. Half of it where a tile of that
// many features would not stay in the second cache.
REGKERN_HD int batch_tile(bool wide, int64_t features) {
  const int tile = features > 8192 ? 32 : 64;
  return wide ? tile / 2 : tile;
}

// call(tile) with the tile of a compute type C as a constant. Static, so that every instruction set
// has its own copy.
template <typename C, typename Call>
static inline void with_tile(int tile, const Call& call) {
  constexpr int kWide = sizeof(C) == 8 ? 32 : 64;
  if (tile == kWide)
    call(std::integral_constant<int, kWide>());
  else
    call(std::integral_constant<int, kWide / 2>());
}

template <typename C>
REGKERN_HD C activated(Activation activation, C z) {
  return activation == Activation::relu && z <= C(0) ? C(0) : z;
}

}  // namespace regkern::sparse

namespace regkern {
REGKERN_DECLARE_KERNEL(sparse_pack, sparse::PackArgs)
REGKERN_DECLARE_KERNEL(sparse_spmm, sparse::SpmmArgs)
REGKERN_DECLARE_KERNEL(sparse_sddmm, sparse::SddmmArgs)
}  // namespace regkern
