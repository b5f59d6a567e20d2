#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"
#include "core/square_sum.h"

// Rows of matrices by their Euclidean norms s: scaled while they are in the cache, and the gradient
// of the normalised rows. Sums of squares and of products have the order of core/square_sum.h.

namespace regkern::spectral {

enum class RowLaw : int32_t {
  project,    // y = x / s: the unit sphere
  norm_loss,  // y = x (1 − 2 a (1 − 1/s)): a step of a down the gradient of (1 − s)²
};

// A tensor of `rows` rows of n elements; numel and first as core/tensor_list.h has them.
struct NormedRows {
  const void* x;
  const void* g;  // the gradient of the normalised rows, or null
  void* y;
  int64_t rows, n;
  int64_t numel, first;
  int64_t row;  // the number of its first row in the list
};

struct RowRescaleArgs {
  Dtype dtype;
  RowLaw law;
  const NormedRows* rows;
  int64_t count;
  const void* step;  // a in the compute type, or null
  double* norms;
};

// y = (g − ŵ ⟨g, ŵ⟩) / s with ŵ = x / s; 0 for a row of norm 0.
struct RowProjectBackwardArgs {
  Dtype dtype;
  const NormedRows* rows;
  int64_t count;
  const double* norms;
};

// A zero row stays what it is.
REGKERN_HD double rescale_factor(RowLaw law, double s, double a) {
  if (s == 0.0) return 1.0;
  const double inverse = 1.0 / s;
  if (law == RowLaw::project) return inverse;
  return a == 0.0 ? 1.0 : 1.0 - 2.0 * a * (1.0 - inverse);
}

// Whether a factor may be rounded to the type of the elements: else they are scaled in double.
template <typename C>
REGKERN_HD bool factor_fits(double factor) {
  return sizeof(C) == sizeof(double) || !(fabs(factor) > 1e37);
}

// What an element of the gradient is made of.
template <typename C>
struct RowGradient {
  C inverse, along;  // 1/s and ⟨g, ŵ⟩
  REGKERN_HD C operator()(C g, C x) const { return (g - (x * inverse) * along) * inverse; }
};

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(row_rescale, spectral::RowRescaleArgs)
REGKERN_DECLARE_KERNEL(row_project_backward, spectral::RowProjectBackwardArgs)
}  // namespace regkern
