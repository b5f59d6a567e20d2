#include "core/tensor_list.cuh"
#include "spectral/rank_one.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

template <typename T, bool kProduct>
__global__ void __launch_bounds__(kListThreads, 4)
    rank_one_kernel(const __grid_constant__ ListChunk<RankOneRow> chunk, Factors factors,
                    const compute_t<T>* numbers, const double* products, double cap, int tiles) {
  using C = compute_t<T>;
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const RankOneRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    if (left <= 0) continue;
    const Pair<C> f = factors_of(factors, numbers[place.row],
                                 products != nullptr ? products[place.row] : 0.0, cap);
    const T* const from = static_cast<const T*>(row.x);
    T* const to = static_cast<T*>(row.out);
    T x[kListLanes] = {};
    if (from != nullptr) load_lanes(from + e, left, aligned_for_vectors(from), x);
    if constexpr (!kProduct) {
#pragma unroll
      for (int i = 0; i < kListLanes; ++i) narrow(f.a * widen(x[i]), x + i);
    } else {
      const C* const u = static_cast<const C*>(row.u);
      const C* const v = static_cast<const C*>(row.v);
      const bool scaled = factors != Factors::given;
      const int64_t run = e / row.n1;
      int i1 = static_cast<int>(e % row.n1), r = static_cast<int>(run % row.rows);
      int64_t base = run / row.rows * row.n1;
      C by = f.b * u[r];
#pragma unroll
      for (int i = 0; i < kListLanes; ++i) {
        if (i < left) {
          const C product = by * v[base + i1];
          const C a = scaled ? f.a * widen(x[i]) : widen(x[i]);
          narrow(from != nullptr ? a + product : product, x + i);
          if (++i1 == row.n1) {
            i1 = 0;
            if (++r == row.rows) {
              r = 0;
              base += row.n1;
            }
            if (i + 1 < left) by = f.b * u[r];
          }
        }
      }
    }
    store_lanes(x, left, aligned_for_vectors(to), to + e);
  }
}

}  // namespace

void rank_one(const RankOneArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    for_each_chunk(
        args.rows, args.count,
        [&](const ListChunk<RankOneRow>& chunk, int64_t begin, int64_t tiles) {
          const C* const numbers = static_cast<const C*>(args.numbers) + begin;
          const double* const products = args.products != nullptr ? args.products + begin : nullptr;
          if (args.factors == Factors::divide)
            RK_LAUNCH((rank_one_kernel<T, false>), grid_blocks(tiles, 8), kListThreads, 0, stream,
                      chunk, args.factors, numbers, products, args.cap, static_cast<int>(tiles));
          else
            RK_LAUNCH((rank_one_kernel<T, true>), grid_blocks(tiles, 8), kListThreads, 0, stream,
                      chunk, args.factors, numbers, products, args.cap, static_cast<int>(tiles));
        });
  });
}

}  // namespace regkern::cuda
