#pragma once

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"
#include "transport/dense.h"
#include "transport/loop.h"
#include "transport/normalize.h"

// Sinkhorn's iteration on many small dense costs: all iterations of a problem in one kernel, and
// what they are is what transport/solve.h does, with the same errors and the same stops.
//
// A problem is in the scaling form around shifts φ of its potentials,
//
//     K_ij = e^((φ_i + ψ_j − C_ij)/ε),   y_i = a_i e^((f_i − φ_i)/ε),   x_j = b_j e^((g_j − ψ_j)/ε)
//     rows      s_i = Σ_j K_ij x_j,   f̂_i = φ_i − ε ln s_i,   y_i = a_i / s_i where rows are hard
//     columns   t_j = Σ_i K_ij y_i,   ĝ_j = ψ_j − ε ln t_j,   x_j = b_j / t_j where columns are
//
// so an iteration is two products. A product of which a sum is not within [kLeast, kMost], where
// what K rounds to zero might count, is done over: K is made again around the other side's
// potentials and this side's largest terms, which is the log-sum-exp of the log domain. Where a
// side is soft or over-relaxed its potentials are made in double in every iteration, and K again
// where one has left its shift by far.
//
// Problems are shifted, done over and stopped one by one, and what happens to one does not depend
// on those that a kernel has beside it. The order of sums is that of transport/normalize.h.

