#include "transport/sparse_transport.h"

#include "core/parallel.h"
#include "core/vec.h"
#include "transport/solo_team.h"
#include "transport/sparse_solver.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

constexpr int64_t kWidth = 128;  // columns of a task
constexpr int kGroup = 16;       // columns that are compared at once

// Which of 16 neighbours are not certainly below α: not (c + bound ≥ α).
inline unsigned candidates(const float* c, const float* bound, float alpha) {
#if defined(__AVX512F__)
  const __m512 x = _mm512_add_ps(_mm512_loadu_ps(c), _mm512_loadu_ps(bound));
  return _mm512_cmp_ps_mask(x, _mm512_set1_ps(alpha), _CMP_NGE_UQ);
#elif defined(__AVX2__)
  const __m256 a = _mm256_set1_ps(alpha);
  const __m256 low = _mm256_add_ps(_mm256_loadu_ps(c), _mm256_loadu_ps(bound));
  const __m256 high = _mm256_add_ps(_mm256_loadu_ps(c + 8), _mm256_loadu_ps(bound + 8));
  const int first = _mm256_movemask_ps(_mm256_cmp_ps(low, a, _CMP_NGE_UQ));
  const int second = _mm256_movemask_ps(_mm256_cmp_ps(high, a, _CMP_NGE_UQ));
  return static_cast<unsigned>(first) | static_cast<unsigned>(second) << 8;
#else
  int any = 0;
#pragma omp simd reduction(| : any)
  for (int l = 0; l < kGroup; ++l) any |= c[l] + bound[l] >= alpha ? 0 : 1;
  if (any == 0) return 0;
  unsigned set = 0;
  for (int l = 0; l < kGroup; ++l) set |= (c[l] + bound[l] >= alpha ? 0u : 1u) << l;
  return set;
#endif
}

inline unsigned candidates(const double* c, const double* bound, double alpha) {
#if defined(__AVX512F__)
  const __m512d a = _mm512_set1_pd(alpha);
  const __m512d low = _mm512_add_pd(_mm512_loadu_pd(c), _mm512_loadu_pd(bound));
  const __m512d high = _mm512_add_pd(_mm512_loadu_pd(c + 8), _mm512_loadu_pd(bound + 8));
  return _mm512_cmp_pd_mask(low, a, _CMP_NGE_UQ) |
         static_cast<unsigned>(_mm512_cmp_pd_mask(high, a, _CMP_NGE_UQ)) << 8;
#elif defined(__AVX2__)
  unsigned set = 0;
  for (int l = 0; l < kGroup; l += 4) {
    const __m256d x = _mm256_add_pd(_mm256_loadu_pd(c + l), _mm256_loadu_pd(bound + l));
    const int bits = _mm256_movemask_pd(_mm256_cmp_pd(x, _mm256_set1_pd(alpha), _CMP_NGE_UQ));
    set |= static_cast<unsigned>(bits) << l;
  }
  return set;
#else
  unsigned set = 0;
  for (int l = 0; l < kGroup; ++l) set |= (c[l] + bound[l] >= alpha ? 0u : 1u) << l;
  return set;
#endif
}

// The columns of a task, from `first` on.
template <typename T>
struct Columns {
  using C = compute_t<T>;
  const SparseTransportArgs& args;
  int64_t problem, first, width;
  bool alone;  // no other thread adds to this problem's rows
  const T* cost;
  const double *alpha, *a, *b, *beta;  // β of the trial, or null
  double gamma, unit, largest, drop;
  int64_t* row_sums;

  double shift_of(int64_t j) const { return beta != nullptr ? beta[first + j] : 0.0; }
  double cost_at(int64_t i, int64_t j) const {
    return static_cast<double>(widen(cost[i * args.columns + first + j]));
  }

  void add_row(int64_t i, double p) const {
    const int64_t units = row_units(p, unit);
    if (alone)
      row_sums[i] += units;
    else
      __atomic_fetch_add(row_sums + i, units, __ATOMIC_RELAXED);
  }

