#include "core/launch.cuh"
#include "quantize/levels.h"
#include "quantize/segments.cuh"

namespace regkern::cuda {
namespace {

using namespace quantize;

constexpr int kThreads = 256;

template <typename C>
__global__ void __launch_bounds__(kThreads)
    bounds_kernel(const C* values, int64_t groups, int levels, Bounds<C>* bounds) {
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; g < groups;
       g += static_cast<int64_t>(gridDim.x) * kThreads)
    bounds[g] = bounds_of(values + g * levels, levels);
}

template <typename C>
void launch_bounds(const void* values, int64_t groups, int levels, void* bounds,
                   cudaStream_t stream) {
  RK_LAUNCH((bounds_kernel<C>), grid_blocks(ceil_div(groups, int64_t{kThreads}), 8), kThreads, 0,
            stream, static_cast<const C*>(values), groups, levels, static_cast<Bounds<C>*>(bounds));
}

// ---- nearest_level ----

// V neighbours of one group.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(kThreads, 4) nearest_kernel(NearestLevelArgs a) {
  using C = compute_t<T>;
  const T* x = static_cast<const T*>(a.x);
  const I numel = static_cast<I>(element_count(a.segments));
  const I inner = static_cast<I>(a.segments.inner), groups = static_cast<I>(a.segments.groups);
  for (I e = (static_cast<I>(blockIdx.x) * kThreads + threadIdx.x) * V; e < numel;
       e += static_cast<I>(gridDim.x) * kThreads * V) {
    const I g = groups == 1 ? 0 : e / inner % groups;
    const C* values = static_cast<const C*>(a.values) + static_cast<int64_t>(g) * a.levels;
    const Bounds<C> bounds = static_cast<const Bounds<C>*>(a.bounds)[g];
    const Vector<T, V> in = load_vector<T, V>(x + e);
    Vector<T, V> out;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const auto at = static_cast<int64_t>(e) + i;
      const Nearest<C> found =
          nearest_of<C>(widen(in.v[i]), values, a.levels, bounds, allowed_at(a.allowed, at));
      narrow(found.value, out.v + i);
      set_code(a.codes, at, found.code);
    }
    store_vector<T, V>(out, static_cast<T*>(a.y) + e);
  }
}

template <typename T, int V>
void launch_nearest(const NearestLevelArgs& a, cudaStream_t stream) {
  const int64_t numel = element_count(a.segments);
  const int64_t blocks = grid_blocks(ceil_div(numel, int64_t{kThreads} * V), 16);
  if (numel < (int64_t{1} << 31))
    RK_LAUNCH((nearest_kernel<T, V, uint32_t>), blocks, kThreads, 0, stream, a);
  else
    RK_LAUNCH((nearest_kernel<T, V, int64_t>), blocks, kThreads, 0, stream, a);
}

template <typename T>
__global__ void __launch_bounds__(kSumThreads) nearest_sums_kernel(NearestLevelArgs a) {
  using C = compute_t<T>;
  RK_DYNAMIC_SHARED(double, shared);
  for_lanes(a.segments, a.sums.bins, a.sums.lanes, shared,
            [&](int64_t g, int64_t e, const LaneSums& sums) {
              const C x = widen(static_cast<const T*>(a.x)[e]);
              const Nearest<C> found = nearest_of<C>(
                  x, static_cast<const C*>(a.values) + g * a.levels, a.levels,
                  static_cast<const Bounds<C>*>(a.bounds)[g], allowed_at(a.allowed, e));
              narrow(found.value, static_cast<T*>(a.y) + e);
              set_code(a.codes, e, found.code);
              const C d = x - found.value;
              sums[0] += static_cast<double>(d * d);
            });
}

template <typename T>
void nearest_all(const NearestLevelArgs& a, cudaStream_t stream) {
  const Segments& s = a.segments;
  if (element_count(s) > 0) {
    launch_bounds<compute_t<T>>(a.values, s.groups, a.levels, a.bounds, stream);
    if (a.sums.bins > 0) {
      RK_LAUNCH((nearest_sums_kernel<T>), lane_blocks(s, a.sums.bins), sum_threads(a.sums.bins),
                sum_bytes(a.sums.bins), stream, a);
    } else {
      constexpr int V = kLanesOf<T>;
      const bool whole = s.inner % V == 0 && is_aligned(a.x) && is_aligned(a.y);
      whole ? launch_nearest<T, V>(a, stream) : launch_nearest<T, 1>(a, stream);
    }
  }
  if (a.sums.bins > 0) launch_sums(s, a.sums, stream);
}

