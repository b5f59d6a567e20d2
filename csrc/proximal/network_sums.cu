#include "core/list_sums.cuh"
#include "proximal/network_sums.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

template <NetworkForm kForm, typename T>
__global__ void __launch_bounds__(kListThreads)
    network_sums_kernel(const __grid_constant__ ListChunk<NetworkRow> chunk, const double* centre,
                        double* spans) {
  using C = compute_t<T>;
  RK_SHARED(double, shared, kListThreads);
  const C c = static_cast<C>(*centre);
  sum_span<kNetworkSums>(chunk, static_cast<int>(blockIdx.x), spans, shared,
                         [&](const NetworkRow& row, int64_t e, int64_t left,
                             double (&lanes)[kNetworkSums][kLaneGroup]) {
                           const T* from = static_cast<const T*>(row.x);
                           T x[kListLanes];
                           load_lanes(from + e, left, aligned_for_vectors(from), x);
#pragma unroll
                           for (int i = 0; i < kListLanes; ++i) {
                             if (i < left) {
                               const C z = widen(x[i]);
                               lanes[0][i] += static_cast<double>(network_term<kForm, 0>(z, c));
                               lanes[1][i] += static_cast<double>(network_term<kForm, 1>(z, c));
                               lanes[2][i] += static_cast<double>(network_term<kForm, 2>(z, c));
                             }
                           }
                         });
}

__global__ void __launch_bounds__(kTotalLanes)
    network_totals_kernel(const double* spans, int64_t all_spans, double* out) {
  RK_SHARED(double, shared, kTotalLanes);
  for (int k = 0; k < kNetworkSums; ++k) {
    const double sum = total_of_spans(spans + k, 0, all_spans, kNetworkSums, shared);
    if (threadIdx.x == 0) out[k] = sum;
  }
}

template <NetworkForm kForm, typename T>
__global__ void __launch_bounds__(kListThreads)
    network_gradient_kernel(const __grid_constant__ ListChunk<NetworkRow> chunk,
                            const double* numbers, int tiles) {
  using C = compute_t<T>;
  const C c = static_cast<C>(numbers[0]), a = static_cast<C>(numbers[1]);
  const C b = static_cast<C>(numbers[2]), d = static_cast<C>(numbers[3]);
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, tile);
    const NetworkRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    if (left <= 0) continue;
    const T* from = static_cast<const T*>(row.x);
    T* to = static_cast<T*>(row.dx);
    T x[kListLanes];
    load_lanes(from + e, left, aligned_for_vectors(from), x);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i)
      narrow(network_gradient<kForm>(widen(x[i]), c, a, b, d), x + i);
    store_lanes(x, left, aligned_for_vectors(to), to + e);
  }
}

template <typename F>
void dispatch_form(NetworkForm form, F&& f) {
  if (form == NetworkForm::centred)
    return f(std::integral_constant<NetworkForm, NetworkForm::centred>{});
  f(std::integral_constant<NetworkForm, NetworkForm::saturated>{});
}

}  // namespace

void network_sums(const NetworkSumsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    dispatch_form(args.form, [&](auto form) {
      for_each_chunk<kSpan>(
          args.rows, args.count, [&](const ListChunk<NetworkRow>& chunk, int64_t, int64_t tiles) {
            RK_LAUNCH((network_sums_kernel<decltype(form)::value, decltype(zero)>), tiles,
                      kListThreads, 0, stream, chunk, args.centre, args.spans);
          });
    });
  });
  RK_LAUNCH((network_totals_kernel), 1, kTotalLanes, 0, stream, args.spans, args.all_spans,
            args.out);
}

void network_gradients(const NetworkGradientArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    dispatch_form(args.form, [&](auto form) {
      for_each_chunk(args.rows, args.count,
                     [&](const ListChunk<NetworkRow>& chunk, int64_t, int64_t tiles) {
                       RK_LAUNCH((network_gradient_kernel<decltype(form)::value, decltype(zero)>),
                                 grid_blocks(tiles, 8), kListThreads, 0, stream, chunk,
                                 args.numbers, static_cast<int>(tiles));
                     });
    });
  });
}

}  // namespace regkern::cuda
