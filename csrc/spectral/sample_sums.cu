#include "spectral/sample_pieces.cuh"
#include "spectral/sample_sums.h"

namespace regkern::cuda {
namespace {

using namespace spectral;

constexpr int kBlocksPerSm = 8;

template <typename T, SampleSum kKind>
__global__ void __launch_bounds__(kPieceThreads)
    sample_pieces_kernel(SampleSumsArgs args, bool wide) {
  using C = compute_t<T>;
  const Samples& s = args.samples;
  const int64_t pieces = piece_count(s.size), items = s.count * pieces;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPieceWarps;
  const bool writes = threadIdx.x % kWarp == 0;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kPieceWarps + threadIdx.x / kWarp;
       item < items; item += step) {
    const int64_t sample = item / pieces, first = (item - sample * pieces) * kPiece;
    const int n = piece_length(sample_length(s, sample), first);
    const int64_t at = sample * s.size + first;
    C a[kStripes][kNeighbours];
    load_piece(static_cast<const T*>(args.a) + at, n, wide, a);
    const auto multiplied = [&](C x, C y) {
      return static_cast<double>(x) * static_cast<double>(y);
    };
    if constexpr (kKind == SampleSum::squares) {
      const double sum = fold_piece(n, [&](int k, int v) { return multiplied(a[k][v], a[k][v]); });
      if (writes) args.partial[item] = sum;
    } else {
      C b[kStripes][kNeighbours];
      load_piece(static_cast<const T*>(args.b) + at, n, wide, b);
      if constexpr (kKind == SampleSum::difference) {
        const double sum = fold_piece(n, [&](int k, int v) {
          const C d = a[k][v] - b[k][v];
          return multiplied(d, d);
        });
        if (writes) args.partial[item] = sum;
      } else {
        const double aa = fold_piece(n, [&](int k, int v) { return multiplied(a[k][v], a[k][v]); });
        const double ab = fold_piece(n, [&](int k, int v) { return multiplied(a[k][v], b[k][v]); });
        const double bb = fold_piece(n, [&](int k, int v) { return multiplied(b[k][v], b[k][v]); });
        if (writes) {
          args.partial[item] = aa;
          args.partial[items + item] = ab;
          args.partial[2 * items + item] = bb;
        }
      }
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kPieceThreads) sample_totals_kernel(SampleSumsArgs args) {
  const int64_t all = sum_count(args.kind) * args.samples.count;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPieceThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPieceThreads + threadIdx.x; i < all;
       i += step)
    static_cast<C*>(args.out)[i] = static_cast<C>(sample_total(args.partial, args.samples, 0, i));
}

template <typename F>
void dispatch_sum(SampleSum kind, F&& f) {
  if (kind == SampleSum::squares) return f(std::integral_constant<SampleSum, SampleSum::squares>{});
  if (kind == SampleSum::difference)
    return f(std::integral_constant<SampleSum, SampleSum::difference>{});
  f(std::integral_constant<SampleSum, SampleSum::products>{});
}

}  // namespace

void sample_sums(const SampleSumsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Samples& s = args.samples;
  const int64_t items = s.count * piece_count(s.size);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = has_vectors<T>(args.a, s.size) &&
                      (args.kind == SampleSum::squares || has_vectors<T>(args.b, s.size));
    if (items > 0)
      dispatch_sum(args.kind, [&](auto kind) {
        RK_LAUNCH((sample_pieces_kernel<T, decltype(kind)::value>),
                  grid_blocks(ceil_div(items, int64_t{kPieceWarps}), kBlocksPerSm), kPieceThreads,
                  0, stream, args, wide);
      });
    const int64_t all = sum_count(args.kind) * s.count;
    if (args.out != nullptr && all > 0)
      RK_LAUNCH((sample_totals_kernel<compute_t<T>>),
                grid_blocks(ceil_div(all, int64_t{kPieceThreads}), kBlocksPerSm), kPieceThreads, 0,
                stream, args);
  });
}

}  // namespace regkern::cuda
