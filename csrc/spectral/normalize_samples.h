#pragma once

#include "core/isa.h"
#include "core/math.h"
#include "spectral/sample_pieces.h"

// y = s x / ‖x‖ of each sample; a sample of zeros stays what it is. Squares are added in double,
// and the factor is one: no float32 is too small or too large.

namespace regkern::spectral {

struct NormalizeSamplesArgs {
  Dtype dtype;
  Samples samples;
  const void* x;
  const void* scale;  // of the compute type: one number, or one for each sample
  int64_t scale_stride;
  void* y;
  void* norm;       // (samples), of the compute type
  double* partial;  // of a CUDA device: (samples, pieces + 1)
};

REGKERN_HD double normalizing_factor(double norm, double scale) {
  return norm == 0.0 ? 0.0 : scale / norm;
}

template <typename C>
REGKERN_HD C normalized(C x, double factor) {
  return static_cast<C>(static_cast<double>(x) * factor);
}

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(normalize_samples, spectral::NormalizeSamplesArgs)
}