// ---- level_gradient ----

template <typename T>
struct GradientTerm {
  compute_t<T> term;
  int code;
};

// Writes dx of an element and returns what goes to the sum of its level.
template <typename T, LevelGradient kKind>
__device__ __forceinline__ GradientTerm<T> gradient_at(const LevelGradientArgs& a, int64_t g,
                                                       int64_t e, bool with_code) {
  using C = compute_t<T>;
  const C grad = widen(static_cast<const T*>(a.g)[e]);
  GradientTerm<T> result{grad, with_code ? code_at(a.codes, e, a.levels) : 0};
  if constexpr (kKind == LevelGradient::latent) {
    const C slope =
        static_cast<C>(a.mean * static_cast<double>(*static_cast<const C*>(a.commitment)));
    const C level = static_cast<const C*>(a.values)[g * a.levels + result.code];
    result.term = level - widen(static_cast<const T*>(a.x)[e]);
    narrow(grad - slope * result.term, static_cast<T*>(a.dx) + e);
  } else if constexpr (kKind == LevelGradient::clip) {
    const Bounds<C> b = static_cast<const Bounds<C>*>(a.bounds)[g];
    const C x = widen(static_cast<const T*>(a.x)[e]);
    narrow(x < b.low || x > b.high ? C(0) : grad, static_cast<T*>(a.dx) + e);
  }
  return result;
}

template <typename T, LevelGradient kKind>
__global__ void __launch_bounds__(kSumThreads) gradient_sums_kernel(LevelGradientArgs a) {
  RK_DYNAMIC_SHARED(double, shared);
  for_lanes(a.segments, a.sums.bins, a.sums.lanes, shared,
            [&](int64_t g, int64_t e, const LaneSums& sums) {
              const GradientTerm<T> t = gradient_at<T, kKind>(a, g, e, true);
              sums[t.code] += static_cast<double>(t.term);
            });
}

template <typename T, LevelGradient kKind>
__global__ void __launch_bounds__(kThreads) gradient_kernel(LevelGradientArgs a) {
  const Segments& s = a.segments;
  const int64_t numel = element_count(s);
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < numel;
       e += static_cast<int64_t>(gridDim.x) * kThreads)
    gradient_at<T, kKind>(a, s.groups == 1 ? 0 : e / s.inner % s.groups, e,
                          kKind == LevelGradient::latent);
}

template <typename T, LevelGradient kKind>
void gradient_as(const LevelGradientArgs& a, cudaStream_t stream) {
  const Segments& s = a.segments;
  const int64_t numel = element_count(s);
  if (numel > 0) {
    if (kKind == LevelGradient::clip)
      launch_bounds<compute_t<T>>(a.values, s.groups, a.levels, a.bounds, stream);
    if (a.with_sums)
      RK_LAUNCH((gradient_sums_kernel<T, kKind>), lane_blocks(s, a.sums.bins),
                sum_threads(a.sums.bins), sum_bytes(a.sums.bins), stream, a);
    else if (kKind != LevelGradient::sum)
      RK_LAUNCH((gradient_kernel<T, kKind>), grid_blocks(ceil_div(numel, int64_t{kThreads}), 16),
                kThreads, 0, stream, a);
  }
  if (a.with_sums) launch_sums(s, a.sums, stream);
}

}  // namespace

void nearest_level(const NearestLevelArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) { nearest_all<decltype(zero)>(args, stream); });
}

void level_gradient(const LevelGradientArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.kind == LevelGradient::sum) return gradient_as<T, LevelGradient::sum>(args, stream);
    if (args.kind == LevelGradient::clip) return gradient_as<T, LevelGradient::clip>(args, stream);
    gradient_as<T, LevelGradient::latent>(args, stream);
  });
}

}  // namespace regkern::cuda
