#include "core/list_sums.cuh"
#include "spectral/gram_residual.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

template <GramTarget kTarget, ResidualNorm kNorm, typename T>
__global__ void __launch_bounds__(kListThreads)
    gram_residual_kernel(const __grid_constant__ ListChunk<GramRow> chunk, double* spans) {
  RK_SHARED(double, shared, kListThreads);
  sum_span<1>(chunk, static_cast<int>(blockIdx.x), spans, shared,
              [](const GramRow& row, int64_t e, int64_t left, double (&lanes)[1][kLaneGroup]) {
                T* const at = static_cast<T*>(row.x);
                const bool aligned = aligned_for_vectors(at);
                T x[kListLanes];
                load_lanes(at + e, left, aligned, x);
                if constexpr (kTarget != GramTarget::zero) {
                  // Of neighbours at most one is on the diagonal, but for the smallest matrices.
                  const int64_t step = row.side + 1;
                  int64_t d = (e + step - 1) / step * step - e;
#pragma unroll
                  for (int i = 0; i < kListLanes; ++i) {
                    if (i != d) continue;
                    x[i] = diagonal_residual<kTarget>(x[i]);
                    d += step;
                  }
                }
#pragma unroll
                for (int i = 0; i < kListLanes; ++i) {
                  if (i < left) lanes[0][i] += residual_term<kNorm>(x[i]);
                  if constexpr (kNorm == ResidualNorm::magnitudes) x[i] = residual_sign(x[i]);
                }
                if (kTarget != GramTarget::zero || kNorm == ResidualNorm::magnitudes)
                  store_lanes(x, left, aligned, at + e);
              });
}

// A block for each matrix.
__global__ void __launch_bounds__(kTotalLanes)
    gram_totals_kernel(const __grid_constant__ ListChunk<GramRow> chunk, const double* spans,
                       double* out) {
  RK_SHARED(double, shared, kTotalLanes);
  const GramRow& row = chunk.rows[blockIdx.x];
  const double sum = total_of_spans(spans, row.span, row.span + span_count(row.numel), 1, shared);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

}  // namespace

void gram_residual(const GramResidualArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_residual(args, [&](auto target, auto norm, auto zero) {
    for_each_chunk<kSpan>(args.rows, args.count,
                          [&](const ListChunk<GramRow>& chunk, int64_t begin, int64_t tiles) {
                            RK_LAUNCH((gram_residual_kernel<decltype(target)::value,
                                                            decltype(norm)::value, decltype(zero)>),
                                      tiles, kListThreads, 0, stream, chunk, args.spans);
                            RK_LAUNCH((gram_totals_kernel), chunk.count, kTotalLanes, 0, stream,
                                      chunk, args.spans, args.out + begin);
                          });
  });
}

}  // namespace regkern::cuda
