#pragma once

#include <type_traits>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"
#include "core/normal_cdf.h"

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
// On CUDA tiles are of the dtype of x, and those that were packed are interleaved: what belongs to
// a lane, below, is side by side, so that a thread's 16 bytes hold whole lanes.
//
// The order of sums is the same everywhere. A sum over entries goes by entry. A sum over the batch:
// in a tile, element k belongs to lane k mod kBatchLanes, which adds its products in order; the
// lanes are folded in halves, and the tiles are added in order. No product is fused with a sum.

namespace regkern::sparse {

constexpr int kBatchLanes = 16;

enum class Activation { none, relu, gelu, gelu_tanh, silu };

// Blocks of so many neighbouring rows may be listed in the order in which CUDA begins with them:
// long rows that come last keep a device waiting that has nothing else to do. Results do not depend
// on it.
constexpr int kRowBlock = 32;

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
  bool interleaved;  // element k is at interleaved_place(k, tile) instead
};

struct PackArgs {
  Dtype dtype;
  int tile;
  int64_t batch, features;
  bool feature_major;  // x is (features, batch)
  bool interleaved;    // tiles are, and of x's dtype, as CUDA has them
  const void* x;
  void* tiles;  // (tiles, features, tile) in the compute type, or in x's
};

struct SpmmArgs {
  Dtype dtype;  // of y, and of tiles on CUDA; all else is in the compute type
  int tile;
  int64_t batch;
  SparseView view;
  BatchTiles x;  // view.columns features
  const void* values;
  const void* bias;  // (view.rows) or null
  Activation activation;
  bool feature_major;  // y is (view.rows, batch)
  void* y;
  void* z;  // what the activation is of, like y, or null
  const int32_t* row_blocks;
};

struct SddmmArgs {
  Dtype dtype;  // of dx, and of tiles on CUDA
  int tile;
  int64_t batch;
  SparseView view;     // by columns: its rows are the features of x
  BatchTiles x;        // view.rows features
  BatchTiles g;        // view.columns features
  const void* values;  // where dx is wanted
  bool feature_major;  // dx is (view.rows, batch)
  void* dx;            // Wᵀ g, or null
  void* dvalues;       // (nnz), in the order of the values
  bool whole_tiles;    // without dx and in halves, on CUDA alone: see below
  const int32_t* row_blocks;
  void* partial;  // (up to kPartialTiles, nnz) for the sums of several tiles; on CUDA alone
};

// Tiles whose sums CUDA keeps side by side before it adds them up.
constexpr int kPartialTiles = 8;

// Tiles of gᵀ x that have an entry may be computed whole on CUDA, by tensor cores, and the entries
// be picked from them. An entry by itself reads a vector of g for each element of the batch, a tile
// of kProductTile² reads 2 kProductTile of them: from that many entries in a tile on it reads less.
// Tensor cores have an order of sums of their own; nowhere else are the bits not those of the CPU.
// Of n products with a sum of magnitudes S the error is below n 2⁻²² S.
constexpr int kProductTile = 64;
constexpr int64_t kFewestForTiles = int64_t{1} << 16;  // entries: less is too small a difference
REGKERN_HD bool tiles_pay(int64_t rows, int64_t columns, int64_t nnz) {
  const double share =
      static_cast<double>(nnz) / (static_cast<double>(rows) * static_cast<double>(columns));
  return nnz >= kFewestForTiles && share * kProductTile * kProductTile >= 2.0 * kProductTile;
}

// Where an interleaved tile of so many elements has element k, and the element that is at a place.
REGKERN_HD int interleaved_place(int k, int tile) {
  return k % kBatchLanes * (tile / kBatchLanes) + k / kBatchLanes;
}
REGKERN_HD int interleaved_element(int place, int tile) {
  const int each = tile / kBatchLanes;
  return place % each * kBatchLanes + place / each;
}

// The elements of a tile: as many bytes for both compute types. Half of it for few elements of the
// batch, and for so many features that an entry is not found in the second cache either way.
REGKERN_HD int batch_tile(bool wide, int64_t features, int64_t batch) {
  const int most = wide ? 32 : 64;
  return features > 8192 || batch <= most / 2 ? most / 2 : most;
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

// s(t) = 1 / (1 + e⁻ᵗ), and 0 where e⁻ᵗ is out of range: −∞ times that is NaN, as it is for torch.
template <typename C>
REGKERN_HD C logistic(C t) {
  return choose(t < C(sizeof(C) == 8 ? -700 : -87), C(0), C(1) / (C(1) + regkern::exp(-t)));
}

// σ(z):
//
//     gelu       z Φ(z), with the distribution function Φ of standard normals
//     gelu_tanh  z s(2u), u = √(2/π) (z + 0.044715 z³)
//     silu       z s(z)
template <Activation kActivation, typename C>
REGKERN_HD C activated(C z) {
  if constexpr (kActivation == Activation::relu) return z <= C(0) ? C(0) : z;
  if constexpr (kActivation == Activation::gelu) return z * regkern::normal_cdf(z);
  if constexpr (kActivation == Activation::gelu_tanh) {
    const C twice = C(1.5957691216057308) * (z + C(0.044715) * (z * z * z));
    return z * logistic(twice);
  }
  if constexpr (kActivation == Activation::silu) return z * logistic(z);
  return z;
}

// The same of one that is not known before.
template <typename C>
REGKERN_HD C activated(Activation activation, C z) {
  using A = Activation;
  return activation == A::relu        ? activated<A::relu>(z)
         : activation == A::gelu      ? activated<A::gelu>(z)
         : activation == A::gelu_tanh ? activated<A::gelu_tanh>(z)
         : activation == A::silu      ? activated<A::silu>(z)
                                      : z;
}

// call(activation) with the activation as a constant.
template <typename Call>
static inline void with_activation(Activation activation, const Call& call) {
  using A = Activation;
  if (activation == A::none) call(std::integral_constant<A, A::none>());
  if (activation == A::relu) call(std::integral_constant<A, A::relu>());
  if (activation == A::gelu) call(std::integral_constant<A, A::gelu>());
  if (activation == A::gelu_tanh) call(std::integral_constant<A, A::gelu_tanh>());
  if (activation == A::silu) call(std::integral_constant<A, A::silu>());
}

}  // namespace regkern::sparse

namespace regkern {
REGKERN_DECLARE_KERNEL(sparse_pack, sparse::PackArgs)
REGKERN_DECLARE_KERNEL(sparse_spmm, sparse::SpmmArgs)
REGKERN_DECLARE_KERNEL(sparse_sddmm, sparse::SddmmArgs)
}  // namespace regkern
