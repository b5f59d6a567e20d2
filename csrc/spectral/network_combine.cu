#include "core/tensor_list.cuh"
#include "spectral/network_combine.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

template <Direction kDirection, typename T>
__global__ void __launch_bounds__(kListThreads, 3)
    network_combine_kernel(const __grid_constant__ ListChunk<CombineRow> chunk,
                           const double* numbers, double eta, double q, const double* most,
                           int tiles) {
  using C = compute_t<T>;
  const Combine<C> c{static_cast<C>(eta), q, kDirection == Direction::powered ? *most : 0.0};
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const CombineRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    if (left <= 0) continue;
    const T* const xs = static_cast<const T*>(row.x);
    const T* const zs = static_cast<const T*>(row.z);
    T* const ys = static_cast<T*>(row.y);
    T x[kListLanes], z[kListLanes] = {};
    load_lanes(xs + e, left, aligned_for_vectors(xs), x);
    if (zs != nullptr) load_lanes(zs + e, left, aligned_for_vectors(zs), z);
    if (row.saved != nullptr) {
      T* const saved = static_cast<T*>(row.saved);
      store_lanes(x, left, aligned_for_vectors(saved), saved + e);
    }
    int64_t group = row.group + e / row.run, rest = row.run - e % row.run;
    C alpha = factor_as(numbers[2 * group], C(0)), beta = factor_as(numbers[2 * group + 1], C(0));
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      if (rest == 0 && i < left) {
        rest = row.run;
        ++group;
        alpha = factor_as(numbers[2 * group], C(0));
        beta = factor_as(numbers[2 * group + 1], C(0));
      }
      --rest;
      narrow(combined<kDirection>(c, widen(x[i]), widen(z[i]), alpha, beta), x + i);
    }
    store_lanes(x, left, aligned_for_vectors(ys), ys + e);
  }
}

template <typename T>
__global__ void __launch_bounds__(kListThreads, 4)
    network_copy_kernel(const __grid_constant__ ListChunk<CopyRow> chunk, int tiles) {
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const CopyRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    const T* const from = static_cast<const T*>(row.from);
    T* const to = static_cast<T*>(row.to);
    T x[kListLanes];
    load_lanes(from + e, left, aligned_for_vectors(from), x);
    store_lanes(x, left, aligned_for_vectors(to), to + e);
  }
}

template <Direction kDirection>
void combine_as(const NetworkCombineArgs& args, cudaStream_t stream) {
  dispatch_floating(args.dtype, [&](auto zero) {
    for_each_chunk(args.rows, args.count,
                   [&](const ListChunk<CombineRow>& chunk, int64_t, int64_t tiles) {
                     RK_LAUNCH((network_combine_kernel<kDirection, decltype(zero)>),
                               grid_blocks(tiles, 8), kListThreads, 0, stream, chunk, args.numbers,
                               args.eta, args.q, args.most, static_cast<int>(tiles));
                   });
  });
}

template <typename T>
void copy_as(const NetworkCopyArgs& args, cudaStream_t stream) {
  for_each_chunk(args.rows, args.count,
                 [&](const ListChunk<CopyRow>& chunk, int64_t, int64_t tiles) {
                   RK_LAUNCH((network_copy_kernel<T>), grid_blocks(tiles, 8), kListThreads, 0,
                             stream, chunk, static_cast<int>(tiles));
                 });
}

}  // namespace

void network_combine(const NetworkCombineArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  switch (args.direction) {
    case Direction::plain:
      return combine_as<Direction::plain>(args, stream);
    case Direction::adaptive:
      return combine_as<Direction::adaptive>(args, stream);
    case Direction::powered:
      return combine_as<Direction::powered>(args, stream);
  }
}

void network_copy(const NetworkCopyArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.dtype == Dtype::float64) return copy_as<uint64_t>(args, stream);
  if (args.dtype == Dtype::float32) return copy_as<uint32_t>(args, stream);
  copy_as<uint16_t>(args, stream);
}

}  // namespace regkern::cuda
