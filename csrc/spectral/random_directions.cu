#include "core/tensor_list.cuh"
#include "spectral/random_directions.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

template <typename T, Distribution kKind>
__global__ void __launch_bounds__(kListThreads, 4)
    random_directions_kernel(const __grid_constant__ ListChunk<DirectionRow> chunk,
                             const double* scale_at, const int64_t* seed_at, int tiles) {
  using C = compute_t<T>;
  const Seed seed = load_seed(seed_at);
  const C scale = static_cast<C>(*scale_at);
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const DirectionRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    const T* x = static_cast<const T*>(row.x);
    T* y = static_cast<T*>(row.y);
    T in[kListLanes] = {};
    if (x != nullptr) load_lanes(x + e, left, aligned_for_vectors(x), in);
    float drawn[kListLanes];
    const auto element = static_cast<uint64_t>(row.first + e);
    if constexpr (kKind == Distribution::normal) {
#pragma unroll
      for (int k = 0; k < kListLanes; k += 4) {
        const Words words = philox(seed, Stream::noise, element / 4 + static_cast<uint64_t>(k / 4));
        normal_pair(words.w[0], words.w[1], drawn + k, drawn + k + 1);
        normal_pair(words.w[2], words.w[3], drawn + k + 2, drawn + k + 3);
      }
    } else {
      const Words words = philox(seed, Stream::choice, element / kSigns);
      const int first = static_cast<int>(element % kSigns);
#pragma unroll
      for (int k = 0; k < kListLanes; ++k) drawn[k] = sign_of(words, first + k);
    }
    T out[kListLanes];
#pragma unroll
    for (int k = 0; k < kListLanes; ++k) {
      const C step = scale * static_cast<C>(drawn[k]);
      narrow(x != nullptr ? widen(in[k]) + step : step, out + k);
    }
    store_lanes(out, left, aligned_for_vectors(y), y + e);
  }
}

template <typename F>
void dispatch_direction(Distribution kind, F&& f) {
  if (kind == Distribution::normal)
    return f(std::integral_constant<Distribution, Distribution::normal>{});
  f(std::integral_constant<Distribution, Distribution::rademacher>{});
}

}  // namespace

void random_directions(const RandomDirectionsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_direction(args.kind, [&](auto kind) {
      for_each_chunk(args.rows, args.count,
                     [&](const ListChunk<DirectionRow>& chunk, int64_t, int64_t tiles) {
                       RK_LAUNCH((random_directions_kernel<T, decltype(kind)::value>),
                                 grid_blocks(tiles, 8), kListThreads, 0, stream, chunk, args.scale,
                                 args.seed, static_cast<int>(tiles));
                     });
    });
  });
}

}  // namespace regkern::cuda
