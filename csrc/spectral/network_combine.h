#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"
#include "core/tensor_list.h"

// y = α x + β d over the tensors of a network, with numbers α, β for each group of neighbours, and
// the direction d made of z:
//
//     plain      d = z
//     adaptive   d = T² z                                     with T = |x| + η
//     powered    d = T sgn(z) (T |z| / m)^q                   with T = 1 where η < 0
//
// x is kept in `saved` where that is wanted. Where β d = 0, y = α x to the bit.

namespace regkern::spectral {

enum class Direction : int32_t { plain, adaptive, powered };

struct CombineRow {
  const void* x;
  const void* z;  // or null: d = 0
  void* y;
  void* saved;  // or null
  int64_t numel, first;
  int64_t run, group;  // neighbours in a group; the number of the first group
};

struct NetworkCombineArgs {
  Dtype dtype;
  Direction direction;
  const double* numbers;  // (groups, 2): α, β
  double eta, q;
  const double* most;  // m
  const CombineRow* rows;
  int64_t count;
  bool streaming;  // what is written and not read goes past the cache
};

struct CopyRow {
  void* to;
  const void* from;
  int64_t numel, first;
};

struct NetworkCopyArgs {
  Dtype dtype;
  const CopyRow* rows;
  int64_t count;
  bool streaming;
};

// A factor that is too large for the type becomes the largest of the type.
REGKERN_HD float factor_as(double b, float) {
  constexpr double kMost = 3.4028234663852886e38;
  return static_cast<float>(b > kMost ? kMost : b < -kMost ? -kMost : b);
}
REGKERN_HD double factor_as(double b, double) { return b; }

template <typename C>
struct Combine {
  C eta;
  double q, most;
};

template <Direction kDirection, typename C>
REGKERN_HD C direction_of(const Combine<C>& c, C x, C z) {
  if constexpr (kDirection == Direction::plain) {
    return z;
  } else if constexpr (kDirection == Direction::adaptive) {
    const C t = fabs(x) + c.eta;
    return t * (t * z);
  } else {
    const C t = c.eta < C(0) ? C(1) : fabs(x) + c.eta;
    const double size = static_cast<double>(fabs(z)) * static_cast<double>(t);
    const double r = c.most == 0.0 ? size : size / c.most;
    const double power = exp(c.q * log(r));
    const C step = static_cast<C>(r > 0.0 ? power : r);
    return t * (z < C(0) ? -step : step);
  }
}

template <Direction kDirection, typename C>
REGKERN_HD C combined(const Combine<C>& c, C x, C z, C alpha, C beta) {
  const C base = alpha * x, step = beta * direction_of<kDirection>(c, x, z);
  return step == C(0) ? base : base + step;
}

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(network_combine, spectral::NetworkCombineArgs)
REGKERN_DECLARE_KERNEL(network_copy, spectral::NetworkCopyArgs)
}  // namespace regkern
