#pragma once

#include <cstdint>

#include "core/bits.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"
#include "core/philox.h"

// DropBlock (Ghiasi, Lin and Le, "DropBlock: a regularization method for convolutional networks",
// NeurIPS 2018). Anchors are drawn i.i.d. Bernoulli(γ); the block of extent k that starts at an
// anchor is dropped:
//
//     S ~ Bernoulli(γ)^anchors,    M = 1 − dilate(S, k),    y = x ⊙ M · scale.
//
// Drawing works by chunks of kChunk anchors: the number of anchors set in a chunk is
// Binomial(chunk, γ), by inversion from one 64-bit word, and as many distinct places are drawn.
// That is the same law as one number per anchor, for a few numbers per plane.

namespace regkern::masks {

enum class Border : int {
  valid,  // anchors where the whole block fits (the paper)
  clip,   // also blocks that hang over any edge: each element is under kᵈ anchors
  same,   // an anchor per element, the block centred on it and clipped at the edge (max-pooling)
  wrap,   // an anchor per element, the block wraps around
};
enum class Rate : int { paper, exact };
enum class Normalize : int { count, sample, expected, none };

// One to three spatial dimensions; missing ones stand in front with size and block 1.
struct Geometry {
  int64_t planes;
  int64_t size[3];
  int64_t block[3];
  int64_t first[3];    // the lowest anchor of a dimension
  int64_t anchors[3];  // how many there are
  Border border;
};

REGKERN_HD int64_t elements(const Geometry& g) { return g.size[0] * g.size[1] * g.size[2]; }
REGKERN_HD int64_t anchors(const Geometry& g) { return g.anchors[0] * g.anchors[1] * g.anchors[2]; }

inline Geometry make_geometry(int64_t planes, const int64_t* size, const int64_t* block, int ndim,
                              Border border) {
  Geometry g{planes, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, border};
  for (int i = 0; i < ndim; ++i) {
    const int d = 3 - ndim + i;
    const int64_t n = size[i];
    const int64_t k = block[i] < n ? block[i] : n;  // a block larger than the map is the map
    g.size[d] = n;
    g.block[d] = k;
    g.first[d] = border == Border::clip ? 1 - k : border == Border::same ? -(k / 2) : 0;
    g.anchors[d] = border == Border::valid ? n - k + 1 : border == Border::clip ? n + k - 1 : n;
  }
  return g;
}

// How many anchors of dimension d cover position i.
REGKERN_HD int64_t coverage(const Geometry& g, int d, int64_t i) {
  const int64_t k = g.block[d], first = g.first[d], last = first + g.anchors[d] - 1;
  if (g.border == Border::wrap) return k;
  const int64_t from = i - k + 1 > first ? i - k + 1 : first;
  const int64_t to = i < last ? i : last;
  return to - from + 1;
}

REGKERN_HD double integer_power(double x, int64_t n) {
  double result = 1.0;
  for (; n > 0; n >>= 1) {
    if (n & 1) result *= x;
    x *= x;
  }
  return result;
}

// The kept fraction and its derivative in q = 1 − γ: f(q) = mean over positions of q^coverage. The
// sum runs over pairs (edge distance) of 32 interleaved partial sums, so that a warp adds in the
// same order as one thread does.
constexpr int kLanes = 32;
struct Kept {
  double value;
  double slope;
};

// Coverage is symmetric up to its sides and constant between them, so a dimension has at most
// 2k + 1 distinct weights: position j < k from the left, the middle, and position j < k from the
// right. The middle counts (n − 2k) times.
REGKERN_HD int64_t distinct(const Geometry& g, int d) {
  return g.size[d] > 2 * g.block[d] + 1 ? 2 * g.block[d] + 1 : g.size[d];
}
REGKERN_HD void distinct_term(const Geometry& g, int d, int64_t j, int64_t* cover, double* times) {
  const int64_t n = g.size[d], k = g.block[d];
  const bool folded = n > 2 * k + 1;
  const int64_t position = folded && j > k ? n - (2 * k + 1) + j : j;
  *cover = coverage(g, d, position);
  *times = folded && j == k ? static_cast<double>(n - 2 * k) : 1.0;
}

REGKERN_HD Kept kept_partial(const Geometry& g, double q, int lane) {
  const int64_t n0 = distinct(g, 0), n1 = distinct(g, 1), n2 = distinct(g, 2);
  Kept sum{0.0, 0.0};
  for (int64_t j = lane; j < n0 * n1 * n2; j += kLanes) {
    int64_t c0, c1, c2;
    double t0, t1, t2;
    distinct_term(g, 0, j / (n1 * n2), &c0, &t0);
    distinct_term(g, 1, j / n2 % n1, &c1, &t1);
    distinct_term(g, 2, j % n2, &c2, &t2);
    const int64_t cover = c0 * c1 * c2;
    const double times = t0 * t1 * t2;
    const double power = integer_power(q, cover - 1);
    sum.value += times * (power * q);
    sum.slope += times * (static_cast<double>(cover) * power);
  }
  return sum;
}

struct SequentialKept {
  REGKERN_HD Kept operator()(const Geometry& g, double q) const {
    Kept total{0.0, 0.0};
    for (int lane = 0; lane < kLanes; ++lane) {
      const Kept part = kept_partial(g, q, lane);
      total.value += part.value;
      total.slope += part.slope;
    }
    const double n = static_cast<double>(elements(g));
    return {total.value / n, total.slope / n};
  }
};

struct SeedRate {
  double gamma;  // probability of an anchor
  double keep;   // expected kept fraction
};

// paper: γ = p · Πn / (Πk · Π(n − k + 1)), which ignores overlaps and borders.
// exact: the γ at which the expected dropped fraction is p, f(1 − γ) = 1 − p. f is convex and
// increasing and q₀ = (1 − p)^(1 / mean coverage) is at or right of the root (Jensen), so Newton's
// iteration falls towards it.
REGKERN_CALLS_ARGUMENT
template <typename KeptFraction>
REGKERN_HD SeedRate seed_rate(const Geometry& g, double p, Rate rate, double gamma_scale,
                              KeptFraction kept) {
  double gamma;
  if (!(p > 0.0)) {
    gamma = 0.0;
  } else if (rate == Rate::paper) {
    gamma = p;
    for (int d = 0; d < 3; ++d)
      gamma = gamma * static_cast<double>(g.size[d]) /
              (static_cast<double>(g.block[d]) * static_cast<double>(g.size[d] - g.block[d] + 1));
  } else if (p >= 1.0) {
    gamma = 1.0;
  } else {
    const double mean = kept(g, 1.0).slope;
    double q = regkern::exp(regkern::log(1.0 - p) / mean);
    q = q < 1.0 ? q : 1.0;
    for (int i = 0; i < 64; ++i) {
      const Kept f = kept(g, q);
      const double next = q - (f.value - (1.0 - p)) / f.slope;
      if (!(next < q)) break;
      q = next > 0.0 ? next : 0.0;
    }
    gamma = 1.0 - q;
  }
  gamma *= gamma_scale;
  gamma = gamma < 1.0 ? gamma : 1.0;
  return {gamma, kept(g, 1.0 - gamma).value};
}

constexpr int kChunk = 4096;
// A Binomial(4096, ½) has standard deviation 32; the table holds what is more likely than 2⁻⁷⁰.
constexpr int kTable = 704;

// Inverse distribution function of a Binomial(n, γ): `first` + the number of thresholds ≤ u.
struct BinomialTable {
  int32_t first;
  int32_t size;
  uint64_t thresholds[kTable];
};

// From the mode outwards by the ratio of neighbours,
// P(k + 1) / P(k) = (n − k) / (k + 1) · γ / (1 − γ): no logarithm, no underflow.
REGKERN_HD void make_table(int n, double gamma, BinomialTable* table) {
  const double odds = gamma / (1.0 - gamma);
  const int mode = static_cast<int>(static_cast<double>(n + 1) * gamma);
  const double tiny = 8.470329472543003e-22;  // 2⁻⁷⁰
  const int half = kTable / 2;
  int first = mode;
  double weight = 1.0;
  while (first > 0 && mode - first < half - 1) {
    weight = weight * static_cast<double>(first) / (static_cast<double>(n - first + 1) * odds);
    if (weight < tiny) break;
    --first;
  }
  double total = 0.0;
  int last = first;
  // The weights wait in the thresholds' place until their sum is known.
  weight = 1.0;
  for (int k = mode; k > first; --k) {
    table->thresholds[k - first] = bit_cast<uint64_t>(weight);
    weight = weight * static_cast<double>(k) / (static_cast<double>(n - k + 1) * odds);
  }
  table->thresholds[0] = bit_cast<uint64_t>(weight);
  weight = 1.0;
  for (last = mode; last < n && last - mode < half - 1; ++last) {
    weight = weight * (static_cast<double>(n - last) / static_cast<double>(last + 1) * odds);
    if (weight < tiny) break;
    table->thresholds[last + 1 - first] = bit_cast<uint64_t>(weight);
  }
  const int size = last - first + 1;
  for (int i = 0; i < size; ++i) total += bit_cast<double>(table->thresholds[i]);
  double sum = 0.0;
  for (int i = 0; i < size; ++i) {
    sum += bit_cast<double>(table->thresholds[i]);
    const double share = sum / total;
    table->thresholds[i] = share < 1.0 ? static_cast<uint64_t>(share * 18446744073709551616.0)
                                       : ~static_cast<uint64_t>(0);
  }
  table->first = first;
  table->size = size;
}

REGKERN_HD int binomial(const BinomialTable& table, uint64_t u) {
  int i = 0;
  while (i < table.size - 1 && u >= table.thresholds[i]) ++i;
  return table.first + i;
}

// Above γ = ½ the anchors *not* set are drawn.
struct PlanRate {
  SeedRate rate;
  int32_t inverted;
  int32_t bad;  // p is not a probability: the scale becomes NaN
};

// All that the drawing of a plane needs.
struct Plan : PlanRate {
  BinomialTable full, rest;  // chunks of kChunk anchors, and the last, shorter one
};

REGKERN_CALLS_ARGUMENT
template <typename KeptFraction>
REGKERN_HD PlanRate plan_rate(const Geometry& g, double p, Rate rate, double gamma_scale,
                              KeptFraction kept) {
  PlanRate plan;
  plan.bad = !(p >= 0.0 && p <= 1.0);
  plan.rate = seed_rate(g, plan.bad ? 0.0 : p, rate, gamma_scale, kept);
  plan.inverted = plan.rate.gamma > 0.5;
  return plan;
}

// The rate of what is drawn, and how many anchors the last chunk has.
REGKERN_HD double drawn_gamma(const PlanRate& plan) {
  return plan.inverted ? 1.0 - plan.rate.gamma : plan.rate.gamma;
}
REGKERN_HD int rest_of(const Geometry& g) { return static_cast<int>(anchors(g) % kChunk); }

template <typename KeptFraction>
REGKERN_HD void make_plan(const Geometry& g, double p, Rate rate, double gamma_scale,
                          KeptFraction kept, Plan* plan) {
  static_cast<PlanRate&>(*plan) = plan_rate(g, p, rate, gamma_scale, kept);
  make_table(kChunk, drawn_gamma(*plan), &plan->full);
  make_table(rest_of(g), drawn_gamma(*plan), &plan->rest);
}

REGKERN_HD double mask_scale(const PlanRate& plan, Normalize normalize, int64_t total,
                             int64_t kept) {
  double scale = 1.0;
  if (normalize == Normalize::expected)
    scale = plan.rate.keep > 0.0 ? 1.0 / plan.rate.keep : 0.0;
  else if (normalize != Normalize::none)
    scale = kept > 0 ? static_cast<double>(total) / static_cast<double>(kept) : 0.0;
  return plan.bad ? bit_cast<double>(uint64_t{0x7FF8000000000000}) : scale;
}

struct Place {
  int64_t i[3];
};

// The coordinates of an anchor. Divisions are most of the price of a block: in 32 bits where they
// do, and none for the dimensions that are not there.
REGKERN_HD Place place_of(const Geometry& g, int64_t anchor) {
  Place p{{0, 0, 0}};
  int64_t rest = 0;
  if (anchor <= 0xFFFFFFFF) {
    const auto a = static_cast<uint32_t>(anchor), n = static_cast<uint32_t>(g.anchors[2]);
    rest = a / n;
    p.i[2] = a - static_cast<uint32_t>(rest) * n;
  } else {
    rest = anchor / g.anchors[2];
    p.i[2] = anchor % g.anchors[2];
  }
  p.i[1] = rest;
  if (g.anchors[0] > 1) {
    p.i[0] = rest / g.anchors[1];
    p.i[1] = rest % g.anchors[1];
  }
  return p;
}

// Calls set(offset, length) for each contiguous run of elements of the block at `anchor`.
REGKERN_CALLS_ARGUMENT
template <typename Set>
REGKERN_HD void for_each_run(const Geometry& g, int64_t anchor, Set&& set) {
  const Place place = place_of(g, anchor);
  const int64_t start[3] = {g.first[0] + place.i[0], g.first[1] + place.i[1],
                            g.first[2] + place.i[2]};
  const bool wrap = g.border == Border::wrap;
  const int64_t n2 = g.size[2];
  const int64_t begin = start[2] > 0 ? start[2] : 0;
  const int64_t stop = start[2] + g.block[2];
  const int64_t end = stop < n2 ? stop : n2;
  for (int64_t z = start[0]; z < start[0] + g.block[0]; ++z) {
    if (!wrap && (z < 0 || z >= g.size[0])) continue;
    const int64_t row0 = (z < g.size[0] ? z : z - g.size[0]) * g.size[1];
    for (int64_t y = start[1]; y < start[1] + g.block[1]; ++y) {
      if (!wrap && (y < 0 || y >= g.size[1])) continue;
      const int64_t row = (row0 + (y < g.size[1] ? y : y - g.size[1])) * n2;
      set(row + begin, end - begin);
      if (wrap && stop > n2) set(row, stop - n2);
    }
  }
}

struct DropBlockMaskArgs {
  Geometry geometry;
  Rate rate;
  Normalize normalize;
  double gamma_scale;
  double p;  // used where p_tensor is null
  const double* p_tensor;
  const int64_t* seed;
  int64_t groups;  // 1, or one scale per sample
  uint32_t* mask;  // planes · elements bits, 1 = kept
  double* scale;   // (groups)
  int64_t* kept;   // (groups), scratch
  Plan* plan;      // scratch
};

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(drop_block_mask, masks::DropBlockMaskArgs)
}
