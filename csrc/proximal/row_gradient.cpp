#include "proximal/row_gradient.h"

#include "core/parallel.h"
#include "proximal/slice_rows.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 15;

template <RowLaw kLaw, typename C>
double gradient_row(const RowGradientArgs& args, const C* g, const C* reference, int64_t n, C theta,
                    double t, double gt, C* dx) {
  const C* w = static_cast<const C*>(args.weights);
  const auto part = [&](int64_t i) {
    return participation(kLaw, reference[i], w != nullptr ? w[i] : C(1), theta, args.cap);
  };
  double along[kSumLanes] = {}, squares[kSumLanes] = {}, size[kSumLanes] = {};
  int64_t i = 0;
  const auto add = [&](int64_t at, int lane) {
    GradientSums sums{along[lane], squares[lane], size[lane]};
    add_term(kLaw, reference[at], part(at), static_cast<double>(g[at]), &sums);
    along[lane] = sums.along;
    squares[lane] = sums.squares;
    size[lane] = sums.size;
  };
  for (; i + kSumLanes <= n; i += kSumLanes) {
#pragma omp simd
    for (int l = 0; l < kSumLanes; ++l) add(i + l, l);
  }
  for (int l = 0; i + l < n; ++l) add(i + l, l);
  const GradientSums sums{sum_of_lanes(along), sum_of_lanes(squares), sum_of_lanes(size)};
  const GradientPlan plan = plan_gradient(kLaw, sums, theta, t);
#pragma omp simd
  for (int64_t k = 0; k < n; ++k)
    dx[k] = static_cast<C>(gradient_element(kLaw, plan, part(k), static_cast<double>(g[k]), gt, t));
  return plan.dt;
}

template <RowLaw kLaw, typename T>
void gradients_as(const RowGradientArgs& args) {
  using C = compute_t<T>;
  const Slices& layout = args.slices;
  const int64_t n = slice_size(layout), pitch = row_pitch(n);
  const T* g = static_cast<const T*>(args.g);
  const T* reference = static_cast<const T*>(args.reference);
  T* dx = static_cast<T*>(args.dx);
  constexpr bool kNative = sizeof(T) == sizeof(C);
  const bool direct = kNative && layout.outer == 1;
  parallel_for(slice_count(layout), 1 + kGrain / (n + 1), [&](int64_t begin, int64_t end) {
    const int64_t tile = direct ? 0 : rows_together(layout, 0, layout.count);
    Scratch<C> gs(tile * pitch), rs(tile * pitch), out(tile * pitch);
    for (int64_t slice = begin; slice < end;) {
      const int64_t rows = direct ? 1 : rows_together(layout, slice, end);
      if (!direct) {
        gather_rows(g, layout, slice, rows, pitch, gs.data());
        gather_rows(reference, layout, slice, rows, pitch, rs.data());
      }
      for (int64_t r = 0; r < rows; ++r, ++slice) {
        const C* from = gs.data() + r * pitch;
        const C* ref = rs.data() + r * pitch;
        C* to = out.data() + r * pitch;
        if constexpr (kNative) {
          if (direct) {
            from = g + slice * n;
            ref = reference + slice * n;
            to = dx + slice * n;
          }
        }
        args.dt[slice] = gradient_row<kLaw>(
            args, from, ref, n, static_cast<const C*>(args.theta)[slice],
            args.t[slice * args.t_stride], args.gt != nullptr ? args.gt[slice] : 0.0, to);
      }
      if (!direct) scatter_rows(out.data(), layout, slice - rows, rows, pitch, dx);
    }
  });
}

}  // namespace

void row_gradient(const RowGradientArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    switch (args.law) {
      case RowLaw::simplex:
        return gradients_as<RowLaw::simplex, T>(args);
      case RowLaw::l1_ball:
        return gradients_as<RowLaw::l1_ball, T>(args);
      case RowLaw::linf:
        return gradients_as<RowLaw::linf, T>(args);
      case RowLaw::exclusive:
        return gradients_as<RowLaw::exclusive, T>(args);
      case RowLaw::capped:
        return gradients_as<RowLaw::capped, T>(args);
      case RowLaw::entmax15:
        return gradients_as<RowLaw::entmax15, T>(args);
    }
  });
}

}  // namespace regkern::REGKERN_ISA
