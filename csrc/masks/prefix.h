#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/philox.h"

// Prefixes of a dimension, and the uniform numbers that their lengths are drawn from.

namespace regkern::masks {

// y[o, d, i] = x[o, d, i] · 1[d < k[o / per]]: a NaN stays NaN behind the prefix.
struct PrefixArgs {
  Dtype dtype;
  const void* x;  // (outer, size, inner)
  void* y;        // may be x
  int64_t outer, size, inner;
  const int64_t* k;  // (outer / per)
  int64_t per;
};

// Elements of row o that are kept.
REGKERN_HD int64_t prefix_elements(const PrefixArgs& args, int64_t o) {
  const int64_t k = args.k[o / args.per];
  return (k < 0 ? 0 : k < args.size ? k : args.size) * args.inner;
}

// Uniform in (0, 1), the first number of item i.
struct UniformArgs {
  double* u;
  int64_t numel;
  const int64_t* seed;
};

REGKERN_HD double uniform_of(Seed seed, int64_t i) {
  Draws draws(seed, Stream::choice, static_cast<uint64_t>(i));
  return draws.uniform();
}

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(prefix, masks::PrefixArgs)
REGKERN_DECLARE_KERNEL(uniform, masks::UniformArgs)
}  // namespace regkern
