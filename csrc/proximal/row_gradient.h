#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "proximal/row_threshold.h"

// The derivatives of the laws of row_threshold. With A the elements that τ depends on and their
// signs s (the square roots √p in entmax15), each slice has a symmetric Jacobian J and c = ∂y/∂t:
//
//     simplex, capped   J g = g − m on A, else 0              m = Σ g / |A|          c = 1 / |A|
//     l1_ball           J g = g − s w m on A, else 0          m = Σ s w g / Σ w²     c = s w / Σ w²
//     linf              J g = s m on A, else g                m = Σ s g / |A|        c = −s / |A|
//     exclusive         J g = g − t s w m on A, else 0        m = Σ s w g / D        c = −s w S / D
//     entmax15          J g = s (g − m)                       m = Σ s g / Σ s        c = 0
//
// with sums over A, D = 1 + t Σ w² and S = Σ w |y|. The result is J g + c g_t, and ⟨c, g⟩.

namespace regkern::proximal {

struct RowGradientArgs {
  Dtype dtype;
  RowLaw law;
  const void* g;
  const void* reference;  // x in linf, else y
  const void* theta;
  const double* t;
  int64_t t_stride;
  const void* weights;
  double cap;
  const double* gt;  // per slice, or null
  Slices slices;
  void* dx;
  double* dt;  // per slice
};

// How an element takes part: s w (√p), 0 outside of A.
template <typename C>
REGKERN_HD double participation(RowLaw law, C reference, C weight, C theta, double cap) {
  const double r = static_cast<double>(reference), w = static_cast<double>(weight);
  const double sign = r > 0.0 ? 1.0 : (r < 0.0 ? -1.0 : 0.0);
  if (law == RowLaw::linf) return (r < 0.0 ? -r : r) >= static_cast<double>(theta) ? sign : 0.0;
  if (law == RowLaw::l1_ball || law == RowLaw::exclusive) return sign * w;
  if (law == RowLaw::capped) return r > 0.0 && r < cap ? 1.0 : 0.0;
  if (law == RowLaw::simplex) return r > 0.0 ? 1.0 : 0.0;
  return r > 0.0 ? regkern::sqrt(r) : 0.0;
}

// Sums over A of s g, of s² (entmax15: of s) and of w |y|.
struct GradientSums {
  double along, squares, size;
};

template <typename C>
REGKERN_HD void add_term(RowLaw law, C reference, double s, double g, GradientSums* sums) {
  if (s == 0.0) return;
  sums->along += s * g;
  sums->squares += law == RowLaw::entmax15 ? s : s * s;
  sums->size += s * static_cast<double>(reference);
}

enum class RowKind { regular, identity, zero, nan };

struct GradientPlan {
  RowKind kind;
  double m, c;  // c: the factor of s in ∂y/∂t
  double dt;
};

template <typename C>
REGKERN_HD RowKind kind_of(RowLaw law, C theta, double t) {
  const bool prox = law == RowLaw::linf || law == RowLaw::exclusive;
  if (law == RowLaw::linf && theta == C(0)) return t == 0.0 ? RowKind::identity : RowKind::zero;
  if (law == RowLaw::l1_ball && theta == C(0)) return RowKind::identity;
  if (!(theta == theta) && !(prox && t == 0.0)) return RowKind::nan;
  return RowKind::regular;
}

template <typename C>
REGKERN_HD GradientPlan plan_gradient(RowLaw law, const GradientSums& s, C theta, double t) {
  GradientPlan plan{kind_of(law, theta, t), 0.0, 0.0, 0.0};
  if (plan.kind == RowKind::nan) plan.dt = not_a_number<double>();
  if (plan.kind != RowKind::regular || !(s.squares > 0.0)) return plan;
  const double d = law == RowLaw::exclusive ? 1.0 + t * s.squares : s.squares;
  plan.m = s.along / d;
  plan.c = 1.0 / d;
  if (law == RowLaw::linf) plan.c = -plan.c;
  if (law == RowLaw::exclusive) plan.c *= -s.size;
  if (law == RowLaw::entmax15) plan.c = 0.0;
  plan.dt = plan.c * s.along;
  // The prox of nothing is the identity, with its derivative in t from the right.
  if (t == 0.0 && (law == RowLaw::linf || law == RowLaw::exclusive)) plan.kind = RowKind::identity;
  return plan;
}

REGKERN_HD double gradient_element(RowLaw law, const GradientPlan& plan, double s, double g,
                                   double gt, double t) {
  if (plan.kind == RowKind::nan) return not_a_number<double>();
  if (plan.kind == RowKind::zero) return 0.0;
  const double moved = plan.c * s * gt;
  if (plan.kind == RowKind::identity) return g + moved;
  if (law == RowLaw::linf) return (s != 0.0 ? s * plan.m : g) + moved;
  if (s == 0.0) return 0.0;
  if (law == RowLaw::entmax15) return s * (g - plan.m);
  return g - (law == RowLaw::exclusive ? t * s : s) * plan.m + moved;
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(row_gradient, proximal::RowGradientArgs)
}