namespace regkern::transport {

constexpr int kSmallSide = 128;

struct SmallArgs {
  Dtype dtype;
  int64_t batch;
  int32_t n, m;  // up to kSmallSide
  int64_t max_iter, check_every;
  bool stops;    // at `tol`
  bool relaxed;  // by omega; a plain half-step of the columns then ends the solution
  double tol, omega;
  const void* cost;               // (B, n, m)
  const double *a, *b;            // (B, n), (B, m), or null: 1 / n, 1 / m
  const double *eps, *rho;        // (B), (2, B) or null: both sides are hard
  const double *f_from, *g_from;  // (B, n), (B, m): where to begin, or null
  double *f, *g;
  double *value, *error;  // (B)
  int32_t* iterations;    // (B)
  int8_t* status;         // (B)
  void* space;            // used on the GPU
};

// Sums between these are exact but for rounding: scalings are within the same range, and what K
// rounds to zero, e⁻⁸⁷ or e⁻⁷⁰⁰, times their product is not seen. kFar is their logarithm.
template <typename C>
struct SumRange;
template <>
struct SumRange<float> {
  static constexpr float kLeast = 9.0949470177e-13f, kMost = 1.0995116278e12f;  // 2^±40
  static constexpr double kFar = 27.0;
};
template <>
struct SumRange<double> {
  static constexpr double kLeast = 1e-90, kMost = 1e90;
  static constexpr double kFar = 200.0;
};

// One side of the problems that are solved together; of W problems, point i of problem l is at
// i W + l.
template <typename C>
struct SmallSide {
  int size;
  C* weight;   // 0 of points that take no part
  C* pad;      // 1 of those, whose sums are 0
  C* scaling;  // x or y
  C* sum;
  C* shift;
  double* mass;       // the weights that were given
  double* potential;  // of a plain side only where it is asked for
};

// What every problem has once.
template <int W>
struct SmallLanes {
  double eps[W], damping[2][W], rho[2][W], error[W], value[W], totals[W];
  int32_t plain[2][W];  // hard and not relaxed
  int32_t done[W], flags[W], iterations[W], status[W];
  int32_t far[W];  // a potential has left its shift by far
};

// Of a pair of arrays; not an index, for which a thread's arrays would have to lie in memory.
template <typename X, int W>
REGKERN_HD X pick(const X (&pair)[2][W], int k, int l) {
  return k == 0 ? pair[0][l] : pair[1][l];
}

// e^x of an element of K.
template <typename C>
REGKERN_HD C small_power(C row, C cost, C column, C unit) {
  return exp_or_zero(((row - cost) + column) * unit);
}

// ln x; what is infinite or NaN stays.
REGKERN_HD double finite_log(double x) {
  const bool plain = is_finite(x);
  return choose(plain, regkern::log(choose(plain, x, 1.0)), x);
}

// The same of a sum or a ratio of sums: of a float the exponent apart, so that the rounding of a
// logarithm far from 0 is not seen.
REGKERN_HD double ratio_log(double x) { return finite_log(x); }
REGKERN_HD double ratio_log(float x) {
  const bool plain = is_finite(x);
  const uint32_t bits = bit_cast<uint32_t>(choose(plain, x, 1.0f)) - 0x3F3504F3u;  // √½
  const double exponent = static_cast<double>(static_cast<int32_t>(bits) >> 23);
  const float mantissa = bit_cast<float>((bits & 0x007FFFFFu) + 0x3F3504F3u);
  const double found = exponent * 0.6931471805599453 + static_cast<double>(regkern::log(mantissa));
  return choose(plain, found, static_cast<double>(x));
}

// eˣ − 1 for |x| ≤ 700: near 0 by its series, where a difference would cancel.
REGKERN_HD double expm1(double x) {
  const bool near = x < 0.5 && x > -0.5;
  const double r = choose(near, x, 0.0);
  double series = 1.0;
  for (int n = 16; n > 1; --n) series = series * r * (1.0 / n) + 1.0;
  return choose(near, r * series, regkern::exp(x) - 1.0);
}

// What a unit of mass at a potential adds to the dual: f, or ρ (1 − e^(−f/ρ)).
REGKERN_HD double conjugate_of(double potential, double rho) {
  const bool hard = !is_finite(rho);
  const double soft = -rho * transport::expm1(-potential / choose(hard, 1.0, rho));
  return choose(hard, potential, soft);
}

// The shift of a flagged point by the largest of its terms: one that has none takes no part.
template <typename C>
REGKERN_HD void set_peak(const SmallSide<C>& side, int at, bool flagged, C most) {
  const bool none = most == -static_cast<C>(__builtin_inf());
  const C weight = choose(none, C(0), static_cast<C>(side.mass[at]));
  side.weight[at] = choose(flagged, weight, side.weight[at]);
  side.pad[at] = choose(flagged, choose(weight == C(0), C(1), C(0)), side.pad[at]);
  side.shift[at] = choose(flagged, choose(none, C(0), -most), side.shift[at]);
}

// Of the terms that reach a point from the other side, the largest in the lane; −∞ of none.
REGKERN_CALLS_ARGUMENT
template <int W, typename C, typename F>
REGKERN_HD C largest_term(const SmallSide<C>& other, int l, F cost) {
  const C none = -static_cast<C>(__builtin_inf());
  C most = none;
  for (int o = 0; o < other.size; ++o) {
    const int at = o * W + l;
    const C term = choose(other.scaling[at] > C(0), other.shift[at] - cost(o), none);
    most = choose(term > most, term, most);
  }
  return most;
}

// The soft c-transform of the other side's potentials at a point, whatever its weight.
REGKERN_CALLS_ARGUMENT
template <int W, typename C, typename F>
REGKERN_HD double small_softmin(const SmallSide<C>& other, int l, C unit, double eps, F cost) {
  const C most = largest_term<W>(other, l, cost);
  C sum = C(0);
  for (int o = 0; o < other.size; ++o) {
    const int at = o * W + l;
    const C term = exp_or_zero(((other.shift[at] - cost(o)) - most) * unit);
    const bool there = other.scaling[at] > C(0) || term != term;
    sum = sum + choose(there, other.scaling[at] * term, C(0));
  }
  const double nobody = static_cast<double>(__builtin_inf());
  if (most == -static_cast<C>(__builtin_inf())) return nobody;
  return -static_cast<double>(most) - eps * finite_log(static_cast<double>(sum));
}

// The functions of the solver are compiled as they are on the CPU, where a kernel's own types keep
// them local, and for the device with nvcc.
#if defined(__CUDACC__)
#define REGKERN_SMALL __device__ __forceinline__
#else
#define REGKERN_SMALL
#endif
#if defined(__CUDA_ARCH__)
#define REGKERN_ONCE _Pragma("unroll 1")
#define REGKERN_BOTH _Pragma("unroll")
#else
#define REGKERN_ONCE
#define REGKERN_BOTH
#endif

// `Work` has W problems, in the lanes of a vector, or one, of a thread or a team of threads:
//     Number, kLanes               the type, W
//     kPasses, kSpans              whether there is a pass(), a span()
//     problem(l), of(k), store()   the problem of a lane; side k, rows or columns; the end of it
//     points(size, f)              f(at, l) for all points of a side, seen by all afterwards
//     any(size, f)                 lanes.flags[l] = f(at, l) for any; whether one is set
//     any_lane()                   whether one of lanes.flags is
//     total(size)                  lanes.totals[l] = Σ terms[at], by index
//     sum(size, f)                 the same of terms[at] = f(at, l)
//     sums(k)                      the sums of a side
//     plain(k)                     its scalings by them, and whether they hold
//     pass()                       plain(0), and the sums of the columns if `true` is returned
//     span(t)                      t iterations of plain sides if their sums hold, and else nothing
//     whole()                      of a Work that has spans: all of a solution in which nothing
//                                  happens, and else nothing
//     peaks(k)                     shift, weight and pad of a side by its largest terms
//     build()                      K of the flagged lanes
//     softmin(k, at, l)            a point's soft c-transform, whatever its weight
template <typename Work>
class SmallSolver {
  using C = typename Work::Number;
  using Range = SumRange<C>;
  static constexpr int W = Work::kLanes;

