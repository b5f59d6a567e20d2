#pragma once

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/list_sums.h"
#include "core/math.h"

// What a gram penalty does with the products XᵀX or A Bᵀ of a list: subtract the identity, or take
// the diagonal out; the sum of squares or of magnitudes; and what the gradient is made of, in
// place.

namespace regkern::spectral {

enum class GramTarget : int32_t {
  identity,      // r = x − I
  off_diagonal,  // r = x ∘ (1 − I)
  zero,          // r = x
};

enum class ResidualNorm : int32_t {
  squares,     // Σ r², leaves r
  magnitudes,  // Σ |r|, leaves sgn r
};

// A matrix, row-major. Its diagonal is every (side + 1)-th element.
struct GramRow {
  void* x;
  int64_t numel, first, span;
  int64_t side;
};

struct GramResidualArgs {
  Dtype dtype;  // float32 or float64
  GramTarget target;
  ResidualNorm norm;
  const GramRow* rows;
  int64_t count, all_spans;
  double* spans;  // (all_spans), scratch
  double* out;    // (count)
};

template <GramTarget kTarget, typename C>
REGKERN_HD C diagonal_residual(C x) {
  // A product with zero keeps NaN and infinity visible.
  return kTarget == GramTarget::identity ? x - C(1) : x * C(0);
}

template <typename C>
REGKERN_HD C residual_sign(C r) {
  return r > C(0) ? C(1) : r < C(0) ? C(-1) : r;  // NaN stays
}

template <ResidualNorm kNorm, typename C>
REGKERN_HD double residual_term(C r) {
  const double wide = static_cast<double>(r);
  return kNorm == ResidualNorm::squares ? wide * wide : fabs(wide);
}

// f(target, norm, zero of the type).
template <typename F>
static inline void dispatch_residual(const GramResidualArgs& args, F&& f) {
  const auto typed = [&](auto target, auto norm) {
    args.dtype == Dtype::float64 ? f(target, norm, double{}) : f(target, norm, float{});
  };
  const auto normed = [&](auto target) {
    using N = ResidualNorm;
    if (args.norm == N::squares) return typed(target, std::integral_constant<N, N::squares>{});
    typed(target, std::integral_constant<N, N::magnitudes>{});
  };
  using G = GramTarget;
  switch (args.target) {
    case G::identity:
      return normed(std::integral_constant<G, G::identity>{});
    case G::off_diagonal:
      return normed(std::integral_constant<G, G::off_diagonal>{});
    case G::zero:
      return normed(std::integral_constant<G, G::zero>{});
  }
}

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(gram_residual, spectral::GramResidualArgs)
}
