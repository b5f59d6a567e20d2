#include "core/tensor_list.cuh"
#include "sparse/gate.h"

namespace regkern::cuda {
namespace {

using namespace sparse;

template <typename T>
__global__ void __launch_bounds__(kListThreads, 4)
    score_gate_kernel(const __grid_constant__ ScoreGateArgs args, int64_t tiles) {
  using C = compute_t<T>;
  const T* const w = static_cast<const T*>(args.w);
  const T* const s = static_cast<const T*>(args.s);
  T* const y = static_cast<T*>(args.y);
  const C threshold = static_cast<C>(args.threshold);
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t e = t * kListTile + mine, left = args.numel - e;
    if (left <= 0) continue;
    T v[kListLanes], score[kListLanes];
    load_lanes(w + e, left, aligned_for_vectors(w), v);
    load_lanes(s + e, left, aligned_for_vectors(s), score);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i)
      narrow(gated<C>(widen(v[i]), widen(score[i]), threshold), v + i);
    store_lanes(v, left, aligned_for_vectors(y), y + e);
  }
}

constexpr int kThreads = 256, kApart = 4;  // elements of a thread, 16 apart: those of one counter

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    gradient_dropout_kernel(const __grid_constant__ GradientDropoutArgs args, int64_t threads) {
  using C = compute_t<T>;
  const Seed seed = load_seed(args.seed);
  const T* const g = static_cast<const T*>(args.g);
  const T* const r = static_cast<const T*>(args.reference);
  T* const y = static_cast<T*>(args.y);
  const C kept = static_cast<C>(1.0 - args.strength), epsilon = static_cast<C>(args.epsilon);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; t < threads;
       t += step) {
    const int64_t first = t / 16 * (16 * kApart) + t % 16;
    T of_g[kApart], of_r[kApart];
#pragma unroll
    for (int j = 0; j < kApart; ++j) {
      const int64_t e = first + 16 * j;
      of_g[j] = e < args.numel ? g[e] : T{};
      of_r[j] = e < args.numel ? r[e] : T{};
    }
    const Words words = philox(seed, Stream::mask, static_cast<uint64_t>(t));
#pragma unroll
    for (int j = 0; j < kApart; ++j) {
      const int64_t e = first + 16 * j;
      if (e < args.numel)
        narrow(dropped_gradient<C>(widen(of_g[j]), widen(of_r[j]), unit_uniform<C>(words.w[j]),
                                   kept, epsilon),
               y + e);
    }
  }
}

}  // namespace

void score_gate(const ScoreGateArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t tiles = ceil_div(args.numel, kListTile);
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((score_gate_kernel<decltype(zero)>), grid_blocks(tiles, 8), kListThreads, 0, stream,
              args, tiles);
  });
}

void gradient_dropout(const GradientDropoutArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t threads = ceil_div(args.numel, int64_t{16 * kApart}) * 16;
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((gradient_dropout_kernel<decltype(zero)>),
              grid_blocks(ceil_div(threads, int64_t{kThreads}), 16), kThreads, 0, stream, args,
              threads);
  });
}

}  // namespace regkern::cuda
