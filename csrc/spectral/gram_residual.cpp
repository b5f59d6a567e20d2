#include "spectral/gram_residual.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

template <GramTarget kTarget, ResidualNorm kNorm, typename T>
void residual_as(const GramResidualArgs& args) {
  static_assert(kSumBlock == kBlock);
  sum_spans<1, double>(args.rows, args.count, args.spans,
                       [](const GramRow& row, int64_t e, int64_t n, double (&v)[1][kSumBlock]) {
                         T* const at = static_cast<T*>(row.x) + e;
                         T x[kBlock];
                         load_elements(at, n, x);
                         if constexpr (kTarget != GramTarget::zero) {
                           const int64_t step = row.side + 1;
                           for (int64_t d = (e + step - 1) / step * step - e; d < n; d += step)
                             x[d] = diagonal_residual<kTarget>(x[d]);
                         }
#pragma omp simd
                         for (int i = 0; i < kBlock; ++i) v[0][i] = residual_term<kNorm>(x[i]);
                         for (int64_t i = n; i < kBlock; ++i) v[0][i] = 0.0;
                         if constexpr (kNorm == ResidualNorm::magnitudes) {
#pragma omp simd
                           for (int i = 0; i < kBlock; ++i) x[i] = residual_sign(x[i]);
                         }
                         if (kTarget != GramTarget::zero || kNorm == ResidualNorm::magnitudes)
                           store_elements(x, n, at);
                       });
  for (int64_t r = 0; r < args.count; ++r) {
    const int64_t begin = args.rows[r].span;
    args.out[r] = total_of_spans(args.spans, begin, begin + span_count(args.rows[r].numel), 1);
  }
}

}  // namespace

void gram_residual(const GramResidualArgs& args, Context) {
  dispatch_residual(args, [&](auto target, auto norm, auto zero) {
    residual_as<decltype(target)::value, decltype(norm)::value, decltype(zero)>(args);
  });
}

}  // namespace regkern::REGKERN_ISA
