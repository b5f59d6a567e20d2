#include "transport/sliced.h"

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

// Where both runs have as many elements of one weight, the loop over them is one of vectors.
template <int kPower, typename T>
inline void add_pairs(const T* x, const T* y, int64_t n, double* lanes) {
  for (int64_t first = 0; first < n; first += kSliceLanes) {
    const int64_t left = n - first < kSliceLanes ? n - first : kSliceLanes;
#pragma omp simd
    for (int64_t i = 0; i < left; ++i) {
      const double d = static_cast<double>(x[first + i]) - static_cast<double>(y[first + i]);
      lanes[i] += kPower == 1 ? fabs(d) : d * d;
    }
  }
}

template <typename T>
double cost_of(const SlicedArgs& args, int64_t slice) {
  alignas(64) double lanes[kSliceLanes] = {};
  const T* const x = static_cast<const T*>(args.x) + slice * args.rows;
  const T* const y = static_cast<const T*>(args.y) + slice * args.columns;
  const bool paired = args.a == nullptr && args.rows == args.columns;
  if (paired && args.power == 1.0) {
    add_pairs<1>(x, y, args.rows, lanes);
  } else if (paired && args.power == 2.0) {
    add_pairs<2>(x, y, args.rows, lanes);
  } else {
    for (int64_t i = 0; i < args.rows; ++i)
      lanes[i % kSliceLanes] += slice_term<T>(args, slice, i);
  }
  for (int half = kSliceLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0] * mass_unit(args);
}

template <typename T>
void slopes_of(const SlicedSlopesArgs& args, int64_t slice) {
  const SlicedArgs& lines = args.lines;
  const int64_t n = lines.rows, m = lines.columns;
  const double g = static_cast<double>(static_cast<const T*>(args.g)[slice]) * mass_unit(lines);
  T* const dx = static_cast<T*>(args.dx) + slice * n;
  T* const dy = static_cast<T*>(args.dy) + slice * m;
  const int64_t* const order_x = args.order_x + slice * n;
  const int64_t* const order_y = args.order_y + slice * m;
  if (lines.a == nullptr && n == m) {
    const T* const x = static_cast<const T*>(lines.x) + slice * n;
    const T* const y = static_cast<const T*>(lines.y) + slice * n;
    for (int64_t i = 0; i < n; ++i) {
      const double d = static_cast<double>(x[i]) - static_cast<double>(y[i]);
      const T slope = static_cast<T>(g * slope_of(d, lines.power));
      dx[order_x[i]] = slope;
      dy[order_y[i]] = -slope;
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i)
    dx[order_x[i]] = static_cast<T>(g * slice_slope<true, T>(lines, slice, i));
  for (int64_t j = 0; j < m; ++j)
    dy[order_y[j]] = static_cast<T>(g * slice_slope<false, T>(lines, slice, j));
}

inline int64_t grain_of(const SlicedArgs& args) {
  return 1 + (int64_t{1} << 14) / (args.rows + args.columns + 1);
}

}  // namespace

void sliced_cost(const SlicedArgs& args, Context) {
  parallel_for(args.slices, grain_of(args), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      if (args.dtype == Dtype::float64)
        static_cast<double*>(args.cost)[s] = cost_of<double>(args, s);
      else
        static_cast<float*>(args.cost)[s] = static_cast<float>(cost_of<float>(args, s));
    }
  });
}

void sliced_slopes(const SlicedSlopesArgs& args, Context) {
  parallel_for(args.lines.slices, grain_of(args.lines), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      if (args.lines.dtype == Dtype::float64)
        slopes_of<double>(args, s);
      else
        slopes_of<float>(args, s);
    }
  });
}

}  // namespace regkern::REGKERN_ISA
