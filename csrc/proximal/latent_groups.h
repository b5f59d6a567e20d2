#pragma once

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"

// The prox of the latent group norm, whose groups overlap: block coordinate descent on the parts
// v_g, of which x is the sum but for a rest r. A step of a group with threshold T is
//
//     s = r_g + v_g,   v_g ← c s,   r_g ← (1 − c) s,   c = (1 − T / ‖s‖)₊
//
// Groups of one colour are disjoint and take their steps at the same time. In reverse, with d = r̄ −
// v̄ of what a step has written, u = s / ‖s‖ and q = min(1, T / ‖s‖),
//
//     s̄ = v̄ + q (d − u ⟨u, d⟩),   ∂/∂T += ⟨u, d⟩        (s̄ = r̄ where c = 0)
//
// is the derivative by what was there before, for both r_g and v_g.
//
// Parts and rest are double, so that many sweeps add no rounding that shows. Sums are in the order
// of core/square_sum.h over the group: its members in order, and the elements of a member.

namespace regkern::proximal {

// Who belongs to which group, and the tensor: (outer, n, inner), groups of the middle indices.
struct LatentGroups {
  int64_t outer, n, inner;
  int64_t groups, all_members, longest;  // the members of all groups, and of the longest
  const int64_t* members;                // of group g those from offsets[g] to offsets[g + 1]
  const int64_t* offsets;
  const int64_t* places;  // of index i the places among `members` from place_offsets[i] on
  const int64_t* place_offsets;
  const double* weights;  // T = threshold · weight
  const void* threshold;  // in the compute type
  const int64_t* ends;    // on the host: where the groups of each colour end
  int64_t colours, sweeps;
  double* rest;   // like x
  double* parts;  // (members, outer, inner)
};

struct LatentArgs {
  Dtype dtype;
  LatentGroups groups;
  const void* x;
  void* y;
  void* steps;  // s of each step, (sweeps, members, outer, inner) in the compute type, or null
};

struct LatentBackwardArgs {
  Dtype dtype;
  LatentGroups groups;  // rest and parts are their derivatives
  const void* g;
  const void* steps;
  void* dx;
  double* slopes;  // ∂/∂T of each group
};

template <typename C>
REGKERN_HD double latent_threshold(const LatentGroups& a, int64_t group) {
  return static_cast<double>(*static_cast<const C*>(a.threshold)) * a.weights[group];
}

REGKERN_HD double latent_share(double norm, double threshold) {
  return norm <= threshold ? 0.0 : 1.0 - threshold / norm;
}

// What is left of s for the rest. Not s − c s where c = 1: s may be infinite.
REGKERN_HD double latent_rest(double s, double share) { return share == 1.0 ? 0.0 : s - share * s; }

// Both derivatives after a step's: `d` is r̄ − v̄, and `along` is ⟨s, d⟩.
REGKERN_HD double latent_reverse(double r, double d, double s, double norm, double threshold,
                                 double along) {
  if (threshold == 0.0) return r - d;
  if (norm <= threshold) return r;
  const double q = threshold / norm;
  return (r - d) + q * (d - s * (along / (norm * norm)));
}
REGKERN_HD double latent_slope(double norm, double threshold, double along) {
  return norm <= threshold ? 0.0 : along / norm;
}

// Where in x the element e of the part that begins at the place `begin` is. I holds the numbers of
// elements of a part: divisions of 64 bits are calls on a GPU.
template <typename I>
REGKERN_HD int64_t latent_index(const LatentGroups& a, int64_t begin, I e) {
  const I span = static_cast<I>(a.outer * a.inner), inner = static_cast<I>(a.inner);
  if (span == 1) return a.members[begin + e];
  const I member = e / span, within = e % span;
  return (within / inner * a.n + a.members[begin + member]) * inner + within % inner;
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(latent_group_prox, proximal::LatentArgs)
REGKERN_DECLARE_KERNEL(latent_group_prox_backward, proximal::LatentBackwardArgs)
}  // namespace regkern
