#include "spectral/sample_combine.h"
#include "spectral/sample_pieces.cuh"

namespace regkern::cuda {
namespace {

using namespace spectral;

constexpr int kBlocksPerSm = 8;

template <typename T>
__global__ void __launch_bounds__(kPieceThreads)
    sample_combine_kernel(SampleCombineArgs args, bool wide) {
  using C = compute_t<T>;
  const Samples& s = args.samples;
  const int64_t pieces = piece_count(s.size), items = s.count * pieces;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPieceWarps;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kPieceWarps + threadIdx.x / kWarp;
       item < items; item += step) {
    const int64_t sample = item / pieces, first = (item - sample * pieces) * kPiece;
    const int n = piece_length(sample_length(s, sample), first);
    const int64_t at = sample * s.size + first;
    const C p = static_cast<const C*>(args.p)[sample], q = static_cast<const C*>(args.q)[sample];
    const int whole = piece_length(s.size, first);
#pragma unroll 2
    for (int k = 0; k < kStripes; ++k) {
      C a[kNeighbours], b[kNeighbours];
      load_stripe(static_cast<const T*>(args.a) + at, k, n, wide, a);
      load_stripe(static_cast<const T*>(args.b) + at, k, n, wide, b);
#pragma unroll
      for (int v = 0; v < kNeighbours; ++v)
        a[v] = stripe_start(k) + v < n ? p * a[v] + q * b[v] : C(0);
      store_stripe(a, k, whole, wide, static_cast<T*>(args.y) + at);
    }
  }
}

}  // namespace

void sample_combine(const SampleCombineArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Samples& s = args.samples;
  const int64_t items = s.count * piece_count(s.size);
  if (items == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = has_vectors<T>(args.a, s.size) && has_vectors<T>(args.b, s.size) &&
                      has_vectors<T>(args.y, s.size);
    RK_LAUNCH((sample_combine_kernel<T>),
              grid_blocks(ceil_div(items, int64_t{kPieceWarps}), kBlocksPerSm), kPieceThreads, 0,
              stream, args, wide);
  });
}

}  // namespace regkern::cuda