 public:
  REGKERN_SMALL SmallSolver(Work& work, const SmallArgs& args)
      : work_(work), args_(args), lanes_(work.lanes) {}

  REGKERN_SMALL void run() {
    int64_t slow_until = 0, patience = 8;
    if constexpr (Work::kSpans) {
      const bool begun = args_.f_from != nullptr || args_.g_from != nullptr;
      const bool soft = args_.rho != nullptr || args_.relaxed || args_.omega != 1.0;
      if (!begun && !soft && !args_.stops && args_.max_iter > 0) {
        if (work_.whole()) return;
        slow_until = patience;
      }
    }
    load();
    start();
    bool goes_on = true;
    for (int64_t t = 1; t <= args_.max_iter && goes_on; ++t) {
      if constexpr (Work::kSpans) {
        const int64_t span = t > slow_until ? undisturbed(t) : 0;
        if (span > 0 && work_.span(span)) {
          count(t + span - 1);
          t += span - 1;
          continue;
        }
        // Potentials that move far at first are at rest later.
        if (span > 0) {
          slow_until = t + patience;
          patience *= 2;
        }
      }
      const bool due = args_.stops && t % args_.check_every == 0;
      REGKERN_ONCE
      for (int k = 0; k < 2; ++k) half(k, due, false);
      count(t);
      if (due) goes_on = judge();
    }
    finish();
  }

 private:
  REGKERN_SMALL void count(int64_t t) {
    for (int l = 0; l < W; ++l)
      if (!lanes_.done[l]) lanes_.iterations[l] = static_cast<int32_t>(t);
  }

  // How many iterations there are from t on of plain half-steps alone.
  REGKERN_SMALL int64_t undisturbed(int64_t t) const {
    if (general_[0] || general_[1]) return 0;
    const int64_t left = args_.max_iter - t + 1, rest = (t - 1) % args_.check_every;
    if (!args_.stops || left < args_.check_every - rest) return left;
    return args_.check_every - rest - 1;
  }

