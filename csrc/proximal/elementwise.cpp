#include "proximal/elementwise.h"

#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

// Elements of a call of a law: enough that the call costs nothing, and an int32 counts them.
constexpr int64_t kRun = 4096;

// y from x, n elements; how many are 0. t and shapes are an element's own where kVaried.
template <Law kLaw, bool kVaried, typename C>
int32_t shrink_run(const Point<C>& p, const C* x, const C* t, const C* shapes, int64_t n, C* y) {
  const C t0 = p.t, lam = p.lam, shape0 = p.shape;
  if (kVaried || !is_inside(t0, lam)) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
      y[i] = copysign(
          shrink<kLaw>(fabs(x[i]), kVaried ? t[i] : t0, lam, kVaried ? shapes[i] : shape0).r, x[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
      y[i] = copysign(shrink_inside<kLaw>(fabs(x[i]), t0, lam, shape0).r, x[i]);
  }
  // The run is in the first-level cache.
  const C low = p.low, high = p.high;
  if (low > -__builtin_inf() || high < __builtin_inf()) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = clamped(y[i], low, high);
  }
  int32_t zeros = 0;
#pragma omp simd reduction(+ : zeros)
  for (int64_t i = 0; i < n; ++i) zeros += y[i] == C(0) ? 1 : 0;
  return zeros;
}

template <typename C>
using Run = int32_t (*)(const Point<C>&, const C*, const C*, const C*, int64_t, C*);

template <typename C>
Run<C> run_of(Law law, bool varied) {
  Run<C> run = nullptr;
  dispatch_law(law, [&](auto constant) {
    constexpr Law kLaw = decltype(constant)::value;
    run = varied ? shrink_run<kLaw, true, C> : shrink_run<kLaw, false, C>;
  });
  return run;
}

// t and shape of n elements from e on; zeros behind, up to whole blocks.
template <typename C>
void load_varied(const Point<C>& p, const void* weights, const void* shapes, int64_t e, int64_t n,
                 C* t, C* shape) {
  const int64_t whole = (n + kBlock - 1) / kBlock * kBlock;
  if (weights != nullptr) {
    load_elements(static_cast<const C*>(weights) + e, n, t);
#pragma omp simd
    for (int64_t i = 0; i < whole; ++i) t[i] = p.t * t[i];
  } else {
    for (int64_t i = 0; i < whole; ++i) t[i] = p.t;
  }
  if (shapes != nullptr)
    load_elements(static_cast<const C*>(shapes) + e, n, shape);
  else
    for (int64_t i = 0; i < whole; ++i) shape[i] = p.shape;
}

template <typename T>
int64_t shrink_piece(const LawArgs& law, const ShrinkRow& row, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const Point<C> p = load_point<C>(law);
  const bool varied = row.weights != nullptr || row.shapes != nullptr;
  const Run<C> run = run_of<C>(law.law, varied);
  const T* x = static_cast<const T*>(row.x);
  T* y = static_cast<T*>(row.y);
  int64_t zeros = 0;
  if constexpr (std::is_same_v<T, C>) {
    if (!varied) {
      for (int64_t e = begin; e < end; e += kRun)
        zeros += run(p, x + e, nullptr, nullptr, end - e < kRun ? end - e : kRun, y + e);
      return zeros;
    }
  }
  constexpr int64_t kStep = kBlock * 4;
  C in[kStep], t[kStep], shape[kStep], out[kStep];
  for (int64_t e = begin; e < end; e += kStep) {
    const int64_t n = end - e < kStep ? end - e : kStep;
    load_elements(x + e, n, in);
    if (varied) load_varied(p, row.weights, row.shapes, e, n, t, shape);
    zeros += run(p, in, t, shape, n, out);
    store_elements(out, n, y + e);
  }
  return zeros;
}

template <Law kLaw, bool kVaried, typename C>
void gradient_run(const Point<C>& p, const C* g, const C* x, const C* t, const C* shapes, C* dx,
                  C* dt, C* dlam) {
  const Point<C> q = p;
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) {
    const ElementGradient<C> d =
        shrunk_gradient<kLaw>(q, g[i], x[i], kVaried ? t[i] : q.t, kVaried ? shapes[i] : q.shape);
    dx[i] = d.x;
    dt[i] = d.t;
    dlam[i] = d.lam;
  }
}

template <typename C>
using GradientRun = void (*)(const Point<C>&, const C*, const C*, const C*, const C*, C*, C*, C*);

