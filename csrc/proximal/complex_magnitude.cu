#include "core/list_sums.cuh"
#include "proximal/complex_magnitude.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

// Any law, as a call: see elementwise.cu.
template <typename C>
__device__ __noinline__ Complex<C> shrunk_complex_by(Law law, Point<C> p, Complex<C> z) {
  Complex<C> y{};
  dispatch_law(law, [&](auto constant) { y = shrunk_complex<decltype(constant)::value>(p, z); });
  return y;
}
template <typename C>
__device__ __noinline__ ComplexGradient<C> complex_gradient_by(Law law, Point<C> p, Complex<C> g,
                                                               Complex<C> z) {
  ComplexGradient<C> d{};
  dispatch_law(
      law, [&](auto constant) { d = shrunk_complex_gradient<decltype(constant)::value>(p, g, z); });
  return d;
}

template <typename C, bool kGradient>
__global__ void __launch_bounds__(kListThreads)
    complex_kernel(const __grid_constant__ ListChunk<ComplexRow> chunk, LawArgs law,
                   double* spans) {
  RK_SHARED(double, shared, kListThreads);
  const Point<C> p = load_point<C>(law);
  sum_span<kShrinkSums>(chunk, static_cast<int>(blockIdx.x), spans, shared,
                        [&](const ComplexRow& row, int64_t e, int64_t left,
                            double (&lanes)[kShrinkSums][kLaneGroup]) {
                          // A pair in one access.
                          const auto* z = static_cast<const Vector<C, 2>*>(row.z) + e;
                          [[maybe_unused]] const auto* g =
                              static_cast<const Vector<C, 2>*>(row.g) + e;
                          auto* out = static_cast<Vector<C, 2>*>(row.out) + e;
#pragma unroll
                          for (int i = 0; i < kListLanes; ++i) {
                            if (i >= left) continue;
                            const Complex<C> at = {z[i].v[0], z[i].v[1]};
                            if constexpr (kGradient) {
                              const ComplexGradient<C> d =
                                  complex_gradient_by(law.law, p, {g[i].v[0], g[i].v[1]}, at);
                              out[i] = {{d.z.re, d.z.im}};
                              lanes[0][i] += static_cast<double>(d.t);
                              lanes[1][i] += static_cast<double>(d.lam);
                            } else {
                              const Complex<C> y = shrunk_complex_by(law.law, p, at);
                              out[i] = {{y.re, y.im}};
                              lanes[0][i] += y.re == C(0) && y.im == C(0) ? 1.0 : 0.0;
                            }
                          }
                        });
}

template <typename C>
__global__ void __launch_bounds__(kTotalLanes)
    complex_totals_kernel(const double* spans, int64_t all_spans, C* out) {
  RK_SHARED(double, shared, kTotalLanes);
  for (int k = 0; k < kShrinkSums; ++k) {
    const double sum = total_of_spans(spans + k, 0, all_spans, kShrinkSums, shared);
    if (threadIdx.x == 0) out[k] = static_cast<C>(sum);
  }
}

template <typename C>
void complex_as(const ProxComplexArgs& args, cudaStream_t stream) {
  for_each_chunk<kSpan>(args.rows, args.count,
                        [&](const ListChunk<ComplexRow>& chunk, int64_t, int64_t tiles) {
                          if (args.gradient)
                            RK_LAUNCH((complex_kernel<C, true>), tiles, kListThreads, 0, stream,
                                      chunk, args.law, args.spans);
                          else
                            RK_LAUNCH((complex_kernel<C, false>), tiles, kListThreads, 0, stream,
                                      chunk, args.law, args.spans);
                        });
  RK_LAUNCH((complex_totals_kernel<C>), 1, kTotalLanes, 0, stream, args.spans, args.all_spans,
            static_cast<C*>(args.out));
}

}  // namespace

void prox_complex(const ProxComplexArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  args.dtype == Dtype::float64 ? complex_as<double>(args, stream) : complex_as<float>(args, stream);
}

}  // namespace regkern::cuda
