#pragma once

#include "core/math.h"

namespace regkern {

// The distribution function of a standard normal. Beyond t > 0 there is (1 + 2t)⁻¹ exp(−t²/2) S(u),
// u = 1 − 8 / (t + 4) in [−1, 1], with a polynomial S; so where it is small, it is within t² ulp.
REGKERN_HD float normal_cdf(float x) {
  const float t = fabs(x), u = 1.0f - 8.0f / (t + 4.0f);
  float series = 1.75786083e-5f;
  series = series * u + 2.22656138e-5f;
  series = series * u - 1.87705015e-4f;
  series = series * u - 1.25434782e-4f;
  series = series * u + 1.56641696e-3f;
  series = series * u - 1.22030419e-3f;
  series = series * u - 1.05087776e-2f;
  series = series * u + 4.43671963e-2f;
  series = series * u - 9.52610529e-2f;
  series = series * u + 1.28907779e-1f;
  series = series * u - 9.63799507e-2f;
  series = series * u - 2.30092205e-2f;
  series = series * u + 8.49695771e-1f;
  const float beyond = regkern::exp(-0.5f * (t * t)) * series / (1.0f + 2.0f * t);
  return choose(x < 0.0f, beyond, 1.0f - beyond);
}
REGKERN_HD double normal_cdf(double x) {
  const double t = fabs(x), u = 1.0 - 8.0 / (t + 4.0);
  double series = 4.1983410056679726e-10;
  series = series * u + 3.0350595993728646e-10;
  series = series * u - 4.1620632202478533e-9;
  series = series * u - 4.8645737282531070e-9;
  series = series * u + 2.0186013227032548e-8;
  series = series * u + 4.0123646675136282e-8;
  series = series * u - 5.9269842465290283e-8;
  series = series * u - 2.3813503192229160e-7;
  series = series * u + 6.2056323164433320e-8;
  series = series * u + 1.2037891751082057e-6;
  series = series * u + 5.9946607304002234e-7;
  series = series * u - 5.8903431432132173e-6;
  series = series * u - 6.0336721139022712e-6;
  series = series * u + 3.1558368698042513e-5;
  series = series * u + 3.7868206006752055e-5;
  series = series * u - 2.0435496023027177e-4;
  series = series * u - 1.4330555719977775e-4;
  series = series * u + 1.5769785146119672e-3;
  series = series * u - 1.2100600536564803e-3;
  series = series * u - 1.0512319260173981e-2;
  series = series * u + 4.4364290441826403e-2;
  series = series * u - 9.5260478962357532e-2;
  series = series * u + 1.2890813544482793e-1;
  series = series * u - 9.6379985890414859e-2;
  series = series * u - 2.3009233104596100e-2;
  series = series * u + 8.4969577171772043e-1;
  const double beyond = regkern::exp(-0.5 * (t * t)) * series / (1.0 + 2.0 * t);
  return choose(x < 0.0, beyond, 1.0 - beyond);
}

}  // namespace regkern