  REGKERN_SMALL void load() {
    for (int l = 0; l < W; ++l) {
      const int64_t p = work_.problem(l);
      lanes_.eps[l] = args_.eps[p];
      REGKERN_BOTH
      for (int k = 0; k < 2; ++k) {
        lanes_.rho[k][l] = args_.rho != nullptr ? args_.rho[k * args_.batch + p]
                                                : static_cast<double>(__builtin_inf());
        lanes_.damping[k][l] = damping_of(lanes_.rho[k][l], lanes_.eps[l]);
        lanes_.plain[k][l] = !is_finite(lanes_.rho[k][l]) && args_.omega == 1.0;
      }
      lanes_.far[l] = 0;
      lanes_.done[l] = 0;
      lanes_.iterations[l] = 0;
      lanes_.status[l] = kStopped;
      lanes_.error[l] = static_cast<double>(__builtin_inf());
    }
    REGKERN_BOTH
    for (int k = 0; k < 2; ++k) {
      for (int l = 0; l < W; ++l) lanes_.flags[l] = !lanes_.plain[k][l];
      general_[k] = work_.any_lane();
      const SmallSide<C> side = work_.of(k);
      const double* const mass = k == 0 ? args_.a : args_.b;
      const double* const from = k == 0 ? args_.f_from : args_.g_from;
      const double uniform = 1.0 / side.size;
      Work& work = work_;
      if (mass != nullptr)
        work_.points(side.size, [=, &work](int at, int l) {
          side.mass[at] = mass[work.problem(l) * side.size + at / W];
        });
      else
        work_.points(side.size, [=](int at, int) { side.mass[at] = uniform; });
      if (from != nullptr)
        work_.points(side.size, [=, &work](int at, int l) {
          side.potential[at] = from[work.problem(l) * side.size + at / W];
        });
      else
        work_.points(side.size, [=](int at, int) { side.potential[at] = 0.0; });
      work_.points(side.size, [=](int at, int) {
        side.weight[at] = static_cast<C>(side.mass[at]);
        side.pad[at] = choose(side.weight[at] == C(0), C(1), C(0));
        side.scaling[at] = choose(k == 0, C(0), side.weight[at]);
        side.shift[at] = C(0);
        side.sum[at] = C(1);
      });
    }
  }

  // K around potentials of columns to begin with.
  REGKERN_SMALL void start() {
    flag_all();
    const bool by_rows = args_.f_from != nullptr && args_.g_from == nullptr;
    if (by_rows) {
      shift_to_potentials(0);
      work_.peaks(1);
      work_.build();
      work_.sums(1);
      const SmallSide<C> columns = work_.of(1);
      SmallLanes<W>& lanes = lanes_;
      work_.points(columns.size, [=, &lanes](int at, int l) {
        columns.potential[at] = transformed(lanes, columns, at, l);
      });
    }
    if (by_rows || args_.g_from != nullptr) shift_to_potentials(1);
    const SmallSide<C> rows = work_.of(0);
    work_.points(rows.size, [=](int at, int) { rows.scaling[at] = C(0); });
    work_.peaks(0);
    work_.build();
    // The scalings of rows that no iteration will make.
    if (args_.max_iter == 0) scale(0);
  }

  REGKERN_SMALL void flag_all() {
    for (int l = 0; l < W; ++l) lanes_.flags[l] = 1;
  }

  // f̂ or ĝ, from a sum.
  REGKERN_HD static double transformed(const SmallLanes<W>& lanes, const SmallSide<C>& side, int at,
                                       int l) {
    const double raw =
        static_cast<double>(side.shift[at]) - lanes.eps[l] * ratio_log(side.sum[at] + side.pad[at]);
    return choose(side.weight[at] == C(0), static_cast<double>(__builtin_inf()), raw);
  }

  // Potentials of the flagged lanes of a plain side, where there has been an iteration.
  REGKERN_SMALL void recall(int k) {
    const SmallSide<C> side = work_.of(k);
    SmallLanes<W>& lanes = lanes_;
    work_.points(side.size, [=, &lanes](int at, int l) {
      const bool here = lanes.flags[l] && pick(lanes.plain, k, l) && side.scaling[at] != C(0);
      const C ratio = side.scaling[at] / side.weight[at];
      const double found =
          static_cast<double>(side.shift[at]) + lanes.eps[l] * ratio_log(choose(here, ratio, C(1)));
      side.potential[at] = choose(here, found, side.potential[at]);
    });
  }

