#include <vector>

#include "core/square_sum.cuh"
#include "core/tensor_list.cuh"
#include "spectral/row_norms.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

// A warp has a row of up to kLanes elements, which stay in its registers; a block a longer one,
// which it reads again from the cache. Lanes are those of core/square_sum.h.
constexpr int kRowThreads = kLaneThreads<kListLanes>;
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kStripe = 32 * kListLanes;
constexpr int kStripes = kLanes / kStripe;

// Tiles of these: a row each, or kRowWarps rows.
struct Lines {
  const void* x;
  const void* g;
  void* y;
  int64_t numel;  // rows
  int64_t n, row;
};

template <typename T>
__device__ __forceinline__ void load_wide(const T* data, int64_t left, bool aligned,
                                          compute_t<T> (&out)[kListLanes]) {
  T raw[kListLanes];
  load_lanes(data, left, aligned, raw);
#pragma unroll
  for (int v = 0; v < kListLanes; ++v) out[v] = widen(raw[v]);
}

template <typename T>
__device__ __forceinline__ void store_narrow(const compute_t<T> (&in)[kListLanes], int64_t left,
                                             bool aligned, T* data) {
  T raw[kListLanes];
#pragma unroll
  for (int v = 0; v < kListLanes; ++v) narrow(in[v], raw + v);
  store_lanes(raw, left, aligned, data);
}

// Vectors where every row begins at one.
template <typename T>
__device__ __forceinline__ bool rows_aligned(const Lines& lines) {
  return lines.n % kLanesOf<T> == 0 && aligned_for_vectors(lines.x) &&
         aligned_for_vectors(lines.y) && aligned_for_vectors(lines.g);
}

template <typename C>
__device__ __forceinline__ C rescaled(double factor, bool fits, C x) {
  return fits ? static_cast<C>(factor) * x : static_cast<C>(factor * static_cast<double>(x));
}

template <typename C>
__device__ __forceinline__ C gradient_at(double inverse, double along, bool fits, C g, C x) {
  if (fits) return RowGradient<C>{static_cast<C>(inverse), static_cast<C>(along)}(g, x);
  return static_cast<C>(
      RowGradient<double>{inverse, along}(static_cast<double>(g), static_cast<double>(x)));
}

// The sum of squares of a row that a warp has in registers, in every lane.
template <typename C>
__device__ __forceinline__ double warp_squares(const C (&x)[kStripes][kListLanes]) {
  const C sum =
      fold_team<C, kStripes, kListLanes>(32, [&](int k, int v) { return x[k][v] * x[k][v]; });
  if (square_sum_holds(sum)) return static_cast<double>(sum);
  return fold_team<double, kStripes, kListLanes>(32, [&](int k, int v) {
    const double value = static_cast<double>(x[k][v]);
    return value * value;
  });
}

// The sum over the segment [begin, end) of a row, in every thread of the block: term(e, left,
// lanes) adds the terms of the thread's neighbours from e on.
template <typename A, typename Term>
__device__ __forceinline__ A block_segment(int64_t begin, int64_t end, A* shared,
                                           const Term& term) {
  A lanes[kListLanes] = {};
#pragma unroll 1
  for (int64_t e = begin + static_cast<int64_t>(threadIdx.x) * kListLanes; e < end; e += kLanes)
    term(e, end - e, lanes);
  return fold_block<A, kListLanes>(lanes, shared);
}

template <typename T>
__device__ __forceinline__ double block_squares(const T* x, int64_t n, bool aligned,
                                                double* shared) {
  using C = compute_t<T>;
  double total = 0.0;
#pragma unroll 1
  for (int64_t begin = 0; begin < n; begin += kSegment) {
    const int64_t end = begin + kSegment < n ? begin + kSegment : n;
    const C sum = block_segment<C>(begin, end, reinterpret_cast<C*>(shared),
                                   [&](int64_t e, int64_t left, C(&lanes)[kListLanes]) {
                                     C value[kListLanes];
                                     load_wide(x + e, left, aligned, value);
#pragma unroll
                                     for (int v = 0; v < kListLanes; ++v)
                                       lanes[v] += value[v] * value[v];
                                   });
    double wide = static_cast<double>(sum);
    if (!square_sum_holds(sum))
      wide = block_segment<double>(
          begin, end, shared, [&](int64_t e, int64_t left, double (&lanes)[kListLanes]) {
            C value[kListLanes];
            load_wide(x + e, left, aligned, value);
#pragma unroll
            for (int v = 0; v < kListLanes; ++v)
              lanes[v] += static_cast<double>(value[v]) * static_cast<double>(value[v]);
          });
    total += wide;
  }
  return total;
}

