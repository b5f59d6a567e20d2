#include "proximal/complex_magnitude.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

template <typename C>
struct ComplexBlock {
  C re[kBlock], im[kBlock];
};

template <typename C>
void load_complex(const void* data, int64_t e, int64_t n, ComplexBlock<C>& b) {
  const C* in = static_cast<const C*>(data) + 2 * e;
  for (int64_t i = 0; i < kBlock; ++i) {
    b.re[i] = i < n ? in[2 * i] : C(0);
    b.im[i] = i < n ? in[2 * i + 1] : C(0);
  }
}

template <Law kLaw, typename C>
void shrink_complex(const Point<C>& p, const ComplexBlock<C>& g, ComplexBlock<C>& z, bool gradient,
                    C* first, C* second) {
  const Point<C> q = p;
  if (gradient) {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      const ComplexGradient<C> d =
          shrunk_complex_gradient<kLaw>(q, {g.re[i], g.im[i]}, {z.re[i], z.im[i]});
      z.re[i] = d.z.re;
      z.im[i] = d.z.im;
      first[i] = d.t;
      second[i] = d.lam;
    }
    return;
  }
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    const Complex<C> y = shrunk_complex<kLaw>(q, {z.re[i], z.im[i]});
    z.re[i] = y.re;
    z.im[i] = y.im;
    first[i] = (y.re == C(0)) & (y.im == C(0)) ? C(1) : C(0);
    second[i] = C(0);
  }
}

template <typename C>
void complex_as(const ProxComplexArgs& args) {
  const Point<C> p = load_point<C>(args.law);
  void (*run)(const Point<C>&, const ComplexBlock<C>&, ComplexBlock<C>&, bool, C*, C*) = nullptr;
  dispatch_law(args.law.law,
               [&](auto constant) { run = shrink_complex<decltype(constant)::value, C>; });
  sum_spans<kShrinkSums, C>(
      args.rows, args.count, args.spans,
      [&](const ComplexRow& row, int64_t e, int64_t n, C(&v)[kShrinkSums][kSumBlock]) {
        ComplexBlock<C> g{}, z;
        if (args.gradient) load_complex(row.g, e, n, g);
        load_complex(row.z, e, n, z);
        run(p, g, z, args.gradient, v[0], v[1]);
        C* out = static_cast<C*>(row.out) + 2 * e;
        for (int64_t i = 0; i < n; ++i) {
          out[2 * i] = z.re[i];
          out[2 * i + 1] = z.im[i];
        }
        for (int64_t i = n; i < kBlock; ++i) v[0][i] = v[1][i] = C(0);
      });
  for (int k = 0; k < kShrinkSums; ++k)
    static_cast<C*>(args.out)[k] =
        static_cast<C>(total_of_spans(args.spans + k, 0, args.all_spans, kShrinkSums));
}

}  // namespace

void prox_complex(const ProxComplexArgs& args, Context) {
  args.dtype == Dtype::float64 ? complex_as<double>(args) : complex_as<float>(args);
}

}  // namespace regkern::REGKERN_ISA
