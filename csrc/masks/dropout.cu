#include "core/bits.h"
#include "core/random_lanes.cuh"
#include "masks/drop_lanes.cuh"

namespace regkern::cuda {
namespace {

using namespace masks;

static_assert(kListTile % kDropoutBlock == 0);

struct OneLevel {
  DropLevel level;
  double p;
  __device__ __forceinline__ OneLevel(double given) : level(drop_level(given)), p(given) {}
};

// Eight neighbours, of which `left` are there, from element e on of a mask whose first element is
// `mask` for the generator. All of the warp calls it.
template <typename C, bool kEach>
__device__ __forceinline__ void factors_of(const DropoutArgs& args, Seed seed, const OneLevel& one,
                                           int64_t mask, int64_t e, int64_t left, DrawnWords* words,
                                           C factors[kListLanes]) {
  uint32_t bits[kListLanes];
  const auto element = static_cast<uint64_t>(mask + e);
  random_lanes(seed, Stream::mask, element, words, bits);
  if constexpr (kEach) {
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      if (i >= left) continue;
      const float p = args.p_each[mask_bit(args.p_index, e + i)];
      const C scale = kept_scale(static_cast<C>(p), args.scaled);
      const DropLevel level = drop_level(static_cast<double>(p));
      factors[i] = keeps(seed, element + static_cast<uint64_t>(i), bits[i], level) ? scale : C(0);
    }
  } else {
    const auto scale = static_cast<C>(kept_scale(one.p, args.scaled));
    level_factors(seed, element, bits, one.level, scale, factors);
  }
}

// Doubles of eight neighbours, their factors and their sum do not fit four blocks' registers.
template <typename T, bool kEach>
__global__ void __launch_bounds__(kListThreads, sizeof(T) == 8 ? 2 : 4)
    dropout_kernel(const __grid_constant__ DropoutArgs args, int64_t tiles) {
  using C = compute_t<T>;
  RK_SHARED(DrawnWords, words, kListThreads);
  const Seed seed = load_seed(args.seed);
  const OneLevel one(args.p_at != nullptr ? *args.p_at : args.p);
  const int64_t outputs = args.sums ? 1 : args.copies, terms = args.sums ? args.copies : 1;
  const int64_t padded = padded_mask(args.numel);
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int64_t t = blockIdx.x; t < tiles * outputs; t += gridDim.x) {
    const int64_t copy = t / tiles, e = (t - copy * tiles) * kListTile + mine;
    const int64_t left = args.numel - e;
    C sum[kListLanes] = {};
    for (int64_t term = 0; term < terms; ++term) {
      const T* const from = static_cast<const T*>(args.x) + term * args.numel;
      T x[kListLanes];
      load_lanes(from + e, left, aligned_for_vectors(from), x);
      C factors[kListLanes] = {};
      factors_of<C, kEach>(args, seed, one, (args.sums ? term : copy) * padded, e, left, words,
                           factors);
#pragma unroll
      for (int i = 0; i < kListLanes; ++i) {
        const C v = widen(x[i]) * factors[i];
        sum[i] = term == 0 ? v : sum[i] + v;
      }
    }
    T* const to = static_cast<T*>(args.y) + copy * args.numel;
    T y[kListLanes];
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) narrow(sum[i], y + i);
    store_lanes(y, left, aligned_for_vectors(to), to + e);
  }
}

template <bool kEach>
__global__ void __launch_bounds__(kListThreads, 4)
    dropout_bits_kernel(const __grid_constant__ DropoutBitsArgs bits, int64_t tiles) {
  RK_SHARED(DrawnWords, words, kListThreads);
  const Seed seed = load_seed(bits.seed);
  const OneLevel one(bits.p_at != nullptr ? *bits.p_at : bits.p);
  DropoutArgs args{};
  args.p_each = bits.p_each;
  args.p_index = {1, 1, bits.numel};
  if (!kEach && blockIdx.x == 0 && threadIdx.x == 0) *bits.scale = kept_scale(one.p, bits.scaled);
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t e = t * kListTile + static_cast<int64_t>(threadIdx.x) * kListLanes;
    const int64_t left = bits.numel - e;
    float factors[kListLanes] = {};
    factors_of<float, kEach>(args, seed, one, 0, e, left, words, factors);
    if constexpr (kEach) {
      for (int i = 0; i < kListLanes && i < left; ++i)
        bits.scale[e + i] = kept_scale(static_cast<double>(bits.p_each[e + i]), bits.scaled);
    }
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < kListLanes; ++i)
      word |= static_cast<uint32_t>(i < left && factors[i] != 0.0f) << i;
    // Four neighbours hold a word between them.
    word <<= threadIdx.x % 4 * kListLanes;
    word |= __shfl_xor_sync(kWholeWarp, word, 1);
    word |= __shfl_xor_sync(kWholeWarp, word, 2);
    if (threadIdx.x % 4 == 0 && left > 0) bits.bits[e >> 5] = word;
  }
}

}  // namespace

void dropout(const DropoutArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t tiles = ceil_div(args.numel, kListTile);
  const int64_t outputs = args.sums ? 1 : args.copies;
  if (tiles * outputs == 0) return;
  const int64_t blocks = grid_blocks(tiles * outputs, 8);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.p_each != nullptr)
      RK_LAUNCH((dropout_kernel<T, true>), blocks, kListThreads, 0, stream, args, tiles);
    else
      RK_LAUNCH((dropout_kernel<T, false>), blocks, kListThreads, 0, stream, args, tiles);
  });
}

void dropout_bits(const DropoutBitsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t tiles = ceil_div(args.numel, kListTile);
  if (tiles == 0) return;
  const int64_t blocks = grid_blocks(tiles, 8);
  if (args.p_each != nullptr)
    RK_LAUNCH((dropout_bits_kernel<true>), blocks, kListThreads, 0, stream, args, tiles);
  else
    RK_LAUNCH((dropout_bits_kernel<false>), blocks, kListThreads, 0, stream, args, tiles);
}

}  // namespace regkern::cuda