template <typename T, bool kWarp>
__global__ void __launch_bounds__(kRowThreads, kWarp ? 4 : 6)
    row_rescale_kernel(const __grid_constant__ ListChunk<Lines> chunk, RowLaw law, const void* step,
                       double* norms, int tiles) {
  using C = compute_t<T>;
  RK_SHARED(double, shared, (kWarp ? 1 : kLanes));
  const double a = step != nullptr ? static_cast<double>(*static_cast<const C*>(step)) : 0.0;
  const int thread = static_cast<int>(threadIdx.x);
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const Lines& lines = chunk.rows[place.row];
    const int64_t n = lines.n;
    const bool aligned = rows_aligned<T>(lines);
    if constexpr (kWarp) {
      const int64_t r = place.tile * kRowWarps + thread / 32;
      if (r >= lines.numel) continue;
      const T* const x = static_cast<const T*>(lines.x) + r * n;
      T* const y = static_cast<T*>(lines.y) + r * n;
      const int mine = thread % 32 * kListLanes;
      C kept[kStripes][kListLanes];
#pragma unroll
      for (int k = 0; k < kStripes; ++k)
        load_wide(x + mine + k * kStripe, n - mine - k * kStripe, aligned, kept[k]);
      const double s = sqrt(warp_squares<C>(kept));
      if (thread % 32 == 0) norms[lines.row + r] = s;
      const double factor = rescale_factor(law, s, a);
      if (factor == 1.0 && x == y) continue;
      const bool fits = factor_fits<C>(factor);
#pragma unroll
      for (int k = 0; k < kStripes; ++k) {
#pragma unroll
        for (int v = 0; v < kListLanes; ++v)
          if (factor != 1.0) kept[k][v] = rescaled(factor, fits, kept[k][v]);
        store_narrow(kept[k], n - mine - k * kStripe, aligned, y + mine + k * kStripe);
      }
    } else {
      const int64_t r = place.tile;
      const T* const x = static_cast<const T*>(lines.x) + r * n;
      T* const y = static_cast<T*>(lines.y) + r * n;
      const double s = sqrt(block_squares(x, n, aligned, shared));
      if (thread == 0) norms[lines.row + r] = s;
      const double factor = rescale_factor(law, s, a);
      if (factor == 1.0 && x == y) continue;
      const bool fits = factor_fits<C>(factor);
#pragma unroll 1
      for (int64_t e = int64_t{thread} * kListLanes; e < n; e += kLanes) {
        C value[kListLanes];
        load_wide(x + e, n - e, aligned, value);
#pragma unroll
        for (int v = 0; v < kListLanes; ++v)
          if (factor != 1.0) value[v] = rescaled(factor, fits, value[v]);
        store_narrow(value, n - e, aligned, y + e);
      }
    }
  }
}

