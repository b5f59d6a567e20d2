#include "transport/dense.h"

#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

constexpr int kRows = 8;  // whose powers are kept until the columns have them

template <typename C>
constexpr C kInfinity = static_cast<C>(__builtin_inf());

inline int64_t padded(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// A row in the compute type: as it lies, or widened into `buffer`.
template <typename T, typename C>
inline const C* row_of(const T* data, int64_t m, C* buffer) {
  if constexpr (std::is_same_v<T, C>) {
    return data;
  } else {
    load_elements(data, m, buffer);
    return buffer;
  }
}

template <typename C>
inline double fold(C* lanes) {
  for (int half = kRowLanes / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  return static_cast<double>(lanes[0]);
}

// e_j of a row, and Σ b_j e_j.
template <bool kSum, typename C>
inline double row_powers(const C* cost, const C* shift, const C* weight, C row, C unit, int64_t m,
                         C* e) {
  double total = 0.0;
  for (int64_t first = 0; first < m; first += kTile) {
    const int64_t end = first + kTile < m ? first + kTile : m;
    C lanes[kRowLanes] = {};
    int64_t j = first;
    for (; j + kRowLanes <= end; j += kRowLanes) {
#pragma omp simd
      for (int k = 0; k < kRowLanes; ++k) {
        const C x = power(exponent(row, cost[j + k], shift[j + k], unit));
        e[j + k] = x;
        if constexpr (kSum) lanes[k] += weight[j + k] * x;
      }
    }
    const int rest = static_cast<int>(end - j);
#pragma omp simd
    for (int k = 0; k < rest; ++k) {
      const C x = power(exponent(row, cost[j + k], shift[j + k], unit));
      e[j + k] = x;
      if constexpr (kSum) lanes[k] += weight[j + k] * x;
    }
    if constexpr (kSum) total += fold(lanes);
  }
  return total;
}

// Σ b_j e_j of powers that are kept.
template <typename C>
inline double kept_sum(const C* e, const C* weight, int64_t m) {
  double total = 0.0;
  for (int64_t first = 0; first < m; first += kTile) {
    const int64_t end = first + kTile < m ? first + kTile : m;
    C lanes[kRowLanes] = {};
    int64_t j = first;
    for (; j + kRowLanes <= end; j += kRowLanes) {
#pragma omp simd
      for (int k = 0; k < kRowLanes; ++k) lanes[k] += weight[j + k] * e[j + k];
    }
    const int rest = static_cast<int>(end - j);
#pragma omp simd
    for (int k = 0; k < rest; ++k) lanes[k] += weight[j + k] * e[j + k];
    total += fold(lanes);
  }
  return total;
}

// max_j t_j − C_j over what has weight.
template <typename C>
inline C row_peak(const C* cost, const C* shift, const C* weight, int64_t m) {
  C peak = -kInfinity<C>;
#pragma omp simd reduction(max : peak)
  for (int64_t j = 0; j < m; ++j) {
    const C x = weight[j] > C(0) ? shift[j] - cost[j] : -kInfinity<C>;
    peak = x > peak ? x : peak;
  }
  return peak;
}

// The soft c-transform of a row, and by what its powers are shifted.
template <typename C>
inline double transform_row(const C* cost, const C* shift, const C* weight, C* row, C unit,
                            double eps, int64_t m, C* e) {
  double sum = row_powers<true>(cost, shift, weight, *row, unit, m, e);
  if (sum_holds<C>(sum)) return potential_of(*row, sum, eps);
  if (sum != sum) return sum;
  const C peak = row_peak(cost, shift, weight, m);
  if (peak == -kInfinity<C>) return kInfinity<double>;
  *row = -peak;
  sum = row_powers<true>(cost, shift, weight, *row, unit, m, e);
  return sum != sum ? sum : potential_of(*row, sum, eps);
}

// sums ← sums + Σ w_r e_r, row after row.
template <typename C>
inline void add_rows(const C* e, const C* weight, int64_t stride, int rows, int64_t m, C* sums) {
  if (rows == kRows) {
    const C w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
    const C w4 = weight[4], w5 = weight[5], w6 = weight[6], w7 = weight[7];
#pragma omp simd
    for (int64_t j = 0; j < m; ++j) {
      C sum = sums[j] + w0 * e[j];
      sum += w1 * e[stride + j];
      sum += w2 * e[2 * stride + j];
      sum += w3 * e[3 * stride + j];
      sum += w4 * e[4 * stride + j];
      sum += w5 * e[5 * stride + j];
      sum += w6 * e[6 * stride + j];
      sums[j] = sum + w7 * e[7 * stride + j];
    }
    return;
  }
  for (int r = 0; r < rows; ++r) {
    const C w = weight[r];
    const C* const row = e + r * stride;
#pragma omp simd
    for (int64_t j = 0; j < m; ++j) sums[j] += w * row[j];
  }
}

template <typename T>
class Dense {
  using C = compute_t<T>;

 public:
  explicit Dense(const DenseArgs& args)
      : args_(args),
        rows_(chunk_rows(args.n)),
        chunks_(chunk_count(args.n)),
        with_rows_(args.f_raw != nullptr),
        with_columns_(args.g_raw != nullptr),
        kernel_(static_cast<C*>(args.kernel)) {}

  void run() const {
    prepare();
    const int64_t n = args_.n, m = args_.m;
    parallel_for(args_.batch * chunks_, 1 + (int64_t{1} << 14) / (rows_ * m + 1),
                 [&](int64_t begin, int64_t end) {
                   const int64_t stride = padded(m) + kBlock;
                   const Scratch<C> powers(kernel_ == nullptr ? kRows * stride : 0);
                   const Scratch<C> buffer(std::is_same_v<T, C> ? 0 : padded(m));
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t p = task / chunks_, first = task % chunks_ * rows_;
                     if (skips(p)) continue;
                     add_chunk(p, first, first + rows_ < n ? first + rows_ : n, stride,
                               powers.data(), buffer.data());
                   }
                 });
    if (!with_columns_) return;
    const int64_t panels = (m + kPanel - 1) / kPanel;
    parallel_for(args_.batch * panels, 64, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        if (!skips(task / panels)) end_panel(task / panels, task % panels * kPanel);
    });
  }

 private:
  bool skips(int64_t p) const { return args_.done != nullptr && args_.done[p] != 0; }

  void prepare() const {
    C* const shift = static_cast<C*>(args_.column_shift);
    C* const weight = static_cast<C*>(args_.column_weight);
    const int64_t m = args_.m;
    parallel_for(args_.batch, 1 + (int64_t{1} << 15) / (m + 1), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        if (skips(p)) continue;
        if (kernel_ != nullptr && !renews(p)) {
          for (int64_t j = p * m; j < (p + 1) * m; ++j)
            weight[j] = moved_weight<C>(shift[j], args_.b[j], args_.g[j], args_.eps[p]);
          continue;
        }
        for (int64_t j = p * m; j < (p + 1) * m; ++j) {
          shift[j] = shift_of<C>(args_.g[j]);
          if (with_rows_) weight[j] = weight_of<C>(args_.b[j], args_.g[j]);
        }
      }
    });
  }

  // Whether the kernel of a problem is made in this iteration.
  bool renews(int64_t p) const {
    const int64_t m = args_.m;
    const C* const shift = static_cast<const C*>(args_.column_shift) + p * m;
    const double* const g = args_.g + p * m;
    const double eps = args_.eps[p];
    bool stale = args_.kernel_eps[p] != eps;
    for (int64_t j = 0; j < m && !stale; ++j) stale = is_stale<C>(shift[j], g[j], eps);
    args_.kernel_eps[p] = eps;
    args_.fresh[p] = stale ? 1 : 0;
    return stale;
  }

  // The soft c-transform of a row whose powers are kept; where they do not do they are made again.
  double transform_kept(const T* cost, const C* shift, const C* weight, C* row, C unit, double eps,
                        C* e, C* buffer) const {
    const int64_t m = args_.m;
    const double sum = kept_sum(e, weight, m);
    if (sum_holds<C>(sum)) return potential_of(*row, sum, eps);
    if (sum != sum) return sum;
    return transform_row(row_of(cost, m, buffer), shift, weight, row, unit, eps, m, e);
  }

  // Rows [first, end) of a problem: their transforms, and what they add to the columns.
  void add_chunk(int64_t p, int64_t first, int64_t end, int64_t stride, C* e, C* buffer) const {
    const int64_t n = args_.n, m = args_.m;
    const double eps = args_.eps[p];
    const C unit = unit_of<C>(eps);
    const C* const shift = static_cast<const C*>(args_.column_shift) + p * m;
    const C* const weight = static_cast<const C*>(args_.column_weight) + p * m;
    C* const sums = static_cast<C*>(args_.partials) + (p * chunks_ + first / rows_) * m;
    C* const row_shift = static_cast<C*>(args_.row_shift) + p * n;
    const int64_t width = kernel_ != nullptr ? kernel_stride(m) : stride;
    const bool both = with_rows_ && with_columns_;
    const bool kept = kernel_ != nullptr && args_.fresh[p] == 0;
    const double damping = both ? damping_of(args_.rho_a[p], eps) : 1.0;
    if (with_columns_) memset(sums, 0, static_cast<size_t>(m) * sizeof(C));
    for (int64_t block = first; block < end; block += kRows) {
      const int rows = static_cast<int>(end - block < kRows ? end - block : kRows);
      C weights[kRows] = {};
      C* const matrix = kernel_ != nullptr ? kernel_ + (p * n + block) * width : e;
      for (int r = 0; r < rows; ++r) {
        const int64_t i = p * n + block + r;
        const T* const data = static_cast<const T*>(args_.cost) + i * m;
        const C* const cost = kept ? nullptr : row_of(data, m, buffer);
        C* const powers = matrix + r * width;
        if (!with_rows_) {
          weights[r] = weight_of<C>(args_.a[i], args_.f_next[i]);
          row_powers<false>(cost, shift, weight, shift_of<C>(args_.f_next[i]), unit, m, powers);
          continue;
        }
        C row = kept ? row_shift[block + r] : shift_of<C>(args_.f[i]);
        const double raw =
            kept ? transform_kept(data, shift, weight, &row, unit, eps, powers, buffer)
                 : transform_row(cost, shift, weight, &row, unit, eps, m, powers);
        args_.f_raw[i] = raw;
        if (!both) continue;
        const RowUpdate<C> update =
            update_row(args_.f[i], raw, row, args_.a[i], eps, damping, args_.omega[p]);
        args_.f_next[i] = update.next;
        weights[r] = update.weight;
        if (kernel_ != nullptr) row_shift[block + r] = update.shift;
        if (update.far)
          row_powers<false>(row_of(data, m, buffer), shift, weight, update.shift, unit, m, powers);
      }
      if (with_columns_) add_rows(matrix, weights, width, rows, m, sums);
    }
  }

  // The transforms of kPanel columns.
  void end_panel(int64_t p, int64_t first) const {
    const int64_t m = args_.m;
    const int count = static_cast<int>(m - first < kPanel ? m - first : kPanel);
    const double eps = args_.eps[p];
    const C* const shift = static_cast<const C*>(args_.column_shift) + p * m + first;
    double* const out = args_.g_raw + p * m + first;
    double sums[kPanel] = {};
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const C* const partial = static_cast<const C*>(args_.partials) + (p * chunks_ + chunk) * m;
      for (int k = 0; k < count; ++k) sums[k] += static_cast<double>(partial[first + k]);
    }
    bool again = false;
    for (int k = 0; k < count; ++k) {
      if (sum_holds<C>(sums[k]))
        out[k] = potential_of(shift[k], sums[k], eps);
      else if (sums[k] != sums[k])
        out[k] = sums[k];
      else
        again = true;
    }
    if (again) transform_columns(p, first, count, sums, out);
  }

  // The transforms of those columns whose sums do not hold, shifted by their largest terms.
  void transform_columns(int64_t p, int64_t first, int count, const double* held,
                         double* out) const {
    const int64_t n = args_.n, m = args_.m;
    const double eps = args_.eps[p];
    const C unit = unit_of<C>(eps);
    const T* const cost = static_cast<const T*>(args_.cost) + p * n * m + first;
    const double* const from = args_.f_next + p * n;
    C peak[kPanel];
    for (int k = 0; k < kPanel; ++k) peak[k] = -kInfinity<C>;
    for (int64_t i = 0; i < n; ++i) {
      if (!(weight_of<C>(args_.a[p * n + i], from[i]) > C(0))) continue;
      const C row = shift_of<C>(from[i]);
      for (int k = 0; k < count; ++k) {
        const C x = row - widen(cost[i * m + k]);
        peak[k] = x > peak[k] ? x : peak[k];
      }
    }
    double totals[kPanel] = {};
    for (int64_t start = 0; start < n; start += rows_) {
      const int64_t end = start + rows_ < n ? start + rows_ : n;
      C sums[kPanel] = {};
      for (int64_t i = start; i < end; ++i) {
        const C row = shift_of<C>(from[i]), weight = weight_of<C>(args_.a[p * n + i], from[i]);
        for (int k = 0; k < count; ++k)
          sums[k] += weight * power(exponent(row, C(widen(cost[i * m + k])), -peak[k], unit));
      }
      for (int k = 0; k < count; ++k) totals[k] += static_cast<double>(sums[k]);
    }
    for (int k = 0; k < count; ++k) {
      if (sum_holds<C>(held[k]) || held[k] != held[k]) continue;
      if (peak[k] == -kInfinity<C>)
        out[k] = kInfinity<double>;
      else
        out[k] = totals[k] != totals[k] ? totals[k] : potential_of(-peak[k], totals[k], eps);
    }
  }

  const DenseArgs& args_;
  const int64_t rows_, chunks_;
  const bool with_rows_, with_columns_;
  C* const kernel_;
};

