#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor_list.h"
#include "core/vector.cuh"

// Lists of tensors on the GPU. The rows travel as a kernel argument, so many at a time; blocks
// stride over tiles of kListTile elements of a tensor, kListLanes neighbours a thread.

namespace regkern {

constexpr int kListThreads = 256;
constexpr int kListLanes = 8;
constexpr int64_t kListTile = int64_t{kListThreads} * kListLanes;

// Every GPU takes 4 KiB of arguments; the rest is for what else the kernel is told.
constexpr std::size_t kListBytes = 3840;

template <typename Row>
struct ListChunk {
  static constexpr int kMost = static_cast<int>(kListBytes / (sizeof(Row) + sizeof(int)));
  Row rows[kMost];
  int tiles_end[kMost];  // tiles of the rows up to and with this one
  int count;
};

struct ListPlace {
  int row;
  int64_t tile;  // among the row's tiles
};

template <typename Row>
__device__ __forceinline__ ListPlace place_of(const ListChunk<Row>& chunk, int tile) {
  int row = 0;
  for (int above = chunk.count; row < above;) {  // the first row that ends beyond the tile
    const int middle = (row + above) / 2;
    if (chunk.tiles_end[middle] > tile)
      above = middle;
    else
      row = middle + 1;
  }
  return {row, tile - (row > 0 ? chunk.tiles_end[row - 1] : 0)};
}

// launch(chunk, index of its first row, tiles), a chunk at a time. A tile has kTile elements.
template <int64_t kTile = kListTile, typename Row, typename Launch>
void for_each_chunk(const Row* rows, int64_t count, Launch&& launch) {
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  ListChunk<Row> chunk;
  for (int64_t begin = 0; begin < count;) {
    chunk.count = 0;
    int64_t tiles = 0;
    while (begin + chunk.count < count && chunk.count < ListChunk<Row>::kMost) {
      const Row& row = rows[begin + chunk.count];
      const int64_t more = ceil_div(row.numel, kTile);
      if (chunk.count > 0 && tiles + more > kMostTiles) break;
      tiles += more;
      chunk.rows[chunk.count] = row;
      chunk.tiles_end[chunk.count] = static_cast<int>(tiles);
      ++chunk.count;
    }
    if (tiles > 0) launch(chunk, begin, tiles);
    begin += chunk.count;
  }
}

// The thread's kListLanes neighbours, of which there may be fewer left, or none: zeros then.
template <typename T>
__device__ __forceinline__ void load_lanes(const T* data, int64_t left, bool aligned,
                                           T out[kListLanes]) {
  constexpr int V = kLanesOf<T>;
  if (aligned && left >= kListLanes) {
#pragma unroll
    for (int i = 0; i < kListLanes; i += V) {
      const Vector<T, V> x = load_vector<T, V>(data + i);
#pragma unroll
      for (int k = 0; k < V; ++k) out[i + k] = x.v[k];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kListLanes; ++i) out[i] = i < left ? data[i] : T{};
}

template <typename T>
__device__ __forceinline__ void store_lanes(const T in[kListLanes], int64_t left, bool aligned,
                                            T* data) {
  constexpr int V = kLanesOf<T>;
  if (aligned && left >= kListLanes) {
#pragma unroll
    for (int i = 0; i < kListLanes; i += V) {
      Vector<T, V> x;
#pragma unroll
      for (int k = 0; k < V; ++k) x.v[k] = in[i + k];
      store_vector<T, V>(x, data + i);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kListLanes; ++i)
    if (i < left) data[i] = in[i];
}

__device__ __forceinline__ bool aligned_for_vectors(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % kVectorBytes == 0;
}

}  // namespace regkern