  // Scalings of the flagged lanes from potentials and shifts.
  REGKERN_SMALL void scale(int k) {
    const SmallSide<C> side = work_.of(k);
    SmallLanes<W>& lanes = lanes_;
    work_.points(side.size, [=, &lanes](int at, int l) {
      const double f = side.potential[at], infinity = static_cast<double>(__builtin_inf());
      const double apart = (f - static_cast<double>(side.shift[at])) / lanes.eps[l];
      // An infinite potential to begin with is no potential.
      const double held = choose(f == infinity || f == -infinity, 0.0, apart);
      const C scaling = side.weight[at] * static_cast<C>(regkern::exp(held));
      const bool none = side.weight[at] == C(0);
      side.scaling[at] = choose(lanes.flags[l] != 0, choose(none, C(0), scaling), side.scaling[at]);
    });
  }

  REGKERN_SMALL void shift_to_potentials(int k) {
    const SmallSide<C> side = work_.of(k);
    SmallLanes<W>& lanes = lanes_;
    work_.points(side.size, [=, &lanes](int at, int l) {
      side.shift[at] = choose(lanes.flags[l] != 0, shift_of<C>(side.potential[at]), side.shift[at]);
    });
    scale(k);
  }

  // K of the flagged lanes around the largest terms of side k, and the other's potentials.
  REGKERN_SMALL void center(int k) {
    recall(0);
    recall(1);
    shift_to_potentials(1 - k);
    work_.peaks(k);
    scale(k);
    work_.build();
  }

  // A half-step of side k. At the end, all lanes have one, columns without relaxation and rows
  // nothing but their sums.
  REGKERN_SMALL void half(int k, bool due, bool end) {
    const bool general = k == 0 ? general_[0] : general_[1];
    const bool plain = !general && !end && !(due && k == 1);
    bool flagged = false;
    if (general_[0] || general_[1]) {
      for (int l = 0; l < W; ++l) {
        lanes_.flags[l] = lanes_.far[l];
        lanes_.far[l] = 0;
      }
      flagged = work_.any_lane();
    }
    bool has_scalings = plain;
    REGKERN_ONCE
    for (int round = 0; round < 2; ++round) {
      if (flagged) center(k);
      bool held;
      if (Work::kPasses && plain && k == 0) {
        held = has_sums_ = work_.pass() || round == 1;
      } else if (has_sums_ && !flagged) {
        has_scalings = has_sums_ = false;
        held = holds(k, end);
      } else if (plain) {
        has_scalings = true;
        held = work_.plain(k);
      } else {
        work_.sums(k);
        held = holds(k, end);
      }
      if (held) break;
      flagged = true;
    }
    if (k == 1) has_sums_ = false;
    if (due && k == 1) errors(1);
    if (!has_scalings && !(end && k == 0)) update(k, general, end);
    if (due && k == 0) errors(0);
  }

  // Whether the sums of side k hold, in all lanes that are not done, or in all at the end.
  REGKERN_SMALL bool holds(int k, bool end) {
    const SmallSide<C> side = work_.of(k);
    SmallLanes<W>& lanes = lanes_;
    return !work_.any(side.size, [=, &lanes](int at, int l) {
      const C sum = side.sum[at] + side.pad[at];
      return (sum < Range::kLeast || sum > Range::kMost) && (end || lanes.done[l] == 0);
    });
  }

  // Adds the violations of a side to the error: of the rows after their half-step, of the columns
  // before it.
  REGKERN_SMALL void errors(int k) {
    const SmallSide<C> side = work_.of(k);
    SmallLanes<W>& lanes = lanes_;
    double* const terms = work_.terms;
    const bool general = k == 0 ? general_[0] : general_[1];
    // Where a row side is general its half-step has made the terms: K may be another one by now.
    if (k == 1 || !general) {
      work_.points(side.size, [=, &lanes](int at, int l) {
        const double mass = side.mass[at];
        const bool none = side.weight[at] == C(0);
        const double has = static_cast<double>(side.scaling[at]) *
                           static_cast<double>(side.sum[at]) /
                           static_cast<double>(choose(none, C(1), side.weight[at]));
        double term = choose(none, mass, k == 0 ? 0.0 : mass * regkern::fabs(has - 1.0));
        if (general && !pick(lanes.plain, k, l))
          term = violation(mass, side.potential[at], transformed(lanes, side, at, l), lanes.eps[l],
                           pick(lanes.rho, k, l));
        terms[at] = term;
      });
    }
    work_.total(side.size);
    for (int l = 0; l < W; ++l)
      lanes_.error[l] =
          lanes_.done[l] ? lanes_.error[l] : (k == 0 ? 0.0 : lanes_.error[l]) + lanes_.totals[l];
  }

