#include "proximal/latent_groups.h"

#include "core/math.h"
#include "core/parallel.h"
#include "core/square_sum.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 13;

// visit(group, begin, length): the groups of a colour, of which the parts begin at `begin`.
template <typename Visit>
void each_group(const LatentGroups& a, int64_t first, int64_t last, const Visit& visit) {
  const int64_t span = a.outer * a.inner;
  const int64_t grain = kGrain / (a.longest * span);
  parallel_for(last - first, grain > 0 ? grain : 1, [&](int64_t from, int64_t to) {
    for (int64_t g = first + from; g < first + to; ++g)
      visit(g, a.offsets[g], (a.offsets[g + 1] - a.offsets[g]) * span);
  });
}

// each(e, index) of a part's elements, in order.
template <typename Each>
inline void each_element(const LatentGroups& a, int64_t begin, int64_t length, const Each& each) {
  if (a.outer * a.inner == 1) {
    const int64_t* const members = a.members + begin;
    for (int64_t e = 0; e < length; ++e) each(e, members[e]);
    return;
  }
  int64_t e = 0;
  for (int64_t m = begin; e < length; ++m) {
    for (int64_t o = 0; o < a.outer; ++o) {
      const int64_t at = (o * a.n + a.members[m]) * a.inner;
      for (int64_t k = 0; k < a.inner; ++k) each(e++, at + k);
    }
  }
}

// Σ x_e y_e in the order of square_sum, in double.
template <typename X, typename Y>
inline double product_sum(const X* x, const Y* y, int64_t n) {
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSegment) {
    const int64_t left = n - begin;
    const X* const own = x + begin;
    const Y* const other = y + begin;
    total += segment_sum<double>(static_cast<int>(left < kSegment ? left : kSegment), [=](int i) {
      return static_cast<double>(own[i]) * static_cast<double>(other[i]);
    });
  }
  return total;
}

// A step of a group of P elements, a power of two, in registers.
template <int P, typename C>
inline void short_step(const LatentGroups& a, int64_t group, int64_t begin, C* steps) {
  double* const v = a.parts + begin;
  double* const rest = a.rest;
  const int64_t* const members = a.members + begin;
  double s[P], squares[P];
  for (int e = 0; e < P; ++e) s[e] = v[e] + rest[members[e]];
  if (steps != nullptr)
    for (int e = 0; e < P; ++e) steps[begin + e] = static_cast<C>(s[e]);
  for (int e = 0; e < P; ++e) squares[e] = s[e] * s[e];
  for (int half = P / 2; half > 0; half /= 2)
    for (int e = 0; e < half; ++e) squares[e] += squares[e + half];
  const double share = latent_share(regkern::sqrt(squares[0]), latent_threshold<C>(a, group));
  double left[P];
  for (int e = 0; e < P; ++e) left[e] = latent_rest(s[e], share);
  for (int e = 0; e < P; ++e) v[e] = share * s[e];
  for (int e = 0; e < P; ++e) rest[members[e]] = left[e];
}

template <typename C>
inline void step(const LatentGroups& a, int64_t group, int64_t begin, int64_t length, C* steps) {
  const int64_t span = a.outer * a.inner;
  if (span == 1) {
    if (length == 4) return short_step<4>(a, group, begin, steps);
    if (length == 8) return short_step<8>(a, group, begin, steps);
    if (length == 16) return short_step<16>(a, group, begin, steps);
  }
  double* const v = a.parts + begin * span;
  double* const rest = a.rest;
  each_element(a, begin, length, [=](int64_t e, int64_t i) { v[e] += rest[i]; });
  if (steps != nullptr)
    for (int64_t e = 0; e < length; ++e) steps[begin * span + e] = static_cast<C>(v[e]);
  const double norm = regkern::sqrt(square_sum(v, length));
  const double share = latent_share(norm, latent_threshold<C>(a, group));
  each_element(a, begin, length, [=](int64_t e, int64_t i) {
    const double s = v[e];
    v[e] = share * s;
    rest[i] = latent_rest(s, share);
  });
}