template <typename T>
void gradient_as(const ProxElementwiseBackwardArgs& args) {
  using C = compute_t<T>;
  const Point<C> p = load_point<C>(args.law);
  GradientRun<C> runs[2] = {};
  dispatch_law(args.law.law, [&](auto constant) {
    constexpr Law kLaw = decltype(constant)::value;
    runs[0] = gradient_run<kLaw, false, C>;
    runs[1] = gradient_run<kLaw, true, C>;
  });
  static_assert(kSumBlock == kBlock);
  sum_spans<kShrinkSums, C>(
      args.rows, args.count, args.spans,
      [&](const ShrinkGradientRow& row, int64_t e, int64_t n, C(&v)[kShrinkSums][kSumBlock]) {
        C g[kBlock], x[kBlock], t[kBlock], shape[kBlock], dx[kBlock];
        load_elements(static_cast<const T*>(row.g) + e, n, g);
        load_elements(static_cast<const T*>(row.x) + e, n, x);
        const bool varied = row.weights != nullptr || row.shapes != nullptr;
        if (varied) load_varied(p, row.weights, row.shapes, e, n, t, shape);
        runs[varied](p, g, x, t, shape, dx, v[0], v[1]);
        store_elements(dx, n, static_cast<T*>(row.dx) + e);
        // Behind the end weights are 0, and an infinite t times 0 is no number.
        for (int64_t i = n; i < kBlock; ++i) v[0][i] = v[1][i] = C(0);
        if (row.dweights != nullptr) {
          C* dw = static_cast<C*>(row.dweights) + e;
          for (int64_t i = 0; i < n; ++i) dw[i] = v[0][i] * p.t;
        }
        if (row.weights != nullptr) {
          const C* w = static_cast<const C*>(row.weights) + e;
          for (int64_t i = 0; i < n; ++i) v[0][i] *= w[i];
        }
      });
  for (int k = 0; k < kShrinkSums; ++k)
    static_cast<C*>(args.out)[k] =
        static_cast<C>(total_of_spans(args.spans + k, 0, args.all_spans, kShrinkSums));
}

template <typename C>
using PenaltyRun = void (*)(const Point<C>&, const C*, const C*, C*, C*, C*);

template <Law kLaw, typename C>
void penalty_run(const Point<C>& p, const C* x, const C* w, C* value, C* by_lam, C* dx) {
  const C lam = p.lam, shape = p.shape, scale = p.t;
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) {
    const Penalised<C> out = penalty<kLaw>(fabs(x[i]), lam, shape);
    value[i] = w[i] * out.value;
    by_lam[i] = w[i] * out.by_lam;
    dx[i] = scale * (w[i] * (x[i] < C(0) ? -out.by_r : out.by_r));
  }
}

template <typename T>
void penalty_as(const PenaltyElementwiseArgs& args) {
  using C = compute_t<T>;
  const Point<C> p = load_point<C>(args.law);
  PenaltyRun<C> run = nullptr;
  dispatch_law(args.law.law,
               [&](auto constant) { run = penalty_run<decltype(constant)::value, C>; });
  const auto block = [&](const PenaltyRow& row, int64_t e, int64_t n,
                         C(&v)[kShrinkSums][kSumBlock]) {
    C x[kBlock], w[kBlock], dx[kBlock];
    load_elements(static_cast<const T*>(row.x) + e, n, x);
    for (int i = 0; i < kBlock; ++i) w[i] = i < n ? C(1) : C(0);
    if (row.weights != nullptr) load_elements(static_cast<const C*>(row.weights) + e, n, w);
    run(p, x, w, v[0], v[1], dx);
    for (int64_t i = n; i < kBlock; ++i) v[0][i] = v[1][i] = C(0);
    if (row.dx == nullptr) return;
    T* out = static_cast<T*>(row.dx) + e;
    if (args.accumulate) {
      C before[kBlock];
      load_elements(out, n, before);
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) dx[i] += before[i];
    }
    store_elements(dx, n, out);
  };
  sum_spans<kShrinkSums, C>(args.rows, args.count, args.spans, block);
  if (args.only_dx) return;
  for (int k = 0; k < kShrinkSums; ++k)
    static_cast<C*>(args.out)[k] =
        static_cast<C>(total_of_spans(args.spans + k, 0, args.all_spans, kShrinkSums));
}

}  // namespace

void prox_elementwise(const ProxElementwiseArgs& args, Context) {
  *args.zeros = 0;
  dispatch_floating(args.dtype, [&](auto zero) {
    parallel_for_list(args.rows, args.count, int64_t{1} << 15,
                      [&](const ShrinkRow& row, int64_t begin, int64_t end) {
                        const int64_t zeros =
                            shrink_piece<decltype(zero)>(args.law, row, begin, end);
                        __atomic_fetch_add(args.zeros, zeros, __ATOMIC_RELAXED);
                      });
  });
}

void prox_elementwise_backward(const ProxElementwiseBackwardArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { gradient_as<decltype(zero)>(args); });
}

void penalty_elementwise(const PenaltyElementwiseArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { penalty_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