  // Row i of the task's columns in the compute type, readable in whole groups.
  const C* load(int64_t i, C* space) const {
    const T* row = cost + i * args.columns + first;
    if constexpr (sizeof(T) == sizeof(C)) {
      if (width % kGroup == 0) return row;
      memcpy(space, row, static_cast<size_t>(width) * sizeof(C));
    } else {
      load_elements(row, width, space);
    }
    return space;
  }

  // event(i, j, x) of whatever is not certainly below its column's bound, rows first to last.
  template <typename Event>
  void scan(C* bound, Event&& event) const {
    scan_rows(bound, nullptr, args.rows, event);
  }

  // The same, of the listed rows.
  template <typename Event>
  void scan_rows(C* bound, const int32_t* list, int64_t count, Event&& event) const {
    alignas(64) C space[kWidth] = {};
    for (int64_t j = width; j % kGroup != 0; ++j) bound[j] = static_cast<C>(__builtin_inf());
    for (int64_t r = 0; r < count; ++r) {
      const int64_t i = list != nullptr ? list[r] : r;
      const double exact = row_potential(alpha, a, i);
      if (!(exact > nothing())) continue;
      const C* c = load(i, space);
      const C near = static_cast<C>(exact);
      for (int64_t j = 0; j < width; j += kGroup) {
        unsigned set = candidates(c + j, bound + j, near);
        for (; set != 0; set &= set - 1) {
          const int64_t at = j + __builtin_ctz(set);
          event(i, at, entry_at(exact, static_cast<double>(c[at]), shift_of(at)));
        }
      }
    }
  }

  void keep(int64_t j, const ColumnSums& sums, bool bad) const {
    const int64_t at = problem * args.columns + first + j;
    args.column_value[at] = bad ? __builtin_nan("") : sums.value;
    if (beta != nullptr)
      args.column_sum[at] = sums.sum;
    else
      args.beta[at] = -sums.threshold;
  }
};