template <typename C>
inline void step_back(const LatentGroups& a, int64_t group, int64_t begin, int64_t length,
                      const C* steps, double* slope) {
  const int64_t span = a.outer * a.inner;
  double* const d = a.parts + begin * span;
  double* const rest = a.rest;
  const C* const s = steps + begin * span;
  each_element(a, begin, length, [=](int64_t e, int64_t i) { d[e] = rest[i] - d[e]; });
  const double along = product_sum(s, d, length), norm = regkern::sqrt(product_sum(s, s, length));
  const double threshold = latent_threshold<C>(a, group);
  *slope += latent_slope(norm, threshold, along);
  each_element(a, begin, length, [=](int64_t e, int64_t i) {
    const double both =
        latent_reverse(rest[i], d[e], static_cast<double>(s[e]), norm, threshold, along);
    d[e] = both;
    rest[i] = both;
  });
}

// each(o, i, at): the runs of `inner` elements of x that begin at `at`.
template <typename Each>
void each_run(const LatentGroups& a, const Each& each) {
  const int64_t grain = kGrain / a.inner;
  parallel_for(a.outer * a.n, grain > 0 ? grain : 1, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) each(run / a.n, run % a.n, run * a.inner);
  });
}

template <typename T>
void run(const LatentArgs& args) {
  using C = compute_t<T>;
  const LatentGroups& a = args.groups;
  const T* const x = static_cast<const T*>(args.x);
  T* const y = static_cast<T*>(args.y);
  double* const rest = a.rest;
  const int64_t span = a.outer * a.inner, all = a.all_members * span;
  each_run(a, [=](int64_t, int64_t, int64_t at) {
    for (int64_t k = 0; k < a.inner; ++k) rest[at + k] = static_cast<double>(widen(x[at + k]));
  });
  for (int64_t sweep = 0; sweep < a.sweeps; ++sweep) {
    C* const steps = args.steps == nullptr ? nullptr : static_cast<C*>(args.steps) + sweep * all;
    for (int64_t c = 0; c < a.colours; ++c)
      each_group(
          a, c > 0 ? a.ends[c - 1] : 0, a.ends[c],
          [&](int64_t g, int64_t begin, int64_t length) { step<C>(a, g, begin, length, steps); });
  }
  const bool still = *static_cast<const C*>(a.threshold) == C(0);
  each_run(a, [=](int64_t o, int64_t i, int64_t at) {
    const int64_t first = a.place_offsets[i], last = a.place_offsets[i + 1];
    for (int64_t k = 0; k < a.inner; ++k) {
      double sum = 0.0;
      for (int64_t p = first; p < last; ++p) sum += a.parts[a.places[p] * span + o * a.inner + k];
      if (still || first == last)
        y[at + k] = x[at + k];
      else
        narrow(static_cast<C>(sum), y + at + k);
    }
  });
}

template <typename T>
void run_back(const LatentBackwardArgs& args) {
  using C = compute_t<T>;
  const LatentGroups& a = args.groups;
  const T* const g = static_cast<const T*>(args.g);
  T* const dx = static_cast<T*>(args.dx);
  const int64_t span = a.outer * a.inner, all = a.all_members * span;
  each_run(a, [=](int64_t o, int64_t i, int64_t at) {
    for (int64_t k = 0; k < a.inner; ++k) {
      a.rest[at + k] = 0.0;
      for (int64_t p = a.place_offsets[i]; p < a.place_offsets[i + 1]; ++p)
        a.parts[a.places[p] * span + o * a.inner + k] = static_cast<double>(widen(g[at + k]));
    }
  });
  for (int64_t group = 0; group < a.groups; ++group) args.slopes[group] = 0.0;
  for (int64_t sweep = a.sweeps - 1; sweep >= 0; --sweep) {
    const C* const steps = static_cast<const C*>(args.steps) + sweep * all;
    for (int64_t c = a.colours - 1; c >= 0; --c)
      each_group(a, c > 0 ? a.ends[c - 1] : 0, a.ends[c],
                 [&](int64_t group, int64_t begin, int64_t length) {
                   step_back<C>(a, group, begin, length, steps, args.slopes + group);
                 });
  }
  each_run(a, [=](int64_t, int64_t i, int64_t at) {
    const bool alone = a.place_offsets[i] == a.place_offsets[i + 1];
    for (int64_t k = 0; k < a.inner; ++k) {
      if (alone)
        dx[at + k] = g[at + k];
      else
        narrow(static_cast<C>(a.rest[at + k]), dx + at + k);
    }
  });
}

}  // namespace

void latent_group_prox(const LatentArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { run<decltype(zero)>(args); });
}

void latent_group_prox_backward(const LatentBackwardArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { run_back<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