template <typename T>
void plan_as(const DensePlanArgs& args) {
  using C = compute_t<T>;
  constexpr bool kNative = std::is_same_v<T, C>;
  const int64_t n = args.n, m = args.m;
  parallel_for(args.batch * n, 1 + (int64_t{1} << 13) / (m + 1), [&](int64_t begin, int64_t end) {
    const Scratch<C> shift(m), weight(m), factor(m);
    const Scratch<C> in(kNative ? 0 : padded(m)), out(kNative ? 0 : padded(m));
    int64_t known = -1;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = i / n;
      for (int64_t j = 0; j < m && known != p; ++j) {
        shift[j] = shift_of<C>(args.g[p * m + j]);
        weight[j] = weight_of<C>(args.b[p * m + j], args.g[p * m + j]);
        factor[j] = args.q != nullptr ? static_cast<C>(args.q[p * m + j]) : C(0);
      }
      known = p;
      const C unit = unit_of<C>(args.eps[p]), row = shift_of<C>(args.f[i]);
      const C mass = weight_of<C>(args.a[i], args.f[i]);
      const C own = args.p != nullptr ? static_cast<C>(args.p[i]) : C(0);
      const C* const cost = row_of(static_cast<const T*>(args.cost) + i * m, m, in.data());
      T* const to = static_cast<T*>(args.out) + i * m;
      C* result = out.data();
      if constexpr (kNative) result = to;
      const C *t = shift.data(), *w = weight.data(), *q = factor.data();
#pragma omp simd
      for (int64_t j = 0; j < m; ++j)
        result[j] = plan_element(exponent(row, cost[j], t[j], unit), mass, w[j], own + q[j]);
      if constexpr (!kNative) store_elements(result, m, to);
    }
  });
}

}  // namespace

void transport_dense(const DenseArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { Dense<decltype(zero)>(args).run(); });
}

void transport_dense_plan(const DensePlanArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { plan_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
