#include "transport/points_full.h"

#include "core/parallel.h"
#include "transport/points_lanes.h"

namespace regkern::REGKERN_ISA {
namespace {

constexpr int kSub = kRegisterBytes == 64 ? 8 : 4;  // rows whose sums are in registers
// Rows whose powers are kept until the columns have them. More of them share a panel on its way
// through the cache; of few dimensions panels are small, and the powers stay in the cache.
constexpr int kManyRows = kPointBlock, kFewRows = 8, kFewDimensions = 8;

// Vectors do not cross lines of the cache.
template <typename C>
constexpr int kLine = 64 / static_cast<int>(sizeof(C));

template <typename C>
inline C* aligned(C* from) {
  return reinterpret_cast<C*>((reinterpret_cast<uintptr_t>(from) + 63) / 64 * 64);
}

// The powers of a row with a panel, added to its lanes with their weights if kSum.
template <PointKernel kKernel, bool kSum, typename C>
inline void panel_powers(C row, const C* shift, const C* weight, const C* sums, C scale, C* lanes,
                         C* e) {
  using V = Vec<C>;
  constexpr int kW = kWidth<C>;
#pragma GCC unroll 2
  for (int l = 0; l < kPointLanes; l += kW) {
    const auto exponent = [=](int g) {
      const int place = g * kPointLanes + l;
      return exponents_of<kKernel>(row + load(shift + place), load(sums + place), scale);
    };
    const Four<V> powers = powers_of(Four<V>{{exponent(0), exponent(1), exponent(2), exponent(3)}});
    const auto at = [=](int g) {
      store(e + g * kPointLanes + l, powers.v[g]);
      return kSum ? powers.v[g] * load(weight + g * kPointLanes + l) : powers.v[g];
    };
    const V e0 = at(0), e1 = at(1), e2 = at(2), e3 = at(3);
    if constexpr (kSum) store(lanes + l, load(lanes + l) + ((e0 + e1) + (e2 + e3)));
  }
}

template <PointKernel kKernel, typename C>
class Full {
 public:
  explicit Full(const PointFullArgs& args)
      : args_(args),
        p_(args.rows),
        chunk_(point_chunk_rows(p_.n)),
        chunks_(point_chunks(p_.n)),
        panels_(point_panels(p_.m)),
        padded_(panels_ * kPointPanel),
        // Rows that are a power of two apart would meet in the same sets of the cache.
        stride_(padded_ + kLine<C>),
        group_(p_.d <= kFewDimensions ? kFewRows : kManyRows),
        slices_(group_ == kManyRows ? p_.batch * padded_ * p_.d + kLine<C> : kLine<C>) {}