  // The new scalings and potentials of a side.
  REGKERN_SMALL void update(int k, bool general, bool end) {
    const double omega = end ? 1.0 : args_.omega;
    const SmallSide<C> side = work_.of(k);
    SmallLanes<W>& lanes = lanes_;
    double* const terms = work_.terms;
    if (!general) {
      work_.points(side.size, [=, &lanes](int at, int l) {
        const C scaling = side.weight[at] / (side.sum[at] + side.pad[at]);
        side.scaling[at] = choose(lanes.done[l] && !end, side.scaling[at], scaling);
      });
      return;
    }
    work_.points(side.size, [=, &lanes](int at, int l) {
      const bool plain = pick(lanes.plain, k, l) != 0, none = side.weight[at] == C(0);
      const bool kept = lanes.done[l] && !end;
      const double eps = lanes.eps[l], raw = transformed(lanes, side, at, l);
      const double next = relaxed(side.potential[at], raw, pick(lanes.damping, k, l), omega);
      const double apart = (next - static_cast<double>(side.shift[at])) / eps;
      const C soft = side.weight[at] * static_cast<C>(regkern::exp(apart));
      const C hard = side.weight[at] / (side.sum[at] + side.pad[at]);
      const C scaling = choose(none, C(0), choose(plain, hard, soft));
      const double lone = none ? side.mass[at] : 0.0;
      terms[at] = plain ? lone : violation(side.mass[at], next, raw, eps, pick(lanes.rho, k, l));
      side.scaling[at] = choose(kept, side.scaling[at], scaling);
      side.potential[at] = choose(kept || plain, side.potential[at], next);
    });
    const double far = Range::kFar;
    const bool again = work_.any(side.size, [=, &lanes](int at, int l) {
      const double apart =
          (side.potential[at] - static_cast<double>(side.shift[at])) / lanes.eps[l];
      return !pick(lanes.plain, k, l) && side.weight[at] != C(0) && (apart > far || apart < -far) &&
             (end || lanes.done[l] == 0);
    });
    if (again)
      for (int l = 0; l < W; ++l) lanes_.far[l] = lanes_.flags[l];
  }

  // What the errors say; false where all lanes of all teams are done.
  REGKERN_SMALL bool judge() {
    masses(0);
    for (int l = 0; l < W; ++l) {
      lanes_.flags[l] = 0;
      if (lanes_.done[l]) continue;
      const double mass = lanes_.totals[l];
      lanes_.error[l] = lanes_.error[l] / (mass > 0.0 ? mass : 1.0);
      if (lanes_.error[l] < args_.tol) lanes_.status[l] = kConverged;
      if (lanes_.error[l] != lanes_.error[l]) lanes_.status[l] = kBroken;
      lanes_.done[l] = lanes_.status[l] != kStopped;
      lanes_.flags[l] = !lanes_.done[l];
    }
    return work_.any_lane();
  }

  REGKERN_SMALL void masses(int k) {
    const SmallSide<C> side = work_.of(k);
    work_.sum(side.size, [=](int at, int) { return side.mass[at]; });
  }

  // Potentials of points without weight, which the iteration left out.
  REGKERN_SMALL void complete(int k) {
    const SmallSide<C> side = work_.of(k);
    SmallLanes<W>& lanes = lanes_;
    const bool some = work_.any(side.size, [=](int at, int) { return side.weight[at] == C(0); });
    if (!some) return;
    Work& work = work_;
    work_.points(side.size, [=, &lanes, &work](int at, int l) {
      if (side.weight[at] == C(0))
        side.potential[at] = pick(lanes.damping, k, l) * work.softmin(k, at, l);
    });
  }