// The k largest of each column, in lists of kWidth * `most` words that are heaps or sorted.
template <typename T, bool kHeap>
void best_entries(const Columns<T>& t, int most, double* values, int32_t* indices) {
  using C = compute_t<T>;
  const SparseTransportArgs& args = t.args;
  const int64_t k = args.k;
  const bool dual = t.beta != nullptr;
  Best best[kWidth];
  bool bad[kWidth] = {};
  double top[kHeap ? kWidth : 1], range[kHeap ? kWidth : 1];
  alignas(64) C bound[kWidth];
  // Of what falls short of a heap's column, in C.
  const auto top_bound = [&](int64_t j) {
    return dual ? -static_cast<C>(__builtin_inf())
                : filter_bound<C>(top[j] - range[j], t.largest + range[j]);
  };
  for (int64_t j = 0; j < t.width; ++j) {
    if constexpr (kHeap) {
      top[j] = nothing();
      range[j] = dual ? __builtin_inf() : t.gamma * t.b[t.first + j];
    }
    best[j] = {values + j * most, indices + j * most, 1, 0};
    // The entries of the last evaluation tell where the k-th largest is at least.
    const int32_t* last = args.index + (t.problem * args.columns + t.first + j) * k;
    double least = __builtin_inf();
    for (int r = 0; r < most; ++r) {
      if (kHeap && last[r] < 0) {  // and none after it
        least = nothing();
        break;
      }
      const double alpha = last[r] < 0 ? nothing() : row_potential(t.alpha, t.a, last[r]);
      const double x = last[r] < 0 ? alpha : entry_at(alpha, t.cost_at(last[r], j), t.shift_of(j));
      least = x < least ? x : least;
      if constexpr (kHeap) top[j] = x > top[j] ? x : top[j];
    }
    least = dual && !(least > 0.0) ? 0.0 : least;
    bound[j] = filter_bound<C>(least - t.shift_of(j), t.largest);
    if constexpr (kHeap) {
      const C short_of = top_bound(j);
      bound[j] = short_of > bound[j] ? short_of : bound[j];
    }
  }
  t.scan(bound, [&](int64_t i, int64_t j, double x) {
    const auto row = static_cast<int32_t>(i);
    const bool in = kHeap ? enters_heap(best[j], most, x, row) : enters(best[j], most, x, row);
    if (!in) {
      bad[j] = bad[j] || is_nan(x);
      return;
    }
    if (dual && !(x > 0.0)) return;
    bad[j] = bad[j] || x == __builtin_inf();
    if constexpr (kHeap) {
      if (falls_short(x, top[j], range[j])) return;
      insert_heap(best[j], most, x, row);
      C own = -static_cast<C>(__builtin_inf());
      if (x > top[j]) {
        top[j] = x;
        own = top_bound(j);
      }
      if (best[j].count == most) {
        const C last = filter_bound<C>(best[j].value[0] - t.shift_of(j), t.largest);
        own = last > own ? last : own;
      }
      bound[j] = own > bound[j] ? own : bound[j];
    } else {
      insert_best(best[j], most, x, row);
      if (best[j].count == most)
        bound[j] = filter_bound<C>(best[j].value[most - 1] - t.shift_of(j), t.largest);
    }
  });
  for (int64_t j = 0; j < t.width; ++j) {
    const double b = t.b[t.first + j];
    if constexpr (kHeap) sort_heap(best[j], top[j], range[j]);
    const ColumnSums sums =
        dual ? cap_best(best[j], b, t.gamma) : project_best(best[j], b, t.gamma);
    t.keep(j, sums, bad[j]);
    int32_t* index = args.index + (t.problem * args.columns + t.first + j) * k;
    double* entries = args.entries + (t.problem * args.columns + t.first + j) * k;
    for (int r = 0; r < k; ++r) {
      const bool there = r < best[j].count;
      index[r] = there ? best[j].index[r] : -1;
      entries[r] = there ? best[j].value[r] : 0.0;
      if (there && best[j].value[r] > 0.0) t.add_row(best[j].index[r], best[j].value[r]);
    }
  }
}

template <typename T>
void short_entries(const Columns<T>& t) {
  double values[kWidth * kSortedEntries];
  int32_t indices[kWidth * kSortedEntries];
  best_entries<T, false>(t, static_cast<int>(t.args.k), values, indices);
}

template <typename T>
void long_entries(const Columns<T>& t) {
  const int64_t most = entries_of(t.args);
  const Scratch<double> values(t.width * most);
  const Scratch<int32_t> indices(t.width * most);
  best_entries<T, true>(t, static_cast<int>(most), values.data(), indices.data());
}

// All of a column, capped.
template <typename T>
void capped_entries(const Columns<T>& t) {
  using C = compute_t<T>;
  double values[kWidth][kRowStripes] = {}, sums[kWidth][kRowStripes] = {};
  alignas(64) C bound[kWidth];
  for (int64_t j = 0; j < t.width; ++j) bound[j] = filter_bound<C>(-t.shift_of(j), t.largest);
  t.scan(bound, [&](int64_t i, int64_t j, double x) {
    const double p = dual_entry(x, t.b[t.first + j], t.gamma);
    if (p == 0.0) return;
    values[j][i % kRowStripes] += dual_value(x, p, t.gamma);
    sums[j][i % kRowStripes] += p;
    t.add_row(i, p);
  });
  for (int64_t j = 0; j < t.width; ++j) {
    for (int half = kRowStripes / 2; half > 0; half /= 2) {
      for (int s = 0; s < half; ++s) {
        values[j][s] += values[j][s + half];
        sums[j][s] += sums[j][s + half];
      }
    }
    t.keep(j, {values[j][0], sums[j][0], 0.0}, false);
  }
}