  void run() const {
    prepare();
    parallel_for(p_.batch * chunks_, 1 + (int64_t{1} << 14) / (chunk_ * padded_ + 1),
                 [&](int64_t begin, int64_t end) {
                   const Scratch<C> space(group_ * stride_ + kLine<C>), x(group_ * p_.d);
                   const Scratch<C> bias(padded_);
                   C* const powers = aligned(space.data());
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t batch = task / chunks_;
                     if (!done(batch))
                       add_chunk(batch, task % chunks_, powers, x.data(), bias.data());
                   }
                 });
    parallel_for(p_.batch * p_.m, 1 << 10, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) end_column(at / p_.m, at % p_.m);
    });
  }

  bool again() const {
    for (int64_t at = 0; at < p_.batch * p_.m; ++at)
      if (args_.again[at] != 0) return true;
    return false;
  }

 private:
  bool done(int64_t batch) const { return args_.done != nullptr && args_.done[batch] != 0; }

  void prepare() const {
    C* const shift = static_cast<C*>(args_.column_shift);
    C* const weight = static_cast<C*>(args_.column_weight);
    parallel_for(p_.batch * padded_, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t batch = at / padded_, j = at % padded_;
        PointColumn<C> column{-static_cast<C>(__builtin_inf()), C(0)};
        if (j < p_.m) column = point_column<C>(p_, batch, j);
        shift[at] = column.shift;
        weight[at] = column.weight;
      }
    });
    if (group_ == kManyRows)
      parallel_for(p_.batch * panels_, 1 + (int64_t{1} << 14) / (p_.d * kPointPanel),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t panel = begin; panel < end; ++panel) slice(panel);
                   });
  }

  // A panel's columns lie far apart from one dimension to the next, in few sets of the cache: two
  // vectors of them at a time move to where they are side by side, for all rows.
  void slice(int64_t panel) const {
    constexpr int kW = kWidth<C>;
    const C* const from = static_cast<const C*>(p_.panels) + panel * p_.d * kPointPanel;
    C* to = aligned(slices_.data()) + panel * p_.d * kPointPanel;
    for (int column = 0; column < kPointPanel; column += 2 * kW)
      for (int64_t k = 0; k < p_.d; ++k, to += 2 * kW) {
        store(to, load(from + k * kPointPanel + column));
        store(to + kW, load(from + k * kPointPanel + column + kW));
      }
  }

  void add_chunk(int64_t batch, int64_t chunk, C* powers, C* x, C* bias) const {
    const int64_t first = chunk * chunk_, end = first + chunk_ < p_.n ? first + chunk_ : p_.n;
    C* const sums = static_cast<C*>(args_.partials) + (batch * chunks_ + chunk) * padded_;
    memset(sums, 0, static_cast<size_t>(padded_) * sizeof(C));
    bool biased = false;
    for (int64_t row = first; row < end; row += group_) {
      const int64_t rows = end - row < group_ ? end - row : group_;
      C weights[kManyRows] = {};
      add_rows(batch, row, rows, powers, x, bias, &biased, weights);
      join_columns(powers, weights, (rows + 3) / 4 * 4, sums);
    }
  }

  // Sums of `rows` rows and their powers, as what they enter the columns.
  void add_rows(int64_t batch, int64_t row, int64_t rows, C* powers, C* x, C* bias, bool* biased,
                C* weights) const {
    const C scale = pair_scale<C>(p_, batch);
    const C* const shift = static_cast<const C*>(args_.column_shift) + batch * padded_;
    const C* const weight = static_cast<const C*>(args_.column_weight) + batch * padded_;
    const C* const panels = static_cast<const C*>(p_.panels) + batch * panels_ * p_.d * kPointPanel;
    alignas(64) C products[kManyRows * kPointPanel], lanes[kManyRows * kPointLanes] = {};
    C own[kManyRows];
    bool moves[kManyRows] = {};
    for (int64_t r = 0; r < group_; ++r)
      own[r] = r < rows ? shift_before<C>(args_, batch, row + r) : -static_cast<C>(__builtin_inf());
    for (int64_t r = 0; r < rows; r += kSub)
      pack_rows<kKernel, kSub>(p_, batch, row + r, rows - r, scale, x + r * p_.d);
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t at = panel * kPointPanel;
      add_group(x, batch, panel, rows, products);
      for (int64_t r = 0; r < (rows + kSub - 1) / kSub * kSub; ++r)
        panel_powers<kKernel, true>(own[r], shift + at, weight + at, products + r * kPointPanel,
                                    scale, lanes + r * kPointLanes, powers + r * stride_ + at);
    }
    const double eps = p_.eps[batch];
    bool moved = false;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = row + r;
      const double sum = static_cast<double>(fold(lanes + r * kPointLanes));
      double raw;
      if (point_sum_holds<C>(sum)) {
        raw = point_potential(row_term(p_, batch * p_.n + i), own[r], sum, eps);
      } else {
        for (int64_t j = 0; j < padded_ && !*biased; ++j) bias[j] = column_bias<C>(p_, batch, j);
        *biased = true;
        raw = softmin_again(batch, i, x + r / kSub * kSub * p_.d, static_cast<int>(r % kSub),
                            panels, bias, scale);
      }
      const PointRow<C> found = point_row<C>(args_, batch, i, raw, own[r]);
      args_.f_raw[batch * p_.n + i] = found.raw;
      args_.f_next[batch * p_.n + i] = found.next;
      weights[r] = found.weight;
      moves[r] = !(found.shift == own[r]);
      moved = moved || moves[r];
      own[r] = found.shift;
    }
    for (int64_t panel = 0; panel < panels_ && moved; ++panel) {
      const int64_t at = panel * kPointPanel;
      for (int64_t r = 0; r < rows; r += kSub) {
        bool any = false;
        for (int k = 0; k < kSub; ++k) any = any || moves[r + k];
        if (!any) continue;
        add_dimensions<kKernel, kSub>(x + r * p_.d, panels + at * p_.d, p_.d, products);
        for (int k = 0; k < kSub; ++k)
          if (moves[r + k])
            panel_powers<kKernel, false>(own[r + k], shift + at, weight + at,
                                         products + k * kPointPanel, scale, lanes,
                                         powers + (r + k) * stride_ + at);
      }
    }
  }

  void add_group(const C* x, int64_t batch, int64_t panel, int64_t rows, C* products) const {
    constexpr int kW = kWidth<C>;
    const bool sliced = group_ == kManyRows;
    const int64_t at = (batch * panels_ + panel) * p_.d * kPointPanel;
    const C* const columns =
        sliced ? aligned(slices_.data()) + at : static_cast<const C*>(p_.panels) + at;
    const int64_t stride = sliced ? 2 * kW : kPointPanel;
    for (int column = 0; column < kPointPanel; column += 2 * kW) {
      const C* const y = columns + (sliced ? column * p_.d : column);
      for (int64_t r = 0; r < rows; r += kSub)
        add_columns<kKernel, kSub>(x + r * p_.d, y, stride, p_.d,
                                   products + r * kPointPanel + column);
    }
  }

  double softmin_again(int64_t batch, int64_t i, const C* x, int place, const C* panels,
                       const C* bias, C scale) const {
    C products[kSub * kPointPanel], most[kPointLanes], lanes[kPointLanes] = {};
    for (int l = 0; l < kPointLanes; ++l) most[l] = -static_cast<C>(__builtin_inf());
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t at = panel * kPointPanel;
      add_dimensions<kKernel, kSub>(x, panels + at * p_.d, p_.d, products);
      add_panel<kKernel>(bias + at, products + place * kPointPanel, scale, most, lanes);
    }
    return end_row(p_, batch, i, most, lanes);
  }

  // sums ← sums + Σ w_r e_r, four rows after four.
  void join_columns(const C* powers, const C* weights, int64_t rows, C* sums) const {
    constexpr int kW = kWidth<C>;
    for (int64_t r = 0; r < rows; r += 4) {
      const C *const e0 = powers + r * stride_, *const e1 = e0 + stride_, *const e2 = e1 + stride_,
                     *const e3 = e2 + stride_;
      const C w0 = weights[r], w1 = weights[r + 1], w2 = weights[r + 2], w3 = weights[r + 3];
      for (int64_t j = 0; j < padded_; j += kW)
        store(sums + j, load(sums + j) + ((w0 * load(e0 + j) + w1 * load(e1 + j)) +
                                          (w2 * load(e2 + j) + w3 * load(e3 + j))));
    }
  }

  void end_column(int64_t batch, int64_t j) const {
    const int64_t at = batch * p_.m + j;
    args_.again[at] = 0;
    if (done(batch)) return;
    double sum = 0.0;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk)
      sum += static_cast<double>(
          static_cast<const C*>(args_.partials)[(batch * chunks_ + chunk) * padded_ + j]);
    args_.again[at] = !point_sum_holds<C>(sum);
    if (args_.again[at] != 0) return;
    const double* const term = p_.column_terms == nullptr ? nullptr : p_.column_terms + at;
    args_.g_raw[at] = point_potential(
        term, static_cast<const C*>(args_.column_shift)[batch * padded_ + j], sum, p_.eps[batch]);
  }

  const PointFullArgs& args_;
  const PointPairs& p_;
  const int64_t chunk_, chunks_, panels_, padded_, stride_, group_;
  const Scratch<C> slices_;
};

template <PointKernel kKernel, typename C>
bool full_as(const PointFullArgs& args) {
  const Full<kKernel, C> full(args);
  full.run();
  return full.again();
}

}  // namespace

void transport_points_full(const PointFullArgs& args, Context context) {
  const auto as = [&](auto zero) {
    using C = decltype(zero);
    if (args.rows.kernel == PointKernel::product) return full_as<PointKernel::product, C>(args);
    if (args.rows.kernel == PointKernel::square) return full_as<PointKernel::square, C>(args);
    return full_as<PointKernel::distance, C>(args);
  };
  if (args.rows.wide ? as(double{}) : as(float{}))
    transport_points_softmin({args.columns, args.done, args.again, args.g_raw}, context);
}

}  // namespace regkern::REGKERN_ISA
