#pragma once

#include "transport/normalize_rows.h"

// The same steps in the log domain: l = ln K, f = ln u, g = ln v.
//
//     f_t = ln a − LSE_j(l + g_{t−1}),   g_t = ln b − LSE_i(l + f_t),   P = e^(l + f_T + g_T)
//
// and backwards, with ς = γ / b and ρ = φ / a,
//
//     φ −= e^(l + f_t + g_t) ς,   γ = −e^(l + f_t + g_{t−1})ᵀ ρ
//     ∂/∂l −= e^(l + f_t + g_t) ςᵀ + ρ e^(l + f_t + g_{t−1})

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

// Logarithms of the problem into `shifted`; k keeps the matrix that was given.
template <typename C>
void load_logarithms(const NormalizeArgs& args, const NormalizeShape& shape, int64_t problem,
                     RowProblem<C>* p) {
  load_values(args, shape, problem, p);
  const C* const from = p->k;
  C* const to = p->shifted;
  const bool logits = args.logits;
#pragma omp simd
  for (int64_t e = 0; e < p->n * p->ld; ++e) to[e] = logits ? from[e] : log_or_none(from[e]);
}

// e^(l_i + f_i + g) of a row.
template <typename C>
inline void plan_row(const C* l, C f, const C* g, int64_t ld, C* out) {
#pragma omp simd
  for (int64_t j = 0; j < ld; ++j) out[j] = exp_or_zero(l[j] + f + g[j]);
}

template <typename C>
void iterate_logarithms(const RowProblem<C>& p, bool keep, C* most) {
  const int n = p.n;
  const int64_t ld = p.ld;
  const C none = no_logit<C>();
  C *f = p.u, *g = p.v;
  C* const row = p.row;
  for (int i = 0; i < n; ++i) f[i] = p.a[i] == C(0) ? none : C(0);
  for (int64_t j = 0; j < ld; ++j) g[j] = p.b[j] == C(0) ? none : C(0);
  for (int t = 1; t <= p.n_iter; ++t) {
    C* const next_f = keep ? f + n : f;
    C* const next_g = keep ? g + ld : g;
    for (int i = 0; i < n; ++i) {
      const C* const l = p.shifted + i * ld;
#pragma omp simd
      for (int64_t j = 0; j < ld; ++j) row[j] = l[j] + g[j];
      const C top = largest(row, ld);
#pragma omp simd
      for (int64_t j = 0; j < ld; ++j) row[j] = exp_or_zero(row[j] - top);
      const C sum = sum_row(row, ld);
      next_f[i] = p.a[i] == C(0) ? none : log_or_none(p.a[i]) - (top + log_or_none(sum));
    }
    for (int64_t j = 0; j < ld; ++j) most[j] = none;
    for (int i = 0; i < n; ++i) {
      const C* const l = p.shifted + i * ld;
      const C here = next_f[i];
#pragma omp simd
      for (int64_t j = 0; j < ld; ++j) {
        const C x = l[j] + here;
        most[j] = x > most[j] ? x : most[j];
      }
    }
    for (int64_t j = 0; j < ld; ++j) most[j] = most[j] == none ? C(0) : most[j];
    sum_rows(n, ld, p.chunk, p.total, [&](int i) {
      const C* const l = p.shifted + i * ld;
      const C here = next_f[i];
#pragma omp simd
      for (int64_t j = 0; j < ld; ++j) row[j] = exp_or_zero(l[j] + here - most[j]);
      return row;
    });
    for (int64_t j = 0; j < ld; ++j)
      next_g[j] = p.b[j] == C(0) ? none : log_or_none(p.b[j]) - (most[j] + log_or_none(p.total[j]));
    f = next_f;
    g = next_g;
  }
}

