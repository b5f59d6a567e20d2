#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "quantize/item_words.h"

// Quant-Noise (Fan et al., ICLR 2021): ŵ = q(w) in the blocks drawn with probability p, w
// elsewhere. A weight is seen as rows x row_size; a row is cut into blocks of `block`, the last of
// which may be shorter. Blocks are numbered row by row.

namespace regkern::quantize {

struct RowBlocks {
  int64_t rows, row_size, block;
};

REGKERN_HD int64_t blocks_per_row(const RowBlocks& b) {
  return b.block > 0 ? (b.row_size + b.block - 1) / b.block : 0;
}
REGKERN_HD int64_t block_count(const RowBlocks& b) { return b.rows * blocks_per_row(b); }
// Whether all blocks have the same length, so that rows do not matter.
REGKERN_HD bool is_even(const RowBlocks& b) { return b.row_size % b.block == 0; }

struct BlockRange {
  int64_t start, size;
};

REGKERN_HD BlockRange block_range(const RowBlocks& b, int64_t index) {
  const int64_t across = blocks_per_row(b);
  const int64_t row = index / across, offset = (index - row * across) * b.block;
  const int64_t left = b.row_size - offset;
  return {row * b.row_size + offset, left < b.block ? left : b.block};
}

// What draws blocks: a probability, given as a number or in memory.
struct BlockDraw {
  double p;  // used where p_tensor is null
  const double* p_tensor;
  const int64_t* seed;
};

REGKERN_HD Threshold threshold_of(const BlockDraw& draw) {
  return threshold_of(draw.p_tensor != nullptr ? *draw.p_tensor : draw.p);
}

// ŵ = where(m, q, w), with m inverted on request; q = 0 where there is none. Elements are moved as
// they are, whatever their type.
struct BlockSelectArgs {
  int itemsize;
  RowBlocks blocks;
  const void* w;
  const void* q;
  bool q_shared;  // q is one block, the same for all
  void* y;        // may be w: then only what changes is written
  BlockDraw draw;
  bool invert;
  uint8_t* drawn;  // scratch of the CUDA kernels: byte i has the bits of blocks 4i … 4i + 3
};

// For each block, the k that minimises Σⱼ (wⱼ − cₖⱼ)², summed in order of j; the lowest of equals.
constexpr int32_t kNotDrawn = -1;   // the block keeps its weights
constexpr int32_t kNoNearest = -2;  // a NaN is in the block: every distance is NaN

struct NearestCentroidArgs {
  Dtype dtype;
  RowBlocks blocks;
  const void* w;
  const void* codebook;  // transposed: (block, centroids)
  int64_t centroids;
  bool drawn;  // only blocks that are drawn, else all
  BlockDraw draw;
  int32_t* index;
};

// ŵ = c[index] where index >= 0, w where it is kNotDrawn, NaN where it is kNoNearest.
struct CentroidSelectArgs {
  int itemsize;
  RowBlocks blocks;
  const void* w;
  const void* codebook;  // (centroids, block)
  int64_t centroids;
  const int32_t* index;
  void* y;
};

// out[k][j] = Σ g over the blocks with index k. `order` lists the blocks by index, each list in
// ascending order, and `offsets` says where the lists begin. Lane l of kSumLanes adds every
// kSumLanes-th block of a list in double, then lanes are added by halves.
constexpr int kSumLanes = 32;

struct CentroidSumArgs {
  Dtype dtype;
  RowBlocks blocks;
  const void* g;
  const int64_t* order;    // (blocks)
  const int64_t* offsets;  // (centroids + 1)
  int64_t centroids;
  void* out;  // (centroids, block), of g's type
};

// out[j] = the mean of element j over all blocks that have one. A chunk is kMeanChunk blocks; lane
// l of kMeanLanes adds every kMeanLanes-th block of it in double. The lanes of a chunk are added
// by halves, then the chunks in order.
constexpr int kMeanLanes = 8;
constexpr int64_t kMeanChunk = 1024;

struct SubvectorMeanArgs {
  Dtype dtype;
  RowBlocks blocks;
  const void* w;
  double* partial;  // (chunks, kMeanLanes, block)
  void* out;        // (block)
};

REGKERN_HD int64_t mean_chunks(const RowBlocks& b) {
  return (block_count(b) + kMeanChunk - 1) / kMeanChunk;
}

// How many blocks have an element j.
REGKERN_HD int64_t blocks_with(const RowBlocks& b, int64_t j) {
  return b.rows * (b.row_size / b.block + (j < b.row_size % b.block ? 1 : 0));
}

// The mean at j from what the lanes hold.
REGKERN_HD double mean_from(const SubvectorMeanArgs& a, int64_t j) {
  const int64_t block = a.blocks.block, chunks = mean_chunks(a.blocks);
  double sum = 0.0;
  for (int64_t c = 0; c < chunks; ++c) {
    const double* l = a.partial + c * kMeanLanes * block + j;
    sum += ((l[0] + l[4 * block]) + (l[2 * block] + l[6 * block])) +
           ((l[block] + l[5 * block]) + (l[3 * block] + l[7 * block]));
  }
  return sum / static_cast<double>(blocks_with(a.blocks, j));
}

}  // namespace regkern::quantize

namespace regkern {
REGKERN_DECLARE_KERNEL(block_select, quantize::BlockSelectArgs)
REGKERN_DECLARE_KERNEL(nearest_centroid, quantize::NearestCentroidArgs)
REGKERN_DECLARE_KERNEL(centroid_select, quantize::CentroidSelectArgs)
REGKERN_DECLARE_KERNEL(centroid_sum, quantize::CentroidSumArgs)
REGKERN_DECLARE_KERNEL(subvector_mean, quantize::SubvectorMeanArgs)
}  // namespace regkern