  // Of the flagged lanes: ⟨a, φ(f)⟩ + ⟨b, φ(g)⟩ − ε (ΣP − Σa Σb), with infinite potentials.
  REGKERN_SMALL void unusual_values(const double (&ours)[W], const double (&theirs)[W]) {
    double shift[W], found[W];
    for (int l = 0; l < W; ++l) {
      shift[l] = lanes_.totals[l];
      found[l] = 0.0;
    }
    SmallLanes<W>& lanes = lanes_;
    REGKERN_ONCE
    for (int part = 0; part < 3; ++part) {
      const int k = part == 0 ? 0 : 1;
      const SmallSide<C> side = work_.of(k);
      const double *by = shift, sign = k == 0 ? 1.0 : -1.0;
      work_.sum(side.size, [=, &lanes](int at, int l) {
        const double rho = pick(lanes.rho, k, l), mass = side.mass[at];
        const double f = side.potential[at] + sign * by[l];
        const bool hard = !is_finite(rho);
        const double wanted = mass * regkern::exp(choose(hard, 0.0, -f / rho));
        const double term = part < 2 ? mass * conjugate_of(f, rho) : wanted;
        return choose(mass == 0.0, 0.0, term);
      });
      for (int l = 0; l < W; ++l) {
        if (part < 2)
          found[l] = found[l] + lanes_.totals[l];
        else if (lanes_.flags[l])
          lanes_.value[l] = found[l] - lanes_.eps[l] * (lanes_.totals[l] - ours[l] * theirs[l]);
      }
    }
    for (int l = 0; l < W; ++l) lanes_.totals[l] = shift[l];
  }

  REGKERN_SMALL void finish() {
    REGKERN_ONCE
    for (int k = 1; k >= 0; --k) {
      if (k == 0) {
        flag_all();
        recall(0);
        recall(1);
        if (args_.max_iter > 0 || args_.relaxed) complete(1);
      }
      if (k == 0 || args_.relaxed) half(k, false, true);
    }
    const SmallSide<C> rows = work_.of(0), columns = work_.of(1);
    SmallLanes<W>& lanes = lanes_;
    const double infinity = static_cast<double>(__builtin_inf());
    for (int l = 0; l < W; ++l) lanes_.flags[l] = is_finite(lanes_.rho[0][l]);
    const bool soft_rows = work_.any_lane();
    const auto has = [=](int at) {
      const C weight = choose(rows.weight[at] == C(0), C(1), rows.weight[at]);
      return static_cast<double>(rows.scaling[at]) * static_cast<double>(rows.sum[at]) /
             static_cast<double>(weight);
    };
    if (!soft_rows)
      work_.sum(rows.size, [=](int at, int) {
        const double mass = rows.mass[at];
        return choose(rows.weight[at] == C(0), mass, mass * regkern::fabs(has(at) - 1.0));
      });
    else
      work_.sum(rows.size, [=, &lanes](int at, int l) {
        const double mass = rows.mass[at], rho = lanes.rho[0][l];
        const bool hard = !is_finite(rho), none = rows.weight[at] == C(0);
        const double wants = regkern::exp(choose(hard, 0.0, -rows.potential[at] / rho));
        const double missed = mass * regkern::fabs(has(at) - choose(hard, 1.0, wants));
        return choose(none, choose(hard, mass, 0.0), missed);
      });
    int32_t broken[W];
    for (int l = 0; l < W; ++l) {
      lanes_.error[l] = lanes_.totals[l];
      broken[l] = 0;
    }
    complete(0);
    bool odd = false;
    REGKERN_ONCE
    for (int k = 0; k < 2; ++k) {
      const SmallSide<C> side = work_.of(k);
      const bool some =
          work_.any(side.size, [=](int at, int) { return !is_finite(side.potential[at]); });
      odd = odd || some;
    }
    if (odd) {
      // Hard points without partners.
      work_.sum(columns.size, [=, &lanes](int at, int l) {
        const bool lone = !is_finite(lanes.rho[1][l]) && columns.potential[at] == infinity;
        return choose(lone, columns.mass[at], 0.0);
      });
      work_.any(rows.size, [=, &lanes](int at, int l) {
        return !is_finite(lanes.rho[0][l]) && rows.mass[at] != 0.0 &&
               rows.potential[at] == infinity;
      });
      for (int l = 0; l < W; ++l) {
        broken[l] = lanes_.totals[l] > 0.0 || lanes_.flags[l];
        lanes_.error[l] = lanes_.error[l] + lanes_.totals[l];
      }
    }
    double mass[2][W] = {}, dual[2][W] = {};
    REGKERN_BOTH
    for (int k = 0; k < 2; ++k) {
      const SmallSide<C> side = work_.of(k);
      masses(k);
      for (int l = 0; l < W; ++l) (k == 0 ? mass[0] : mass[1])[l] = lanes_.totals[l];
      work_.sum(side.size, [=](int at, int) {
        const bool there = side.mass[at] != 0.0 && is_finite(side.potential[at]);
        return choose(there, side.mass[at] * side.potential[at], 0.0);
      });
      for (int l = 0; l < W; ++l) (k == 0 ? dual[0] : dual[1])[l] = lanes_.totals[l];
    }
    // The plan's mass is that of its columns, which are exact.
    for (int l = 0; l < W; ++l) {
      const bool hard = !is_finite(lanes_.rho[0][l]) && !is_finite(lanes_.rho[1][l]);
      const double ours = mass[0][l], theirs = mass[1][l], both = ours + theirs;
      const double error = lanes_.error[l] / (ours > 0.0 ? ours : 1.0);
      lanes_.error[l] = error;
      if (args_.stops && error < args_.tol) lanes_.status[l] = kConverged;
      if (!is_finite(error) || broken[l]) lanes_.status[l] = kBroken;
      const double shift = hard && both > 0.0 ? (dual[1][l] - dual[0][l]) / both : 0.0;
      lanes_.totals[l] = shift;
      lanes_.value[l] = (dual[0][l] + shift * ours) + (dual[1][l] - shift * theirs) -
                        lanes_.eps[l] * (theirs - ours * theirs);
      lanes_.flags[l] = !hard || !is_finite(error) || broken[l];
    }
    if (work_.any_lane()) unusual_values(mass[0], mass[1]);
    work_.store();
  }

