#include "core/tensor_list.cuh"
#include "masks/shapes.h"

namespace regkern::cuda {
namespace {

using namespace masks;

constexpr int kThreads = 256;

int64_t blocks_for(int64_t work) { return grid_blocks(ceil_div(work, int64_t{kThreads}), 16); }

// One thread of a grid-stride loop.
__device__ __forceinline__ int64_t first_work() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t work_stride() {
  return static_cast<int64_t>(gridDim.x) * kThreads;
}

__global__ void __launch_bounds__(kThreads, 4)
    shape_bits_kernel(const __grid_constant__ ShapeBitsArgs args, int64_t words) {
  for (int64_t t = first_work(); t < args.batch * words; t += work_stride()) {
    const int64_t b = t / words;
    ShapeRow row(args, b);
    const uint32_t bits = shape_word(args, &row, t - b * words);
    args.bits[t] = bits;
    atomicAdd(args.kept + b, popcount(bits));
  }
}

__global__ void __launch_bounds__(kThreads, 4) bands_kernel(BandsArgs args) {
  for (int64_t b = first_work(); b < args.batch; b += work_stride()) draw_bands(args, b);
}

__global__ void __launch_bounds__(kThreads, 4) mosaic_params_kernel(MosaicParamsArgs args) {
  for (int64_t b = first_work(); b < args.batch; b += work_stride()) draw_mosaic(args, b);
}

// Where an element lies.
struct Place {
  int64_t b, outer, pixel, inner;
};
__device__ __forceinline__ Place place_of(const Images& m, int64_t e) {
  const int64_t pixels = m.height * m.width;
  const int64_t i = m.inner == 1 ? 0 : e % m.inner, u = m.inner == 1 ? e : e / m.inner;
  const int64_t plane = u / pixels;
  return {plane / m.outer, plane % m.outer, u % pixels, i};
}
__device__ __forceinline__ void step(const Images& m, Place* p) {
  if (++p->inner < m.inner) return;
  p->inner = 0;
  if (++p->pixel < m.height * m.width) return;
  p->pixel = 0;
  if (++p->outer < m.outer) return;
  p->outer = 0;
  ++p->b;
}
__device__ __forceinline__ int64_t element_of(const Images& m, int64_t b, int64_t outer,
                                              int64_t pixel, int64_t inner) {
  return ((b * m.outer + outer) * m.height * m.width + pixel) * m.inner + inner;
}
__device__ __forceinline__ bool is_kept(const uint32_t* bits, const Images& m, int64_t b,
                                        int64_t pixel) {
  const int64_t words = bit_words(m.height * m.width);
  return (bits[b * words + pixel / 32] >> (pixel % 32) & 1u) != 0;
}

template <typename T>
__device__ __forceinline__ T no_number() {
  return narrowed<T>(static_cast<compute_t<T>>(__builtin_nanf("")));
}

// Bytes travel one by one: a vector of them is longer than a thread's neighbours.
template <typename T>
constexpr bool kTravels = kLanesOf<T> <= kListLanes;

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    mask_mix_kernel(const __grid_constant__ MaskMixArgs args, int64_t total) {
  using C = compute_t<T>;
  const Images& m = args.images;
  const T* const x = static_cast<const T*>(args.x);
  T* const y = static_cast<T*>(args.y);
  for (int64_t e = first_work() * kListLanes; e < total; e += work_stride() * kListLanes) {
    const int64_t left = total - e;
    T v[kListLanes];
    if constexpr (kTravels<T>) {
      load_lanes(x + e, left, aligned_for_vectors(x), v);
    } else {
#pragma unroll
      for (int i = 0; i < kListLanes; ++i) v[i] = i < left ? x[e + i] : T{};
    }
    Place at = place_of(m, e);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      if (i < left && !is_kept(args.bits, m, at.b, at.pixel)) {
        if (args.partner != nullptr) {
          const int64_t partner = args.partner[at.b];
          v[i] = partner >= 0 && partner < m.batch
                     ? x[element_of(m, partner, at.outer, at.pixel, at.inner)]
                     : no_number<T>();
        } else {
          v[i] = narrowed<T>(static_cast<C>(fill_of(args, at.outer, at.inner)));
        }
      }
      step(m, &at);
    }
    if constexpr (kTravels<T>) {
      store_lanes(v, left, aligned_for_vectors(y), y + e);
    } else {
#pragma unroll
      for (int i = 0; i < kListLanes; ++i)
        if (i < left) y[e + i] = v[i];
    }
  }
}

// The entries of each target, in rising order: a thread looks for the first of target t, and for
// the one that follows entry t.
__global__ void __launch_bounds__(kThreads, 4)
    shape_links_kernel(const int64_t* target, int64_t entries, int64_t targets, int64_t* head,
                       int64_t* next) {
  const int64_t most = entries > targets ? entries : targets;
  for (int64_t t = first_work(); t < most; t += work_stride()) {
    int64_t first = -1, following = -1;
    const int64_t mine = t < entries ? target[t] : -1;
    for (int64_t i = entries - 1; i >= 0; --i) {
      if (target[i] == t) first = i;
      if (i > t && target[i] == mine) following = i;
    }
    if (t < targets) head[t] = first;
    if (t < entries) next[t] = following;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    mask_mix_adjoint_kernel(const __grid_constant__ MaskMixAdjointArgs args, int64_t total) {
  using C = compute_t<T>;
  const Images& m = args.images;
  const T* const g = static_cast<const T*>(args.g);
  for (int64_t e = first_work(); e < total; e += work_stride()) {
    const Place at = place_of(m, e);
    C sum = C(0);
    if (is_kept(args.bits, m, at.b, at.pixel)) sum += widen(g[e]);
    for (int64_t i = args.head[at.b]; i >= 0; i = args.next[i])
      if (!is_kept(args.bits, m, i, at.pixel))
        sum += widen(g[element_of(m, i, at.outer, at.pixel, at.inner)]);
    narrow(sum, static_cast<T*>(args.out) + e);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    mosaic_kernel(const __grid_constant__ MosaicArgs args, int64_t total) {
  const Images& m = args.images;
  const T* const x = static_cast<const T*>(args.x);
  for (int64_t e = first_work(); e < total; e += work_stride()) {
    const Place at = place_of(m, e);
    const int64_t row = at.pixel / m.width, column = at.pixel % m.width;
    int q = 0;
    for (int k = 1; k < 4; ++k)
      if (contains(quadrant_of(args, at.b, k).box, row, column)) q = k;
    const Quadrant a = quadrant_of(args, at.b, q);
    const int64_t partner = args.partner[4 * at.b + q];
    const bool found = partner >= 0 && partner < m.batch;
    const int64_t source = (row + a.dy) * m.width + column + a.dx;
    static_cast<T*>(args.y)[e] =
        found ? x[element_of(m, partner, at.outer, source, at.inner)] : no_number<T>();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    mosaic_adjoint_kernel(const __grid_constant__ MosaicArgs args, int64_t total) {
  using C = compute_t<T>;
  const Images& m = args.images;
  const T* const g = static_cast<const T*>(args.x);
  for (int64_t e = first_work(); e < total; e += work_stride()) {
    const Place at = place_of(m, e);
    const int64_t row = at.pixel / m.width, column = at.pixel % m.width;
    C sum = C(0);
    for (int64_t i = args.head[at.b]; i >= 0; i = args.next[i]) {
      const Quadrant a = quadrant_of(args, i / 4, static_cast<int>(i % 4));
      if (!contains(a.box, row - a.dy, column - a.dx)) continue;
      const int64_t pixel = (row - a.dy) * m.width + column - a.dx;
      sum += widen(g[element_of(m, i / 4, at.outer, pixel, at.inner)]);
    }
    narrow(sum, static_cast<T*>(args.y) + e);
  }
}

}  // namespace

void shape_bits(const ShapeBitsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t words = bit_words(args.height * args.width);
  if (args.batch == 0) return;
  zero_async(args.kept, static_cast<std::size_t>(args.batch) * sizeof(int32_t), stream);
  if (words == 0) return;
  RK_LAUNCH(shape_bits_kernel, blocks_for(args.batch * words), kThreads, 0, stream, args, words);
}

void bands(const BandsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.batch == 0) return;
  RK_LAUNCH(bands_kernel, blocks_for(args.batch), kThreads, 0, stream, args);
}

void mosaic_params(const MosaicParamsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.batch == 0) return;
  RK_LAUNCH(mosaic_params_kernel, blocks_for(args.batch), kThreads, 0, stream, args);
}

void mask_mix(const MaskMixArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t total = args.images.batch * sample_size(args.images);
  if (total == 0) return;
  dispatch_floating_or_byte(args.dtype, [&](auto zero) {
    RK_LAUNCH((mask_mix_kernel<decltype(zero)>), blocks_for(ceil_div(total, int64_t{kListLanes})),
              kThreads, 0, stream, args, total);
  });
}

void mask_mix_adjoint(const MaskMixAdjointArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t batch = args.images.batch, total = batch * sample_size(args.images);
  if (total == 0) return;
  RK_LAUNCH(shape_links_kernel, blocks_for(batch), kThreads, 0, stream, args.partner, batch, batch,
            args.head, args.next);
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((mask_mix_adjoint_kernel<decltype(zero)>), blocks_for(total), kThreads, 0, stream,
              args, total);
  });
}

void mosaic(const MosaicArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t total = args.images.batch * sample_size(args.images);
  if (total == 0) return;
  dispatch_floating_or_byte(args.dtype, [&](auto zero) {
    RK_LAUNCH((mosaic_kernel<decltype(zero)>), blocks_for(total), kThreads, 0, stream, args, total);
  });
}

void mosaic_adjoint(const MosaicArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t batch = args.images.batch, total = batch * sample_size(args.images);
  if (total == 0) return;
  RK_LAUNCH(shape_links_kernel, blocks_for(4 * batch), kThreads, 0, stream, args.partner, 4 * batch,
            batch, args.head, args.next);
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((mosaic_adjoint_kernel<decltype(zero)>), blocks_for(total), kThreads, 0, stream, args,
              total);
  });
}

}  // namespace regkern::cuda
