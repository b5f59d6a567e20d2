#pragma once

#include "core/math.h"
#include "core/philox.h"

namespace regkern {

// Standard normal by the polar method: no trigonometry, in double.
REGKERN_HD double draw_normal(Draws& draws) {
  for (;;) {
    const double u = 2.0 * draws.uniform() - 1.0;
    const double v = 2.0 * draws.uniform() - 1.0;
    const double s = u * u + v * v;
    if (s >= 1.0 || s == 0.0) continue;
    return u * regkern::sqrt(-2.0 * regkern::log(s) / s);
  }
}

// ln of a Gamma(alpha, 1) variate (Marsaglia and Tsang, 2000). For alpha < 1 a Gamma(alpha + 1)
// times U^(1/alpha); in logarithms, so a small alpha does not underflow.
REGKERN_HD double draw_log_gamma(Draws& draws, double alpha) {
  double boost = 0.0;
  if (alpha < 1.0) {
    boost = regkern::log(draws.uniform()) / alpha;
    alpha += 1.0;
  }
  const double d = alpha - 1.0 / 3.0;
  const double c = 1.0 / regkern::sqrt(9.0 * d);
  for (;;) {
    const double x = draw_normal(draws);
    const double root = 1.0 + c * x;
    if (root <= 0.0) continue;
    const double v = root * root * root;
    const double u = draws.uniform();
    if (regkern::log(u) < 0.5 * x * x + d - d * v + d * regkern::log(v))
      return regkern::log(d) + regkern::log(v) + boost;
  }
}

// Beta(alpha, beta) = A / (A + B) of two Gamma variates.
REGKERN_HD double draw_beta(Draws& draws, double alpha, double beta) {
  if (alpha == 1.0 && beta == 1.0) return draws.uniform();
  const double a = draw_log_gamma(draws, alpha);
  const double b = draw_log_gamma(draws, beta);
  return 1.0 / (1.0 + regkern::exp(b - a));
}

}  // namespace regkern