template <typename T, bool kWarp>
__global__ void __launch_bounds__(kRowThreads, kWarp ? 4 : 6)
    row_project_backward_kernel(const __grid_constant__ ListChunk<Lines> chunk, const double* norms,
                                int tiles) {
  using C = compute_t<T>;
  RK_SHARED(double, shared, (kWarp ? 1 : kLanes));
  const int thread = static_cast<int>(threadIdx.x);
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const Lines& lines = chunk.rows[place.row];
    const int64_t n = lines.n;
    const bool aligned = rows_aligned<T>(lines);
    const int64_t r = kWarp ? place.tile * kRowWarps + thread / 32 : place.tile;
    if (r >= lines.numel) continue;
    const T* const x = static_cast<const T*>(lines.x) + r * n;
    const T* const g = static_cast<const T*>(lines.g) + r * n;
    T* const y = static_cast<T*>(lines.y) + r * n;
    double dot = 0.0;
    if constexpr (kWarp) {
      double products[kStripes][kListLanes];
#pragma unroll
      for (int k = 0; k < kStripes; ++k) {
        const int64_t e = thread % 32 * kListLanes + k * kStripe;
        C wx[kListLanes], wg[kListLanes];
        load_wide(x + e, n - e, aligned, wx);
        load_wide(g + e, n - e, aligned, wg);
#pragma unroll
        for (int v = 0; v < kListLanes; ++v)
          products[k][v] = static_cast<double>(wg[v]) * static_cast<double>(wx[v]);
      }
      dot =
          fold_team<double, kStripes, kListLanes>(32, [&](int k, int v) { return products[k][v]; });
    } else {
#pragma unroll 1
      for (int64_t begin = 0; begin < n; begin += kSegment)
        dot += block_segment<double>(begin, begin + kSegment < n ? begin + kSegment : n, shared,
                                     [&](int64_t e, int64_t left, double (&lanes)[kListLanes]) {
                                       C wx[kListLanes], wg[kListLanes];
                                       load_wide(x + e, left, aligned, wx);
                                       load_wide(g + e, left, aligned, wg);
#pragma unroll
                                       for (int v = 0; v < kListLanes; ++v)
                                         lanes[v] += static_cast<double>(wg[v]) *
                                                     static_cast<double>(wx[v]);
                                     });
    }
    const double s = norms[lines.row + r];
    const bool zero = s == 0.0;
    const double inverse = zero ? 0.0 : 1.0 / s, along = dot * inverse;
    const bool fits = factor_fits<C>(inverse);
    const int64_t first = int64_t{kWarp ? thread % 32 : thread} * kListLanes;
#pragma unroll 1
    for (int64_t e = first; e < n; e += kWarp ? kStripe : kLanes) {
      C wx[kListLanes], wg[kListLanes];
      load_wide(x + e, n - e, aligned, wx);
      load_wide(g + e, n - e, aligned, wg);
#pragma unroll
      for (int v = 0; v < kListLanes; ++v)
        wx[v] = zero ? C(0) : gradient_at(inverse, along, fits, wg[v], wx[v]);
      store_narrow(wx, n - e, aligned, y + e);
    }
  }
}

// launch(warps a row, chunk, tiles), short rows and long ones apart.
template <typename Launch>
void for_each_lines(const NormedRows* rows, int64_t count, Launch&& launch) {
  std::vector<Lines> of[2];
  for (int64_t i = 0; i < count; ++i) {
    const NormedRows& row = rows[i];
    of[row.n <= kLanes ? 0 : 1].push_back({row.x, row.g, row.y, row.rows, row.n, row.row});
  }
  for_each_chunk<kRowWarps>(of[0].data(), static_cast<int64_t>(of[0].size()),
                            [&](const ListChunk<Lines>& chunk, int64_t, int64_t tiles) {
                              launch(std::true_type{}, chunk, tiles);
                            });
  for_each_chunk<1>(of[1].data(), static_cast<int64_t>(of[1].size()),
                    [&](const ListChunk<Lines>& chunk, int64_t, int64_t tiles) {
                      launch(std::false_type{}, chunk, tiles);
                    });
}

}  // namespace

void row_rescale(const RowRescaleArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    for_each_lines(args.rows, args.count,
                   [&](auto warp, const ListChunk<Lines>& chunk, int64_t tiles) {
                     RK_LAUNCH((row_rescale_kernel<decltype(zero), decltype(warp)::value>),
                               grid_blocks(tiles, 16), kRowThreads, 0, stream, chunk, args.law,
                               args.step, args.norms, static_cast<int>(tiles));
                   });
  });
}

void row_project_backward(const RowProjectBackwardArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    for_each_lines(args.rows, args.count,
                   [&](auto warp, const ListChunk<Lines>& chunk, int64_t tiles) {
                     RK_LAUNCH((row_project_backward_kernel<decltype(zero), decltype(warp)::value>),
                               grid_blocks(tiles, 16), kRowThreads, 0, stream, chunk, args.norms,
                               static_cast<int>(tiles));
                   });
  });
}

}  // namespace regkern::cuda
