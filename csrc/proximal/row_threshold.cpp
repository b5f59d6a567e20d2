#include "proximal/row_threshold.h"

#include "core/parallel.h"
#include "proximal/compact.h"
#include "proximal/slice_rows.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 15;  // elements

template <typename C>
RowTop<C> top_of(const C* v, int64_t n, bool ordered) {
  row_bits_t<C> magnitude = 0;
  if (!ordered) {
#pragma omp simd reduction(max : magnitude)
    for (int64_t i = 0; i < n; ++i) {
      const row_bits_t<C> bits = magnitude_bits(v[i]);
      magnitude = bits > magnitude ? bits : magnitude;
    }
    return {magnitude, kLowestOrdered<C>};
  }
  row_bits_t<C> most = kLowestOrdered<C>;
#pragma omp simd reduction(max : magnitude) reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    const row_bits_t<C> bits = magnitude_bits(v[i]);
    const row_bits_t<C> order = ordered_bits<C>(bit_cast<row_bits_t<C>>(v[i]));
    magnitude = bits > magnitude ? bits : magnitude;
    most = order > most ? order : most;
  }
  return {magnitude, most};
}

// ---- sums over all that is given ----

template <bool kMagnitude>
int64_t narrow_sum(const float* v, int64_t n, float scale) {
  constexpr int kLanes = 32, kSteps = 4;
  int64_t total = 0, i = 0;
  for (; i + kLanes * kSteps <= n; i += kLanes * kSteps) {
    int32_t lanes[kLanes] = {};
    for (int step = 0; step < kSteps; ++step) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const float x = v[i + step * kLanes + l];
        lanes[l] += narrow_term(kMagnitude && x < 0.0f ? -x : x, scale);
      }
    }
    int64_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int l = 0; l < kLanes; ++l) sum += lanes[l];
    total += sum;
  }
  for (; i < n; ++i) total += narrow_term(kMagnitude && v[i] < 0.0f ? -v[i] : v[i], scale);
  return total;
}

template <bool kMagnitude, typename C>
double wide_sum(const C* v, int64_t n, double scale) {
  WideSum sum;
  for (int64_t i = 0; i < n; ++i) {
    const auto x = static_cast<double>(v[i]);
    sum.add((kMagnitude && x < 0.0 ? -x : x) * scale);
  }
  return sum.value() / scale;
}

template <bool kMagnitude, typename C>
double sum_of(const C* v, int64_t n, C bound) {
  const double scale = inverse_power(static_cast<double>(bound));
  if constexpr (sizeof(C) == 4)
    if (narrow_sum_holds(bound)) {
      const float fine = static_cast<float>(scale * (int64_t{1} << kNarrowBits));
      return static_cast<double>(narrow_sum<kMagnitude>(v, n, fine)) / static_cast<double>(fine);
    }
  return wide_sum<kMagnitude>(v, n, scale);
}

// ---- solvers ----

template <bool kMagnitude, typename C>
C solve_sets(const RowPlan<C>& plan, const C* v, int64_t n, C* work, double* exact) {
  const C* from = v;
  int64_t left = n;
  return michelot(plan, exact, [&](C tau, bool all) -> ActiveSums {
    if (all) return {sum_of<kMagnitude>(v, n, plan.bound), static_cast<double>(n), n};
    const int64_t before = left;
    left = from == v ? compact<kMagnitude, true>(v, n, plan.shift, tau, work)
                     : compact<false, false>(work, left, C(0), tau, work);
    // The iteration ends where nothing was dropped: the sum is not looked at.
    const bool same = from != v && left == before;
    from = work;
    const double sum = same ? 0.0 : sum_of<false>(work, left, plan.bound);
    return {sum, static_cast<double>(left), left};
  });
}

template <typename C>
C solve_weighted(const RowPlan<C>& plan, const C* v, const C* w, int64_t n, double* exact) {
  C heaviest = C(0);
  for (int64_t i = 0; i < n; ++i) heaviest = w[i] > heaviest ? w[i] : heaviest;
  const double scale = inverse_power(static_cast<double>(plan.bound));
  const double unit = inverse_power(static_cast<double>(heaviest));
  return michelot(plan, exact, [&](C tau, bool all) -> ActiveSums {
    WideSum sum, weight;
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      const C a = v[i] < C(0) ? -v[i] : v[i];
      if (!all && !(a > tau * w[i])) continue;
      const double u = static_cast<double>(w[i]) * unit;
      sum.add(static_cast<double>(a) * scale * u);
      weight.add(u * u);
      ++count;
    }
    return {sum.value() / scale / unit, weight.value() / unit / unit, count};
  });
}

