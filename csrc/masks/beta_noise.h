#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/random.h"

namespace regkern::masks {

// Element i is drawn from Beta(alpha_i, beta_i), from its own numbers.
struct BetaNoiseArgs {
  const int64_t* seed;
  int64_t numel;
  const double* alpha;
  const double* beta;
  double* out;
};

// NaN for parameters that are not positive and finite.
REGKERN_HD double beta_noise_of(const BetaNoiseArgs& args, int64_t i) {
  const double a = args.alpha[i], b = args.beta[i], most = 1.7976931348623157e308;
  if (!(a > 0.0 && b > 0.0 && a <= most && b <= most))
    return static_cast<double>(__builtin_nanf(""));
  Draws draws(load_seed(args.seed), Stream::noise, static_cast<uint64_t>(i));
  return draw_beta(draws, a, b);
}

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(beta_noise, masks::BetaNoiseArgs)
}