template <typename C>
void normalize_logarithms(const NormalizeArgs& args, const NormalizeShape& shape) {
  parallel_for(args.count, 1, [&](int64_t begin, int64_t end) {
    const int64_t ld = padded_columns(shape.m);
    bool any = false;
    for (int64_t problem = begin; problem < end; ++problem) any = any || args.redo[problem] != 0;
    if (!any) return;
    RowSpace<C> space(row_problem_size(shape, 1) + ld);
    RowProblem<C> p = row_problem(args, shape, false, space);
    C* const most = space.take(ld);
    for (int64_t problem = begin; problem < end; ++problem) {
      if (args.redo[problem] == 0) continue;
      load_logarithms(args, shape, problem, &p);
      iterate_logarithms(p, false, most);
      for (int i = 0; i < p.n; ++i) {
        const C *l = p.shifted + i * ld, *g = p.v;
        C* const out = p.k + i * ld;
        const C f = p.u[i];
        if (args.log_output) {
#pragma omp simd
          for (int64_t j = 0; j < ld; ++j) out[j] = l[j] + f + g[j];
        } else {
          plan_row(l, f, g, ld, out);
        }
      }
      store_result(args, shape, p, problem);
    }
  });
}

template <typename C>
void descend_logarithms(const RowProblem<C>& p, const RowGradient<C>& d) {
  const int n = p.n;
  const int64_t ld = p.ld;
  C* const row = p.row;
  C *s = d.s, *r = d.r;
  for (int t = p.n_iter; t > 0; --t) {
    const C *f = p.u + t * n, *g = p.v + t * ld, *before = g - ld;
    for (int64_t j = 0; j < ld; ++j) {
      s[j] = d.gamma[j] * d.inverse_b[j];
      d.db[j] = d.db[j] + s[j];
    }
    for (int i = 0; i < n; ++i) {
      C* const slope = d.slope + i * ld;
      plan_row(p.shifted + i * ld, f[i], g, ld, row);
#pragma omp simd
      for (int64_t j = 0; j < ld; ++j) {
        row[j] = row[j] * s[j];
        slope[j] = slope[j] - row[j];
      }
      r[i] = (d.phi[i] - sum_row(row, ld)) * d.inverse_a[i];
      d.da[i] = d.da[i] + r[i];
      d.phi[i] = C(0);
    }
    sum_rows(n, ld, p.chunk, p.total, [&](int i) {
      C* const slope = d.slope + i * ld;
      const C factor = r[i];
      plan_row(p.shifted + i * ld, f[i], before, ld, row);
#pragma omp simd
      for (int64_t j = 0; j < ld; ++j) {
        row[j] = row[j] * factor;
        slope[j] = slope[j] - row[j];
      }
      return row;
    });
    for (int64_t j = 0; j < ld; ++j) d.gamma[j] = C(0) - p.total[j];
  }
}

template <typename C>
void normalize_logarithms_backward(const NormalizeBackwardArgs& all, const NormalizeShape& shape) {
  const NormalizeArgs& args = all.forward;
  parallel_for(args.count, 1, [&](int64_t begin, int64_t end) {
    const int64_t ld = padded_columns(shape.m);
    bool any = false;
    for (int64_t problem = begin; problem < end; ++problem) any = any || args.redo[problem] != 0;
    if (!any) return;
    RowSpace<C> space(row_problem_size(shape, args.n_iter + 1) +
                      row_gradient_size(shape, args.n_iter) + ld);
    RowProblem<C> p = row_problem(args, shape, true, space);
    const RowGradient<C> d = row_gradient(p, space);
    C* const most = space.take(ld);
    for (int64_t problem = begin; problem < end; ++problem) {
      if (args.redo[problem] == 0) continue;
      load_logarithms(args, shape, problem, &p);
      iterate_logarithms(p, true, most);
      const C *f = p.u + args.n_iter * p.n, *g = p.v + args.n_iter * ld;
      load_gradient(all, shape, p, problem, d.slope);
      begin_gradient(p, d);
      sum_rows(p.n, ld, p.chunk, d.gamma, [&](int i) {
        C* const slope = d.slope + i * ld;
        if (!args.log_output) {
          plan_row(p.shifted + i * ld, f[i], g, ld, p.row);
          for (int64_t j = 0; j < ld; ++j) slope[j] = slope[j] * p.row[j];
        }
        d.phi[i] = sum_row(slope, ld);
        return slope;
      });
      descend_logarithms(p, d);
      if (!args.logits)
        for (int64_t e = 0; e < p.n * ld; ++e)
          d.slope[e] = p.k[e] == C(0) ? C(0) : d.slope[e] / p.k[e];
      store_gradient(all, shape, p, d, problem);
    }
  });
}

}  // namespace
}  // namespace regkern::REGKERN_ISA