template <typename C>
double solve_capped(const RowPlan<C>& plan, double cap, const C* v, int64_t n) {
  const double scale = inverse_power(static_cast<double>(plan.bound));
  return bitran_hax(plan.t, cap, n, [&](double lowest, double highest, double tau) -> CappedSums {
    WideSum low, high, all;
    CappedSums s{0.0, 0.0, 0.0, 0, 0, 0};
    for (int64_t i = 0; i < n; ++i) {
      const auto a = static_cast<double>(v[i]);
      if (!(a > lowest && a < highest)) continue;
      all.add(a * scale);
      ++s.count;
      if (a <= tau) {
        low.add(a * scale);
        ++s.low_count;
      } else if (a >= tau + cap) {
        high.add(a * scale);
        ++s.high_count;
      }
    }
    s.low = low.value() / scale;
    s.high = high.value() / scale;
    s.all = all.value() / scale;
    return s;
  });
}

template <typename C>
double solve_entmax(const RowPlan<C>& plan, const C* v, int64_t n, C* candidates, double* work) {
  // A little more than can take part: a = (x − M) / 2 > −1 is decided in double.
  const C low = plan.shift - C(2);
  const C slack = (plan.shift < C(0) ? -plan.shift : plan.shift) * C(1e-6) + C(1e-5);
  const int64_t near = compact<false, true>(v, n, C(0), low - slack, candidates);
  for (int64_t i = 0; i < near; ++i)
    work[i] = (static_cast<double>(candidates[i]) - static_cast<double>(plan.shift)) * 0.5;
  int64_t left = near;
  return entmax_newton([&](double tau) -> SquareSums {
    // τ grows: what is below it now stays there.
    left = compact<false, false>(work, left, 0.0, tau, work);
    WideSum sum, squares;
    for (int64_t i = 0; i < left; ++i) {
      const double d = work[i] - tau;
      sum.add(d);
      squares.add(d * d);
    }
    return {sum.value(), squares.value()};
  });
}

template <typename C>
RowSolution<C> solve(const RowThresholdArgs& args, const C* v, int64_t n, double t, double* work) {
  const C* w = static_cast<const C*>(args.weights);
  const RowTop<C> top = top_of(v, n, !uses_magnitudes(args.law));
  const RowPlan<C> plan = plan_row(args.law, top, t, w != nullptr);
  RowSolution<C> s{plan.shift, plan.level, static_cast<double>(plan.level), C(0),
                   bit_cast<C>(ordered_bits<C>(top.ordered))};
  if (!plan.solved) {
    if (args.law == RowLaw::capped)
      s.exact = solve_capped(plan, args.cap, v, n);
    else if (args.law == RowLaw::entmax15)
      s.exact = solve_entmax(plan, v, n, reinterpret_cast<C*>(work + n + 16), work);
    else if (w != nullptr)
      s.level = solve_weighted(plan, v, w, n, &s.exact);
    else if (uses_magnitudes(args.law))
      s.level = solve_sets<true>(plan, v, n, reinterpret_cast<C*>(work), &s.exact);
    else
      s.level = solve_sets<false>(plan, v, n, reinterpret_cast<C*>(work), &s.exact);
    if (args.law == RowLaw::capped || args.law == RowLaw::entmax15)
      s.level = static_cast<C>(s.exact);
  }
  s.theta = returned_threshold(args.law, s, top, t);
  return s;
}

// ---- results ----

template <RowLaw kLaw, typename C>
void write_law(const RowSolution<C>& s, const C* v, const C* w, int64_t n, double cap, C* y) {
  if (w != nullptr) {
    for (int64_t i = 0; i < n; ++i) y[i] = row_result(kLaw, s, v[i], w[i], cap);
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = row_result(kLaw, s, v[i], C(1), cap);
}

template <typename C>
void write_row(const RowThresholdArgs& args, const RowSolution<C>& s, const C* v, int64_t n, C* y) {
  const C* w = static_cast<const C*>(args.weights);
  switch (args.law) {
    case RowLaw::simplex:
      return write_law<RowLaw::simplex>(s, v, w, n, args.cap, y);
    case RowLaw::linf:
      return write_law<RowLaw::linf>(s, v, w, n, args.cap, y);
    case RowLaw::l1_ball:
      return write_law<RowLaw::l1_ball>(s, v, w, n, args.cap, y);
    case RowLaw::exclusive:
      return write_law<RowLaw::exclusive>(s, v, w, n, args.cap, y);
    case RowLaw::capped:
      return write_law<RowLaw::capped>(s, v, w, n, args.cap, y);
    case RowLaw::entmax15:
      return write_law<RowLaw::entmax15>(s, v, w, n, args.cap, y);
  }
}

template <typename C>
bool is_zero(const C* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (!(y[i] == C(0))) return false;
  return true;
}

// y holds p on entry and p − q on return.
template <RowLaw kLaw, typename C>
double loss_law(const C* v, const C* q, int64_t label, C top, int64_t n, C* y) {
  double lanes[kSumLanes] = {};
  const auto add = [&](int64_t at, int lane) {
    const double p = static_cast<double>(y[at]);
    const double target = q != nullptr ? static_cast<double>(q[at]) : (at == label ? 1.0 : 0.0);
    lanes[lane] +=
        loss_term(kLaw, p, target, static_cast<double>(v[at]) - static_cast<double>(top));
    y[at] = static_cast<C>(p - target);
  };
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
#pragma omp simd
    for (int l = 0; l < kSumLanes; ++l) add(i + l, l);
  }
  for (int l = 0; i + l < n; ++l) add(i + l, l);
  return sum_of_lanes(lanes);
}

