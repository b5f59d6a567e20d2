#pragma once

#include "core/launch.cuh"
#include "core/vector.cuh"
#include "sparse/spmm.h"

// How the threads of a block share the rows of a sparse matrix and the elements of a tile.

namespace regkern::cuda {

// dvalues from whole tiles of gᵀ x, by tensor cores.
void sparse_sddmm_tiles(const sparse::SddmmArgs& args, Context context);

namespace {

using namespace sparse;

// A row of a tile of BT elements S is read by a team of threads in one 16-byte access each. Of an
// interleaved tile a thread has kLanes whole lanes, kEach elements of each side by side.
template <typename S, int BT>
struct Team {
  static constexpr int kOwn = kLanesOf<S>, kSize = BT / kOwn;
  static constexpr int kLanes = kBatchLanes / kSize, kEach = BT / kBatchLanes;
  static_assert(kLanes * kEach == kOwn && kSize >= 4 && kSize <= 32);
};

// A block has a team for each row of a group of neighbours.
constexpr int kTeamThreads = 128;
template <typename S, int BT>
constexpr int kGroupRows = kTeamThreads / Team<S, BT>::kSize;

// The threads of this one's team.
template <int kSize>
__device__ __forceinline__ unsigned team_mask() {
  const unsigned first = threadIdx.x % 32 / kSize * kSize;
  return (kSize == 32 ? ~0u : (1u << kSize % 32) - 1u) << first;
}

// Groups of rows, of which a block of rows has one or more, and the first row of one. Behind the
// last row there may be groups of none.
template <int kRows>
REGKERN_HD uint32_t count_groups(int64_t rows) {
  static_assert(kRowBlock % kRows == 0);
  return static_cast<uint32_t>((rows + kRowBlock - 1) / kRowBlock) * (kRowBlock / kRows);
}
template <int kRows>
__device__ __forceinline__ int64_t first_of_group(const int32_t* row_blocks, uint32_t group,
                                                  uint32_t groups) {
  constexpr uint32_t kEach = kRowBlock / kRows;
  if (row_blocks == nullptr) return int64_t{group} * kRows;
  // Nobody has looked at the list.
  const auto listed = static_cast<uint32_t>(row_blocks[group / kEach]), last = groups / kEach - 1;
  return int64_t{listed < last ? listed : last} * kRowBlock + group % kEach * kRows;
}

// The row of a group that this thread's team takes, and its entries. Longest first: the teams of a
// warp have rows of a similar length then. Who takes a row changes nothing in it.
template <int kRows>
struct GroupRows {
  int64_t offsets[kRows + 1];
  int ranked[kRows];
};
template <int kRows>
__device__ __forceinline__ void rank_rows(const SparseView& view, int64_t first,
                                          GroupRows<kRows>* rows) {
  static_assert(kRows < kTeamThreads);
  const int i = static_cast<int>(threadIdx.x);
  if (i <= kRows) rows->offsets[i] = view.offsets[first + i < view.rows ? first + i : view.rows];
  __syncthreads();
  if (i < kRows) {
    const int64_t own = rows->offsets[i + 1] - rows->offsets[i];
    int rank = 0;
#pragma unroll 1
    for (int j = 0; j < kRows; ++j) {
      const int64_t other = rows->offsets[j + 1] - rows->offsets[j];
      rank += (other > own || (other == own && j < i)) ? 1 : 0;
    }
    rows->ranked[rank] = i;
  }
  __syncthreads();
}

// An entry as a team has it in shared memory.
template <typename C>
struct alignas(2 * sizeof(C)) StagedEntry {
  C value;
  int32_t index;
};

// Entries that a team has there at once. They are read side by side, those of the next time while
// these are worked on.
constexpr int kStaged = 16;
template <typename C, int kSize>
struct Entries {
  static constexpr int kOwn = kStaged / kSize;
  C values[kOwn];
  int32_t index[kOwn];

  __device__ __forceinline__ void read(const SparseView& view, const C* numbers, int64_t at,
                                       int64_t end) {
    const int lane = static_cast<int>(threadIdx.x) % kSize;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int64_t e = at + lane + i * kSize;
      values[i] = C(0);
      index[i] = 0;
      if (e >= end) continue;
      index[i] = view.index[e];
      if (numbers != nullptr) values[i] = numbers[view.order != nullptr ? view.order[e] : e];
    }
  }
  __device__ __forceinline__ void stage(StagedEntry<C>* staged) const {
    const int lane = static_cast<int>(threadIdx.x) % kSize;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) staged[lane + i * kSize] = {values[i], index[i]};
  }
};

