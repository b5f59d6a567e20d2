#include "core/list_sums.cuh"
#include "core/square_sum.cuh"
#include "spectral/inner.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

// A block for each segment: a thread has V neighbours of every stripe.
template <typename T, int V>
__global__ void __launch_bounds__(kLaneThreads<V>)
    inner_kernel(const __grid_constant__ ListChunk<InnerRow> chunk, double* segments) {
  using C = compute_t<T>;
  RK_SHARED(double, shared, kLanes);
  const ListPlace at = place_of(chunk, static_cast<int>(blockIdx.x));
  const InnerRow& row = chunk.rows[at.row];
  const T* const x = static_cast<const T*>(row.x) + at.tile * kSegment;
  const T* const y = static_cast<const T*>(row.y) + at.tile * kSegment;
  const int64_t left = row.numel - at.tile * kSegment;
  const int n = static_cast<int>(left < kSegment ? left : kSegment);
  const bool aligned = n % V == 0 && aligned_for_vectors(x) && aligned_for_vectors(y);
  const auto sum_as = [&](auto zero) {
    using A = decltype(zero);
    A lanes[V] = {};
#pragma unroll 1
    for (int e = static_cast<int>(threadIdx.x) * V; e < n; e += kLanes) {
      if (aligned) {
        const Vector<T, V> a = load_vector<T, V>(x + e), b = load_vector<T, V>(y + e);
#pragma unroll
        for (int v = 0; v < V; ++v)
          lanes[v] += static_cast<A>(widen(a.v[v])) * static_cast<A>(widen(b.v[v]));
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (e + v < n)
            lanes[v] += static_cast<A>(widen(x[e + v])) * static_cast<A>(widen(y[e + v]));
      }
    }
    return fold_block<A, V>(lanes, reinterpret_cast<A*>(shared));
  };
  const C narrow_sum = sum_as(C(0));
  double sum = static_cast<double>(narrow_sum);
  if (!square_sum_holds(fabs(narrow_sum))) sum = sum_as(0.0);
  if (threadIdx.x == 0) segments[row.segment + at.tile] = sum;
}

// A block for each pair.
__global__ void __launch_bounds__(kTotalLanes)
    inner_total_kernel(const __grid_constant__ ListChunk<InnerRow> chunk, const double* segments,
                       double* out) {
  RK_SHARED(double, shared, kTotalLanes);
  const InnerRow& row = chunk.rows[blockIdx.x];
  const double sum =
      total_of_spans(segments, row.segment, row.segment + segment_count(row.numel), 1, shared);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

}  // namespace

void inner(const InnerArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  zero_async(args.out, static_cast<size_t>(args.count) * sizeof(double), stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = kLanesOf<T>;
    for_each_chunk<kSegment>(
        args.rows, args.count, [&](const ListChunk<InnerRow>& chunk, int64_t begin, int64_t tiles) {
          RK_LAUNCH((inner_kernel<T, V>), tiles, kLaneThreads<V>, 0, stream, chunk, args.segments);
          RK_LAUNCH((inner_total_kernel), chunk.count, kTotalLanes, 0, stream, chunk, args.segments,
                    args.out + begin);
        });
  });
}

}  // namespace regkern::cuda
