#include "transport/small_slopes.h"

#include <type_traits>

#include "transport/normalize_lanes.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

// A problem in each lane of a vector.
template <typename T>
class Slopes {
  using C = compute_t<T>;
  using V = Lanes<C>;
  static constexpr int kLanes = kLanesOf<C>;

 public:
  explicit Slopes(const SmallSlopesArgs& args)
      : args_(args),
        n_(args.n),
        m_(args.m),
        space_(2 * n_ * m_ + 2 * (n_ + m_)),
        buffer_(kLanes * n_ * m_ + kBlock) {
    cost_ = space_.take(n_ * m_);
    plan_ = space_.take(n_ * m_);
    f_ = space_.take(n_);
    a_ = space_.take(n_);
    g_ = space_.take(m_);
    b_ = space_.take(m_);
  }

  void run(int64_t first) {
    first_ = first;
    live_ = static_cast<int>(args_.batch - first < kLanes ? args_.batch - first : kLanes);
    const int64_t numel = static_cast<int64_t>(n_) * m_;
    load_lanes<T>(args_.cost, first, live_, numel, n_, m_, m_, 1, m_, buffer_.data(), cost_);
    for (int l = 0; l < kLanes; ++l) {
      unit_[l] = unit_of<C>(args_.eps[problem(l)]);
      scale_[l] = args_.scale != nullptr ? static_cast<C>(args_.scale[problem(l)]) : C(1);
    }
    load_side(n_, args_.a, args_.f, a_, f_);
    load_side(m_, args_.b, args_.g, b_, g_);
    plans();
    if (args_.rows != nullptr) sums();
    const C* const scale = scale_;
    C* const plan = reinterpret_cast<C*>(plan_);
    for (int e = 0; e < n_ * m_; ++e)
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) plan[e * kLanes + l] = plan[e * kLanes + l] * scale[l];
    store_lanes<T>(plan_, first, live_, numel, n_, m_, m_, 1, m_, buffer_.data(), args_.slope);
  }

 private:
  int64_t problem(int l) const { return first_ + (l < live_ ? l : live_ - 1); }

  void load_side(int size, const double* mass, const double* potential, V* weight, V* shift) {
    const double uniform = 1.0 / size;
    for (int i = 0; i < size; ++i)
      for (int l = 0; l < kLanes; ++l) {
        const int64_t at = problem(l) * size + i;
        weight[i][l] = weight_of<C>(mass != nullptr ? mass[at] : uniform, potential[at]);
        shift[i][l] = shift_of<C>(potential[at]);
      }
  }

  void plans() {
    const C *cost = reinterpret_cast<const C*>(cost_), *f = reinterpret_cast<const C*>(f_);
    const C *g = reinterpret_cast<const C*>(g_), *a = reinterpret_cast<const C*>(a_);
    const C *b = reinterpret_cast<const C*>(b_), *unit = unit_;
    C* const plan = reinterpret_cast<C*>(plan_);
    for (int i = 0; i < n_; ++i)
      for (int j = 0; j < m_; ++j) {
        const int to = (i * m_ + j) * kLanes, row = i * kLanes, column = j * kLanes;
#pragma omp simd
        for (int l = 0; l < kLanes; ++l)
          plan[to + l] = plan_element(exponent(f[row + l], cost[to + l], g[column + l], unit[l]),
                                      a[row + l], b[column + l], C(1));
      }
  }

  void sums() {
    const C *plan = reinterpret_cast<const C*>(plan_), *cost = reinterpret_cast<const C*>(cost_);
    const C *f = reinterpret_cast<const C*>(f_), *g = reinterpret_cast<const C*>(g_);
    double exponents[kLanes] = {};
    for (int i = 0; i < n_; ++i) {
      double sum[kLanes] = {}, apart[kLanes] = {};
      for (int j = 0; j < m_; ++j) {
        const int at = (i * m_ + j) * kLanes;
#pragma omp simd
        for (int l = 0; l < kLanes; ++l) {
          sum[l] += static_cast<double>(plan[at + l]);
          apart[l] +=
              plan_exponent(plan[at + l], f[i * kLanes + l], cost[at + l], g[j * kLanes + l]);
        }
      }
      for (int l = 0; l < live_; ++l) args_.rows[(first_ + l) * n_ + i] = sum[l];
      for (int l = 0; l < kLanes; ++l) exponents[l] += apart[l];
    }
    for (int l = 0; l < live_; ++l) args_.exponents[first_ + l] = exponents[l];
    for (int j = 0; j < m_; ++j) {
      double sum[kLanes] = {};
      for (int i = 0; i < n_; ++i)
#pragma omp simd
        for (int l = 0; l < kLanes; ++l)
          sum[l] += static_cast<double>(plan[(i * m_ + j) * kLanes + l]);
      for (int l = 0; l < live_; ++l) args_.columns[(first_ + l) * m_ + j] = sum[l];
    }
  }

  const SmallSlopesArgs& args_;
  const int n_, m_;
  LaneSpace<C> space_;
  Scratch<C> buffer_;
  V *cost_, *plan_, *f_, *a_, *g_, *b_;
  C unit_[kLanes], scale_[kLanes];
  int64_t first_ = 0;
  int live_ = 0;
};

}  // namespace

void transport_small_slopes(const SmallSlopesArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kL = kLanesOf<compute_t<T>>;
    const int64_t work = static_cast<int64_t>(args.n) * args.m * kL;
    parallel_for((args.batch + kL - 1) / kL, 1 + (int64_t{1} << 14) / work,
                 [&](int64_t begin, int64_t end) {
                   Slopes<T> slopes(args);
                   for (int64_t block = begin; block < end; ++block) slopes.run(block * kL);
                 });
  });
}

}  // namespace regkern::REGKERN_ISA
