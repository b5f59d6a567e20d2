#include "transport/normalize.h"

#include <type_traits>

#include "transport/normalize_log.h"

namespace regkern::REGKERN_ISA {
namespace {

template <typename F>
inline void dispatch_compute(Dtype dtype, F&& f) {
  if (dtype == Dtype::float64) return f(double{});
  f(float{});
}

}  // namespace

void sinkhorn_normalize(const NormalizeArgs& args, Context) {
  const NormalizeShape shape = normalize_shape(args);
  dispatch_compute(args.dtype, [&](auto zero) {
    using C = decltype(zero);
    if (has_short_sides(shape))
      normalize_lanes<C>(args, shape);
    else
      normalize_rows<C>(args, shape);
    if (args.eps == 0.0) normalize_logarithms<C>(args, shape);
  });
}

void sinkhorn_normalize_backward(const NormalizeBackwardArgs& args, Context) {
  const NormalizeShape shape = normalize_shape(args.forward);
  dispatch_compute(args.forward.dtype, [&](auto zero) {
    using C = decltype(zero);
    if (has_short_sides(shape))
      normalize_lanes_backward<C>(args, shape);
    else
      normalize_rows_backward<C>(args, shape);
    if (args.forward.eps == 0.0) normalize_logarithms_backward<C>(args, shape);
  });
}

}  // namespace regkern::REGKERN_ISA
