#pragma once

#include "core/isa.h"
#include "spectral/sample_pieces.h"

// y = p a + q b with numbers p and q of each sample; zeros beyond its length. It is what the sums
// over samples have as their gradient, and it has them as its own.

namespace regkern::spectral {

struct SampleCombineArgs {
  Dtype dtype;
  Samples samples;
  const void* a;
  const void* b;
  const void* p;  // of the compute type
  const void* q;
  void* y;
};

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(sample_combine, spectral::SampleCombineArgs)
}
