#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"
#include "core/tensor_list.h"

// out ← a x + b u vᵀ for a list of matrices, each (n0, rows, n1) in row-major order (see matrix.h),
// one pass over each. With that, matrices are divided by their spectral norm, the division is
// differentiated, and rank-1 gradients are added.

namespace regkern::spectral {

// Where a and b come from.
enum class Factors : int32_t {
  given,     // a = 1 where there is an x; b from memory
  divide,    // a = 1 / max(1, σ / cap); b = 0
  gradient,  // of the former: b = −⟨x, W⟩ / σ times a where σ counts
};

struct RankOneRow {
  const void* x;  // or null: zeros
  void* out;
  const void *u, *v;  // in the compute type; null without a second term
  int64_t numel, first;
  int32_t rows, n1;
};

struct RankOneArgs {
  Dtype dtype;
  Factors factors;
  const RankOneRow* rows;
  int64_t count;
  const void* numbers;     // b or σ of each matrix, in the compute type
  const double* products;  // ⟨x, W⟩ of each matrix
  double cap;              // of σ; 0: none, and a = 1 / σ
};

template <typename C>
struct Pair {
  C a, b;
};

// Of matrix i. A matrix of σ = 0 is divided to 0, and its gradient is 0.
template <typename C>
REGKERN_HD Pair<C> factors_of(Factors factors, C number, double product, double cap) {
  if (factors == Factors::given) return {C(1), number};
  const double sigma = static_cast<double>(number);
  const bool below = cap > 0.0 && sigma <= cap;
  const double a = below ? 1.0 : sigma == 0.0 ? 0.0 : (cap > 0.0 ? cap : 1.0) / sigma;
  if (factors == Factors::divide) return {static_cast<C>(a), C(0)};
  const double b = below || sigma == 0.0 ? 0.0 : -(product / sigma) * a;
  return {static_cast<C>(a), static_cast<C>(b)};
}

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(rank_one, spectral::RankOneArgs)
}
