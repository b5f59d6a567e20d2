#include "core/list_sums.cuh"
#include "spectral/inner.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

template <typename T>
__global__ void __launch_bounds__(kListThreads)
    inner_kernel(const __grid_constant__ ListChunk<InnerRow> chunk, double* spans) {
  RK_SHARED(double, shared, kListThreads);
  sum_span<1>(chunk, static_cast<int>(blockIdx.x), spans, shared,
              [&](const InnerRow& row, int64_t e, int64_t left, double (&lanes)[1][kLaneGroup]) {
                const T* const a = static_cast<const T*>(row.x);
                const T* const b = static_cast<const T*>(row.y);
                T x[kListLanes], y[kListLanes];
                load_lanes(a + e, left, aligned_for_vectors(a), x);
                load_lanes(b + e, left, aligned_for_vectors(b), y);
#pragma unroll
                for (int i = 0; i < kListLanes; ++i)
                  if (i < left)
                    lanes[0][i] +=
                        static_cast<double>(widen(x[i])) * static_cast<double>(widen(y[i]));
              });
}

// A block for each pair.
__global__ void __launch_bounds__(kTotalLanes)
    inner_total_kernel(const __grid_constant__ ListChunk<InnerRow> chunk, const double* spans,
                       double* out) {
  RK_SHARED(double, shared, kTotalLanes);
  const InnerRow& row = chunk.rows[blockIdx.x];
  const double sum = total_of_spans(spans, row.span, row.span + span_count(row.numel), 1, shared);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

}  // namespace

void inner(const InnerArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  zero_async(args.out, static_cast<size_t>(args.count) * sizeof(double), stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    for_each_chunk<kSpan>(args.rows, args.count,
                          [&](const ListChunk<InnerRow>& chunk, int64_t begin, int64_t tiles) {
                            RK_LAUNCH((inner_kernel<decltype(zero)>), tiles, kListThreads, 0,
                                      stream, chunk, args.spans);
                            RK_LAUNCH((inner_total_kernel), chunk.count, kTotalLanes, 0, stream,
                                      chunk, args.spans, args.out + begin);
                          });
  });
}

}  // namespace regkern::cuda