// Groups of rows, thresholded by their norms.
template <typename T>
void grouped_entries(const Columns<T>& t) {
  using C = compute_t<T>;
  const double mu = t.args.mu[t.problem];
  double values[kWidth][kRowStripes] = {}, sums[kWidth][kRowStripes] = {};
  double squares[kWidth], shares[kWidth];
  alignas(64) C bound[kWidth];
  for (int64_t j = 0; j < t.width; ++j) bound[j] = filter_bound<C>(-t.shift_of(j), t.largest);
  for (int64_t g = 0; g < t.args.rows; ++g) {
    const int64_t first = t.args.group_starts[g], count = t.args.group_starts[g + 1] - first;
    if (count == 0) continue;
    const int32_t* const list = t.args.group_rows + first;
    const int64_t stripe = g % kRowStripes;
    memset(squares, 0, sizeof squares);
    t.scan_rows(bound, list, count,
                [&](int64_t, int64_t j, double x) { squares[j] += x <= 0.0 ? 0.0 : x * x; });
    bool any = false;
    for (int64_t j = 0; j < t.width; ++j) {
      const GroupEntry entry = group_entry(squares[j], t.b[t.first + j], t.gamma, mu);
      shares[j] = entry.share;
      values[j][stripe] += entry.value;
      any = any || entry.share > 0.0;
    }
    if (!any) continue;
    t.scan_rows(bound, list, count, [&](int64_t i, int64_t j, double x) {
      if (!(x > 0.0) || !(shares[j] > 0.0)) return;
      const double p = shares[j] * x;
      sums[j][stripe] += p;
      t.add_row(i, p);
    });
  }
  for (int64_t j = 0; j < t.width; ++j) {
    for (int half = kRowStripes / 2; half > 0; half /= 2) {
      for (int s = 0; s < half; ++s) {
        values[j][s] += values[j][s + half];
        sums[j][s] += sums[j][s + half];
      }
    }
    t.keep(j, {values[j][0], sums[j][0], 0.0}, false);
  }
}

// The projection of whole columns onto the simplex. What may be in a column's support is listed
// first: all within γ b of its largest.
template <typename T>
void projected_entries(const Columns<T>& t) {
  using C = compute_t<T>;
  const int64_t n = t.args.rows;
  const Scratch<double> listed(t.width * n);
  const Scratch<int32_t> rows(t.width * n);
  int64_t count[kWidth] = {};
  double top[kWidth], least[kWidth];
  bool bad[kWidth] = {};
  alignas(64) C most[kWidth], bound[kWidth], space[kWidth] = {};
  for (int64_t j = 0; j < kWidth; ++j) {
    most[j] = -static_cast<C>(__builtin_inf());
    top[j] = nothing();
  }
  const double* before = t.args.beta + t.problem * t.args.columns + t.first;
  const bool warm = t.drop > nothing();
  for (int64_t i = 0; i < n && !warm; ++i) {
    const double exact = row_potential(t.alpha, t.a, i);
    if (!(exact > nothing())) continue;
    const C near = static_cast<C>(exact);
    const C* c = t.load(i, space);
#pragma omp simd
    for (int64_t j = 0; j < t.width; ++j) most[j] = near - c[j] > most[j] ? near - c[j] : most[j];
  }
  for (int64_t j = 0; j < t.width; ++j) {
    const double total = t.gamma * t.b[t.first + j];
    least[j] = warm ? warm_threshold(-before[j], t.drop, t.largest) : nothing();
    const double cold = static_cast<double>(most[j]) - total;
    bound[j] =
        warm ? filter_bound<C>(least[j], t.largest) : filter_bound<C>(cold, t.largest + total);
  }
  t.scan(bound, [&](int64_t i, int64_t j, double x) {
    bad[j] = bad[j] || is_nan(x) || x == __builtin_inf();
    top[j] = x > top[j] ? x : top[j];
    if (!(x > nothing())) return;
    listed[j * n + count[j]] = x;
    rows[j * n + count[j]++] = static_cast<int32_t>(i);
  });
  for (int64_t j = 0; j < t.width; ++j) {
    const double b = t.b[t.first + j], total = t.gamma * b;
    const double base = double_max(top[j] - total, least[j]);
    const double* x = listed.data() + j * n;
    ShareSearch search(base, bad[j] ? 0.0 : total);
    while (!search.done) {
      ShareSum sum{0, 0};
      for (int64_t e = 0; e < count[j]; ++e)
        if (x[e] > search.threshold) sum.add(search.share(x[e]));
      search.update(sum);
    }
    const double threshold = search.threshold;
    int64_t squares = 0;
    for (int64_t e = 0; e < count[j]; ++e) {
      if (!(x[e] > threshold) || bad[j] || !(total > 0.0)) continue;
      const double p = share_entry(x[e], threshold, b, t.gamma);
      squares += share_units(p / b * (p / b));
      t.add_row(rows[j * n + e], p);
    }
    t.keep(j, share_column(top[j], threshold, squares, b, t.gamma), bad[j]);
  }
}