template <typename C>
C loss_row(const RowThresholdArgs& args, int64_t slice, const RowSolution<C>& s, const C* v,
           const C* q, int64_t n, C* y) {
  const int64_t label = q == nullptr ? args.label[slice] : 0;
  if (q == nullptr && label == args.ignore) {
    for (int64_t i = 0; i < n; ++i) y[i] = C(0);
    return C(0);
  }
  const double sum = args.law == RowLaw::simplex
                         ? loss_law<RowLaw::simplex>(v, q, label, s.top, n, y)
                         : loss_law<RowLaw::entmax15>(v, q, label, s.top, n, y);
  const bool known = q != nullptr || (label >= 0 && label < n);
  return known ? static_cast<C>(sum) : not_a_number<C>();
}

template <typename T>
void thresholds_of(const RowThresholdArgs& args, const RowThresholdItem& item, int64_t begin,
                   int64_t end) {
  using C = compute_t<T>;
  const Slices& layout = item.slices;
  const int64_t n = slice_size(layout), pitch = row_pitch(n);
  const T* x = static_cast<const T*>(item.x);
  T* y = static_cast<T*>(item.y);
  // Contiguous rows of the compute type are used where they lie.
  constexpr bool kNative = sizeof(T) == sizeof(C);
  const bool direct = kNative && layout.outer == 1;
  const int64_t tile = direct ? 0 : rows_together(layout, 0, layout.count);
  Scratch<C> in(tile * pitch), out(tile * pitch),
      target(args.target != nullptr ? tile * pitch + pitch : 0);
  Scratch<double> work((args.law == RowLaw::entmax15 ? 2 : 1) * (n + 16));
  int64_t zeros = 0;
  for (int64_t slice = begin; slice < end;) {
    const int64_t rows = direct ? 1 : rows_together(layout, slice, end);
    if (!direct) gather_rows(x, layout, slice, rows, pitch, in.data());
    if (args.target != nullptr)
      gather_rows(static_cast<const T*>(args.target), layout, slice, rows, pitch, target.data());
    for (int64_t r = 0; r < rows; ++r, ++slice) {
      const C* v = in.data() + r * pitch;
      C* to = out.data() + r * pitch;
      if constexpr (kNative) {
        if (direct) {
          v = x + slice * n;
          to = y + slice * n;
        }
      }
      const RowSolution<C> s = solve(args, v, n, item.t[slice * item.t_stride], work.data());
      write_row(args, s, v, n, to);
      static_cast<C*>(item.theta)[slice] = s.theta;
      if (args.zeros != nullptr) zeros += is_zero(to, n);
      if (args.loss != nullptr) {
        const C* q = args.target != nullptr ? target.data() + r * pitch : nullptr;
        static_cast<C*>(args.loss)[slice] = loss_row(args, slice, s, v, q, n, to);
      }
    }
    if (!direct) scatter_rows(out.data(), layout, slice - rows, rows, pitch, y);
  }
  if (zeros > 0) __atomic_fetch_add(args.zeros, zeros, __ATOMIC_RELAXED);
}

}  // namespace

void row_threshold(const RowThresholdArgs& args, Context) {
  if (args.count == 0) return;
  const RowThresholdItem& last = args.items[args.count - 1];
  const int64_t slices = last.first + slice_count(last.slices);
  int64_t elements = 0;
  for (int64_t i = 0; i < args.count; ++i) elements += element_count(args.items[i].slices);
  const int64_t mean = slices > 0 ? elements / slices : 1;
  parallel_for(slices, 1 + kGrain / (mean + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < args.count; ++i) {
      const RowThresholdItem& item = args.items[i];
      const int64_t stop = item.first + slice_count(item.slices);
      const int64_t from = begin > item.first ? begin : item.first, to = end < stop ? end : stop;
      if (from >= to) continue;
      dispatch_floating(args.dtype, [&](auto zero) {
        thresholds_of<decltype(zero)>(args, item, from - item.first, to - item.first);
      });
    }
  });
}

}  // namespace regkern::REGKERN_ISA