  Work& work_;
  const SmallArgs& args_;
  SmallLanes<W>& lanes_;
  bool general_[2] = {}, has_sums_ = false;
};

// ---- what the GPU works in ----

REGKERN_HD bool has_short_sides(const SmallArgs& args) {
  return args.n <= kNormalizeSide && args.m <= kNormalizeSide;
}
REGKERN_HD int64_t small_element(const SmallArgs& args) {
  return args.dtype == Dtype::float64 ? 8 : 4;
}
// Threads that have rows want these an odd number of elements apart.
REGKERN_HD int64_t small_stride(const SmallArgs& args) {
  return has_short_sides(args) ? args.m | 1 : args.m;
}
REGKERN_HD int64_t small_matrix(const SmallArgs& args) { return args.n * small_stride(args); }
// Bytes of a problem's points, and of the parts of the columns' sums.
REGKERN_HD int64_t small_points(const SmallArgs& args) {
  const int64_t n = args.n, m = args.m, chunks = (n + kNormalizeRows - 1) / kNormalizeRows;
  const int64_t doubles = 2 * (n + m) + (n > m ? n : m);
  return (doubles * 8 + (5 * (n + m) + chunks * m) * small_element(args) + 15) / 16 * 16;
}
REGKERN_HD int64_t small_bytes(const SmallArgs& args) {
  return small_points(args) + (small_matrix(args) * small_element(args) + 15) / 16 * 16;
}
REGKERN_HD bool fits_shared(const SmallArgs& args) {
  return has_short_sides(args) || small_bytes(args) <= kNormalizeShared;
}
REGKERN_HD int64_t small_teams(const SmallArgs& args) {
  const int64_t most = has_short_sides(args) ? kShortTeams : kLongTeams;
  return args.batch < most ? args.batch : most;
}
// Doubles besides shared memory.
REGKERN_HD int64_t small_space(const SmallArgs& args) {
  return fits_shared(args) ? 0 : small_teams(args) * small_matrix(args);
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(transport_small, transport::SmallArgs)
}  // namespace regkern