// step(entries, number of them as a constant, first) for the entries of [begin, end) in order, up
// to kMost at once, to all of a team. `first` is the place of the first in the view.
template <int kMost, int kSize, typename C, typename Step>
__device__ __forceinline__ void for_entries(const SparseView& view, const C* numbers, int64_t begin,
                                            int64_t end, StagedEntry<C>* staged, const Step& step) {
  const unsigned team = team_mask<kSize>();
  Entries<C, kSize> next;
  next.read(view, numbers, begin, end);
#pragma unroll 1
  for (int64_t at = begin; at < end; at += kStaged) {
    next.stage(staged);
    __syncwarp(team);
    next.read(view, numbers, at + kStaged, end);
    const int count = static_cast<int>(end - at < kStaged ? end - at : kStaged);
    int e = 0;
#pragma unroll 1
    for (; e + kMost <= count; e += kMost)
      step(staged + e, std::integral_constant<int, kMost>(), at + e);
    if constexpr (kMost > 4) {
      if (e + 4 <= count) {
        step(staged + e, std::integral_constant<int, 4>(), at + e);
        e += 4;
      }
    }
#pragma unroll 1
    for (; e < count; ++e) step(staged + e, std::integral_constant<int, 1>(), at + e);
    __syncwarp(team);
  }
}

// The vectors of a tile that belong to entries.
template <int kCount, typename S, int kOwn, typename C>
__device__ __forceinline__ void read_vectors(const S* tile, int64_t pitch,
                                             const StagedEntry<C>* entries, C (&values)[kCount],
                                             Vector<S, kOwn> (&vectors)[kCount]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const StagedEntry<C> entry = entries[j];
    values[j] = entry.value;
    vectors[j] = load_vector<S, kOwn>(tile + entry.index * pitch);
  }
}

// A thread's part of a row of results, to where its elements are in (BT) shared numbers.
template <int BT, int kOwn, typename C>
__device__ __forceinline__ void share_row(const C (&numbers)[kOwn], int lane, bool interleaved,
                                          C* row) {
#pragma unroll
  for (int v = 0; v < kOwn; ++v) {
    const int place = lane * kOwn + v;
    row[interleaved ? interleaved_element(place, BT) : place] = numbers[v];
  }
}

// Results of a block, (kRows, BT), to where y has them: 16 bytes at once where it is aligned.
template <typename T, int BT, int kRows>
__device__ __forceinline__ void write_block(const compute_t<T>* shared, bool feature_major,
                                            int64_t batch, int64_t features, int64_t b, int64_t r,
                                            T* y) {
  constexpr int kOwn = kLanesOf<T>, kPitch = BT + 1;
  static_assert(kRows % kOwn == 0);
  const int64_t inner = feature_major ? batch : features;
  const int thread = static_cast<int>(threadIdx.x);
  if (inner % kOwn == 0 && reinterpret_cast<std::uintptr_t>(y) % kVectorBytes == 0) {
#pragma unroll 1
    for (int i = thread; i < BT * kRows / kOwn; i += kTeamThreads) {
      const int k = feature_major ? i % (BT / kOwn) * kOwn : i / (kRows / kOwn);
      const int j = feature_major ? i / (BT / kOwn) : i % (kRows / kOwn) * kOwn;
      if (b + k >= batch || r + j >= features) continue;
      Vector<T, kOwn> vector;
#pragma unroll
      for (int v = 0; v < kOwn; ++v)
        narrow(shared[j * kPitch + k + v * (feature_major ? 1 : kPitch)], vector.v + v);
      store_vector(vector,
                   y + (feature_major ? (r + j) * batch + b + k : (b + k) * features + r + j));
    }
    return;
  }
#pragma unroll 1
  for (int i = thread; i < BT * kRows; i += kTeamThreads) {
    const int k = feature_major ? i % BT : i / kRows;
    const int j = feature_major ? i / BT : i % kRows;
    if (b + k >= batch || r + j >= features) continue;
    narrow(shared[j * kPitch + k],
           y + (feature_major ? (r + j) * batch + b + k : (b + k) * features + r + j));
  }
}

}  // namespace
}  // namespace regkern::cuda
