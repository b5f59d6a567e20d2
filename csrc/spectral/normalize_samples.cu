#include "spectral/normalize_samples.h"
#include "spectral/sample_pieces.cuh"
#include "spectral/sample_sums.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

constexpr int kBlocksPerSm = 8;

REGKERN_HD double* factors_of(const NormalizeSamplesArgs& args) {
  return args.partial + args.samples.count * piece_count(args.samples.size);
}

template <typename C>
__global__ void __launch_bounds__(kPieceThreads) sample_factors_kernel(NormalizeSamplesArgs args) {
  const Samples& s = args.samples;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPieceThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPieceThreads + threadIdx.x; i < s.count;
       i += step) {
    const double norm = regkern::sqrt(sample_total(args.partial, s, 0, i));
    static_cast<C*>(args.norm)[i] = static_cast<C>(norm);
    factors_of(args)[i] = normalizing_factor(
        norm, static_cast<double>(static_cast<const C*>(args.scale)[i * args.scale_stride]));
  }
}

template <typename T>
__global__ void __launch_bounds__(kPieceThreads)
    normalize_samples_kernel(NormalizeSamplesArgs args, bool wide) {
  using C = compute_t<T>;
  const Samples& s = args.samples;
  const int64_t pieces = piece_count(s.size), items = s.count * pieces;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPieceWarps;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kPieceWarps + threadIdx.x / kWarp;
       item < items; item += step) {
    const int64_t sample = item / pieces, first = (item - sample * pieces) * kPiece;
    const int n = piece_length(sample_length(s, sample), first);
    const int64_t at = sample * s.size + first;
    const double factor = factors_of(args)[sample];
    const int whole = piece_length(s.size, first);
#pragma unroll 2
    for (int k = 0; k < kStripes; ++k) {
      C x[kNeighbours];
      load_stripe(static_cast<const T*>(args.x) + at, k, n, wide, x);
#pragma unroll
      for (int v = 0; v < kNeighbours; ++v)
        x[v] = stripe_start(k) + v < n ? normalized(x[v], factor) : C(0);
      store_stripe(x, k, whole, wide, static_cast<T*>(args.y) + at);
    }
  }
}

}  // namespace

void normalize_samples(const NormalizeSamplesArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Samples& s = args.samples;
  const int64_t items = s.count * piece_count(s.size);
  if (s.count == 0) return;
  sample_sums(
      SampleSumsArgs{args.dtype, SampleSum::squares, s, args.x, nullptr, args.partial, nullptr},
      context);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    RK_LAUNCH((sample_factors_kernel<compute_t<T>>),
              grid_blocks(ceil_div(s.count, int64_t{kPieceThreads}), kBlocksPerSm), kPieceThreads,
              0, stream, args);
    if (items == 0) return;
    const bool wide = has_vectors<T>(args.x, s.size) && has_vectors<T>(args.y, s.size);
    RK_LAUNCH((normalize_samples_kernel<T>),
              grid_blocks(ceil_div(items, int64_t{kPieceWarps}), kBlocksPerSm), kPieceThreads, 0,
              stream, args, wide);
  });
}

}  // namespace regkern::cuda
