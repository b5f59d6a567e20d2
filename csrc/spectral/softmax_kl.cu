#include "spectral/sample_pieces.cuh"
#include "spectral/softmax_kl.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

constexpr int kBlocksPerSm = 8;

// The largest of a row, by a warp.
template <typename T>
__device__ __forceinline__ compute_t<T> warp_maximum(const T* x, int64_t n) {
  using C = compute_t<T>;
  C most = -static_cast<C>(__builtin_inf());
  for (int64_t i = threadIdx.x % kWarp; i < n; i += kWarp) {
    const C value = widen(x[i]);
    most = value > most ? value : most;
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const C other = __shfl_xor_sync(kWholeWarp, most, offset);
    most = other > most ? other : most;
  }
  return shift_of(most);
}

template <typename T>
__device__ __forceinline__ Softmax<compute_t<T>> warp_softmax(const T* x, int64_t n, bool wide) {
  using C = compute_t<T>;
  const C most = warp_maximum(x, n);
  double sum = 0.0;
  for (int64_t first = 0; first < n; first += kPiece) {
    const int m = piece_length(n, first);
    C values[kStripes][kNeighbours];
    load_piece(x + first, m, wide, values);
    sum += fold_piece(m, [&](int k, int v) {
      return stripe_start(k) + v < m ? static_cast<double>(exp_to_zero(values[k][v] - most)) : 0.0;
    });
  }
  return softmax_of(most, sum);
}

// A warp has a row.
template <typename T>
__global__ void __launch_bounds__(kPieceThreads) softmax_kl_kernel(SoftmaxKLArgs args, bool wide) {
  using C = compute_t<T>;
  const int64_t n = args.size, step = static_cast<int64_t>(gridDim.x) * kPieceWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kPieceWarps + threadIdx.x / kWarp;
       row < args.rows; row += step) {
    const T* x = static_cast<const T*>(args.p) + row * n;
    const T* y = static_cast<const T*>(args.q) + row * n;
    const Softmax<C> p = warp_softmax(x, n, wide);
    const Softmax<C> q = softmax_beside(p, warp_softmax(y, n, wide));
    double value = 0.0;
    for (int64_t first = 0; first < n; first += kPiece) {
      const int m = piece_length(n, first);
      C a[kStripes][kNeighbours], b[kStripes][kNeighbours];
      load_piece(x + first, m, wide, a);
      load_piece(y + first, m, wide, b);
      value += fold_piece(m, [&](int k, int v) {
        const C term = kl_value(kl_probability(a[k][v], p), kl_probability(b[k][v], q),
                                kl_exponent(a[k][v], b[k][v], p, q));
        return stripe_start(k) + v < m ? static_cast<double>(term) : 0.0;
      });
    }
    if (threadIdx.x % kWarp == 0) {
      static_cast<C*>(args.value)[row] = static_cast<C>(value);
      store_softmax(p, args.stats, args.rows, row, 0);
      store_softmax(q, args.stats, args.rows, row, 1);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kPieceThreads)
    softmax_kl_gradient_kernel(SoftmaxKLBackwardArgs args) {
  using C = compute_t<T>;
  const int64_t n = args.size, step = static_cast<int64_t>(gridDim.x) * kPieceWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kPieceWarps + threadIdx.x / kWarp;
       row < args.rows; row += step) {
    const Softmax<C> p = load_softmax<C>(args.stats, args.rows, row, 0);
    const Softmax<C> q = load_softmax<C>(args.stats, args.rows, row, 1);
    const C g = static_cast<const C*>(args.g)[row], value = static_cast<const C*>(args.value)[row];
    for (int64_t i = row * n + threadIdx.x % kWarp; i < (row + 1) * n; i += kWarp) {
      const C x = widen(static_cast<const T*>(args.p)[i]);
      const C y = widen(static_cast<const T*>(args.q)[i]);
      const C here = kl_probability(x, p), there = kl_probability(y, q);
      const C d = kl_exponent(x, y, p, q);
      if (args.dp != nullptr) narrow(g * kl_slope_p(here, d, value), static_cast<T*>(args.dp) + i);
      if (args.dq != nullptr) narrow(g * kl_slope_q(here, there, d), static_cast<T*>(args.dq) + i);
    }
  }
}

}  // namespace

void softmax_kl(const SoftmaxKLArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.rows == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = has_vectors<T>(args.p, args.size) && has_vectors<T>(args.q, args.size);
    RK_LAUNCH((softmax_kl_kernel<T>),
              grid_blocks(ceil_div(args.rows, int64_t{kPieceWarps}), kBlocksPerSm), kPieceThreads,
              0, stream, args, wide);
  });
}

void softmax_kl_backward(const SoftmaxKLBackwardArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.rows == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((softmax_kl_gradient_kernel<decltype(zero)>),
              grid_blocks(ceil_div(args.rows, int64_t{kPieceWarps}), kBlocksPerSm), kPieceThreads,
              0, stream, args);
  });
}

}  // namespace regkern::cuda
