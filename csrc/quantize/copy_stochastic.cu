#include "core/random_lanes.cuh"
#include "core/tensor_list.cuh"
#include "quantize/copy_stochastic.h"

namespace regkern::cuda {
namespace {

using namespace quantize;

template <typename S, typename D>
__global__ void __launch_bounds__(kListThreads, 4)
    copy_stochastic_kernel(const __grid_constant__ ListChunk<CopyRow> chunk, const int64_t* seed_at,
                           int tiles) {
  RK_SHARED(DrawnWords, words, kListThreads);
  const Seed seed = load_seed(seed_at);
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const CopyRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    const S* src = static_cast<const S*>(row.src);
    D* dst = static_cast<D*>(row.dst);
    S in[kListLanes];
    load_lanes(src + e, left, aligned_for_vectors(src), in);
    uint32_t bits[kListLanes];
    random_lanes(seed, Stream::rounding, rounded_element(0, row.first + e), words, bits);
    D out[kListLanes];
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) narrow_stochastic(widen(in[i]), bits[i], out + i);
    store_lanes(out, left, aligned_for_vectors(dst), dst + e);
  }
}

}  // namespace

void copy_stochastic(const CopyStochasticArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_copy(args, [&](auto from, auto to) {
    using S = decltype(from);
    using D = decltype(to);
    for_each_chunk(args.rows, args.count,
                   [&](const ListChunk<CopyRow>& chunk, int64_t, int64_t tiles) {
                     RK_LAUNCH((copy_stochastic_kernel<S, D>), grid_blocks(tiles, 8), kListThreads,
                               0, stream, chunk, args.seed, static_cast<int>(tiles));
                   });
  });
}

}  // namespace regkern::cuda
