#include "core/tensor_list.cuh"
#include "proximal/sensitivity.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

using Word = unsigned long long;  // what atomicMax takes

template <typename T>
__global__ void __launch_bounds__(kListThreads)
    most_kernel(const __grid_constant__ ListChunk<SensitivityRow> chunk, Word* most, int tiles) {
  RK_SHARED(Word, shared, 1);
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const SensitivityRow& row = chunk.rows[place.row];
    if (threadIdx.x == 0) shared[0] = 0;
    __syncthreads();
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    if (left > 0) {
      const T* g = static_cast<const T*>(row.g);
      T in[kListLanes];
      load_lanes(g + e, left, aligned_for_vectors(g), in);  // zeros behind the end
      Word found = 0;
#pragma unroll
      for (int i = 0; i < kListLanes; ++i) {
        const Word bits = magnitude_bits(widen(in[i]));
        found = bits > found ? bits : found;
      }
      atomicMax(shared, found);
    }
    __syncthreads();
    if (threadIdx.x == 0 && shared[0] != 0) atomicMax(most + row.index, shared[0]);
    __syncthreads();
  }
}

template <typename T, Sensitivity kKind>
__global__ void __launch_bounds__(kListThreads)
    sensitivity_kernel(const __grid_constant__ ListChunk<SensitivityRow> chunk,
                       SensitivityShrinkArgs args, int tiles) {
  using C = compute_t<T>;
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const SensitivityRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    if (left <= 0) continue;
    const SensitivityPoint<C> p = load_sensitivity<C>(args, row.index);
    T* to = static_cast<T*>(row.w);
    const T* grad = static_cast<const T*>(row.g);
    [[maybe_unused]] const C* given = static_cast<const C*>(row.s);
    T w[kListLanes], g[kListLanes];
    load_lanes(to + e, left, aligned_for_vectors(to), w);
    load_lanes(grad + e, left, aligned_for_vectors(grad), g);
    // Rows of neighbours follow each other.
    int64_t r = 0, rest = 0;
    if constexpr (kKind == Sensitivity::rows) {
      r = e / row.row_size;
      rest = (r + 1) * row.row_size - e;
    }
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      const C v = widen(g[i]);
      C s = fabs(v);
      if constexpr (kKind == Sensitivity::rows) {
        s = i < left ? given[r] : C(0);
        r += --rest == 0 ? 1 : 0;
        rest = rest == 0 ? row.row_size : rest;
      }
      const C out = shrunk_weight<kKind>(p, widen(w[i]), args.lr != nullptr ? v : C(0), s);
      const bool kept = i >= left || is_kept(args.keep, row.keep, e + i);
      narrow(kept ? out : C(0), w + i);
    }
    store_lanes(w, left, aligned_for_vectors(to), to + e);
  }
}

}  // namespace

void sensitivity_shrink(const SensitivityShrinkArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.kind == Sensitivity::rescaled) {
      zero_async(args.most, static_cast<std::size_t>(args.tensors) * sizeof(uint64_t), stream);
      for_each_chunk(args.rows, args.count,
                     [&](const ListChunk<SensitivityRow>& chunk, int64_t, int64_t tiles) {
                       RK_LAUNCH((most_kernel<T>), grid_blocks(tiles, 8), kListThreads, 0, stream,
                                 chunk, reinterpret_cast<Word*>(args.most),
                                 static_cast<int>(tiles));
                     });
    }
    dispatch_sensitivity(args.kind, [&](auto kind) {
      constexpr Sensitivity kKind = decltype(kind)::value;
      for_each_chunk(args.rows, args.count,
                     [&](const ListChunk<SensitivityRow>& chunk, int64_t, int64_t tiles) {
                       RK_LAUNCH((sensitivity_kernel<T, kKind>), grid_blocks(tiles, 8),
                                 kListThreads, 0, stream, chunk, args, static_cast<int>(tiles));
                     });
    });
  });
}

}  // namespace regkern::cuda