template <typename T>
void evaluate(const SparseTransportArgs& args, int64_t problem, int64_t first, bool alone) {
  const int64_t n = args.rows, m = args.columns;
  const double* trial = vector_of(args, problem, kTrial);
  const SparseState& s = args.state[problem];
  const bool dual = args.method == SparseMethod::dual;
  const Columns<T> task{args,
                        problem,
                        first,
                        m - first < kWidth ? m - first : kWidth,
                        alone,
                        static_cast<const T*>(args.cost) + problem * args.cost_stride,
                        trial,
                        args.a + problem * n,
                        args.b + problem * m,
                        dual ? trial + n : nullptr,
                        args.gamma[problem],
                        s.unit,
                        s.largest,
                        s.drop,
                        args.row_sums + problem * n};
  if (args.mu != nullptr)
    grouped_entries(task);
  else if (args.k > kSortedEntries)
    long_entries(task);
  else if (args.k > 0)
    short_entries(task);
  else if (dual)
    capped_entries(task);
  else
    projected_entries(task);
}

// Problems from begin to end, in step.
template <typename T>
void solve(const SparseTransportArgs& args, int64_t begin, int64_t end) {
  const int64_t count = end - begin, tasks = (args.columns + kWidth - 1) / kWidth;
  const int64_t all = count * tasks;
  const int64_t grain = 1 + (int64_t{1} << 16) / (args.rows * kWidth + 1);
  const auto each_problem = [&](auto&& f) {
    parallel_for(count, 1, [&](int64_t from, int64_t to) {
      SoloTeam<kTeamLanes> solo;
      for (int64_t p = begin + from; p < begin + to; ++p) f(solo, p);
    });
  };
  const auto evaluate_all = [&](bool finished) {
    parallel_for(all, grain, [&](int64_t from, int64_t to) {
      const bool alone = from == 0 && to == all;
      for (int64_t t = from; t < to; ++t) {
        const int64_t problem = begin + t / tasks;
        if (finished || args.state[problem].done == 0)
          evaluate<T>(args, problem, t % tasks * kWidth, alone);
      }
    });
  };
  each_problem([&](SoloTeam<kTeamLanes>& solo, int64_t p) { start_problem(solo, args, p); });
  for (int64_t e = 0; e < args.max_evaluations; ++e) {
    bool done = true;
    for (int64_t p = begin; p < end; ++p) done = done && args.state[p].done != 0;
    if (done) break;
    evaluate_all(false);
    each_problem([&](SoloTeam<kTeamLanes>& solo, int64_t p) { step_problem(solo, args, p); });
  }
  each_problem([&](SoloTeam<kTeamLanes>& solo, int64_t p) { return_to_best(solo, args, p); });
  evaluate_all(true);
  each_problem([&](SoloTeam<kTeamLanes>& solo, int64_t p) { finish_problem(solo, args, p); });
}

}  // namespace

void sparse_transport(const SparseTransportArgs& args, Context) {
  constexpr int64_t kMany = 8;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.batch < kMany) return solve<T>(args, 0, args.batch);
    parallel_for(args.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) solve<T>(args, p, p + 1);
    });
  });
}

}  // namespace regkern::REGKERN_ISA
