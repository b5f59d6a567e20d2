#include "core/random_lanes.cuh"
#include "masks/blend.h"
#include "masks/drop_lanes.cuh"

namespace regkern::cuda {
namespace {

using namespace masks;

// What is the same for all rows.
struct BlendRule {
  Blend blend;
  const int64_t* seed;
  double p;
  const double* p_at;
  const float* each;
  const void* own;
  const uint8_t* given;
  bool draw, scaled;
};

template <typename C>
__device__ __forceinline__ C blended(Blend blend, C f, C a, C b) {
  switch (blend) {
    case Blend::mix:
      return b + (a - b) * f;
    case Blend::product:
      return a * f;
    case Blend::select:
      return f == C(1) ? a : f == C(0) ? b : f;
    case Blend::other:
      return f == C(1) ? C(0) : f == C(0) ? a : f;
    case Blend::sample:
      break;
  }
  return f;
}

// Of the elements from e on: their own, or the sample's.
template <typename T>
__device__ __forceinline__ void probabilities(const BlendRule& rule, const T sample[kListLanes],
                                              int64_t e, int64_t left, float q[kListLanes]) {
  if (rule.each != nullptr)
    return load_lanes(rule.each + e, left, aligned_for_vectors(rule.each), q);
  T own[kListLanes];
#pragma unroll
  for (int i = 0; i < kListLanes; ++i) own[i] = sample[i];
  const T* const from = static_cast<const T*>(rule.own);
  if (from != nullptr) load_lanes(from + e, left, aligned_for_vectors(from), own);
#pragma unroll
  for (int i = 0; i < kListLanes; ++i) q[i] = static_cast<float>(widen(own[i]));
}

// A byte for each of eight neighbours.
__device__ __forceinline__ uint64_t given_lanes(const BlendRule& rule, int64_t e, int64_t left) {
  static_assert(kListLanes == 8);
  if (rule.given == nullptr) return 0;
  const uint8_t* const from = rule.given + e;
  if (left >= kListLanes && reinterpret_cast<std::uintptr_t>(from) % 8 == 0)
    return *reinterpret_cast<const uint64_t*>(from);
  uint64_t lanes = 0;
#pragma unroll
  for (int i = 0; i < kListLanes; ++i)
    if (i < left) lanes |= static_cast<uint64_t>(from[i]) << (8 * i);
  return lanes;
}

template <typename T, bool kEach>
__global__ void __launch_bounds__(kListThreads, sizeof(T) == 8 ? 2 : 4)
    blend_kernel(const __grid_constant__ ListChunk<BlendRow> chunk,
                 const __grid_constant__ BlendRule rule, int tiles) {
  using C = compute_t<T>;
  RK_SHARED(DrawnWords, words, kListThreads);
  const Seed seed = load_seed(rule.seed);
  const double p = rule.p_at != nullptr ? *rule.p_at : rule.p;
  const DropLevel level = drop_level(p);
  const auto scale = static_cast<C>(kept_scale(p, rule.scaled));
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const BlendRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    const auto element = static_cast<uint64_t>(row.first + e);
    const T* const from = static_cast<const T*>(row.a);
    const T* const other = static_cast<const T*>(row.b);
    T a[kListLanes], b[kListLanes] = {};
    load_lanes(from + e, left, aligned_for_vectors(from), a);
    if (other != nullptr) load_lanes(other + e, left, aligned_for_vectors(other), b);
    uint32_t bits[kListLanes];
    random_lanes(seed, Stream::mask, element, words, bits);
    C f[kListLanes] = {};
    if constexpr (kEach) {
      float q[kListLanes];
      probabilities(rule, a, e, left, q);
#pragma unroll
      for (int i = 0; i < kListLanes; ++i) {
        q[i] *= static_cast<float>(p);
        const C one = kept_scale(static_cast<C>(q[i]), false);
        const DropLevel at = drop_level(static_cast<double>(q[i]));
        f[i] = keeps(seed, element + static_cast<uint64_t>(i), bits[i], at) ? one : C(0);
      }
    } else {
      level_factors(seed, element, bits, level, scale, f);
    }
    const uint64_t all_given = given_lanes(rule, e, left);
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      const bool given = (all_given >> (8 * i) & 1) != 0;
      const C factor = on_factor(f[i], rule.draw, rule.given != nullptr, given);
      narrow(blended(rule.blend, factor, widen(a[i]), widen(b[i])), a + i);
    }
    T* const to = static_cast<T*>(row.y);
    store_lanes(a, left, aligned_for_vectors(to), to + e);
  }
}

}  // namespace

void blend(const BlendArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const BlendRule rule{args.blend, args.seed,  args.p,    args.p_at,  args.each,
                       args.own,   args.given, args.draw, args.scaled};
  const bool each = args.each != nullptr || args.own != nullptr || args.blend == Blend::sample;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_chunk(args.rows, args.count,
                   [&](const ListChunk<BlendRow>& chunk, int64_t, int64_t tiles) {
                     const int64_t blocks = grid_blocks(tiles, 8);
                     if (each)
                       RK_LAUNCH((blend_kernel<T, true>), blocks, kListThreads, 0, stream, chunk,
                                 rule, static_cast<int>(tiles));
                     else
                       RK_LAUNCH((blend_kernel<T, false>), blocks, kListThreads, 0, stream, chunk,
                                 rule, static_cast<int>(tiles));
                   });
  });
}

}  // namespace regkern::cuda
