#include "core/vector.cuh"
#include "masks/patch_mask.h"

namespace regkern::cuda {
namespace {

using namespace masks;

constexpr int kThreads = 256, kWarps = kThreads / 32;

// What the threads of a block, which has a row, share.
struct Shared {
  uint32_t count[256];
  uint32_t in_warp[kWarps];
  uint32_t digit, below, inside;
  uint64_t limits[kMostParts];
  int64_t sizes[kMostParts + 1], start[kMostParts + 1], before[kMostParts + 1];
  uint32_t of_warp[kMostParts + 1][kWarps];
};

// As on the CPU. The block calls it; key(i) is that of a token.
template <typename F>
__device__ uint64_t threshold(int64_t n, int64_t rank, Shared& s, F&& key) {
  if (rank <= 0) return 0;
  if (rank >= n) return ~uint64_t{0};
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  uint64_t prefix = 0;
  for (int shift = 56;; shift -= 8) {
    s.count[thread] = 0;
    __syncthreads();
    for (int64_t i = thread; i < n; i += kThreads) {
      const uint64_t priority = token_priority(key(i), i);
      if (shift == 56 || priority >> (shift + 8) == prefix >> (shift + 8))
        atomicAdd(&s.count[priority >> shift & 255u], 1u);
    }
    __syncthreads();
    const uint32_t own = s.count[thread];
    uint32_t sum = own;
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint32_t lower = __shfl_up_sync(kWholeWarp, sum, static_cast<unsigned>(offset));
      if (lane >= offset) sum += lower;
    }
    if (lane == 31) s.in_warp[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; ++w) sum += s.in_warp[w];
    const auto wanted = static_cast<uint32_t>(rank);
    if (sum - own < wanted && wanted <= sum) {
      s.digit = static_cast<uint32_t>(thread);
      s.below = sum - own;
      s.inside = own;
    }
    __syncthreads();
    prefix |= static_cast<uint64_t>(s.digit) << shift;
    rank -= s.below;
    const bool all = rank == s.inside;
    __syncthreads();
    if (all) return prefix + (uint64_t{1} << shift);
  }
}

// The rectangle that is the first to cover a token, or `boxes`.
__device__ __forceinline__ int first_cover(const PatchPartsArgs& args, const PatchBox* boxes,
                                           int64_t token) {
  const auto plane = static_cast<uint32_t>(args.height * args.width);
  const auto width = static_cast<uint32_t>(args.width), i = static_cast<uint32_t>(token);
  const auto t = static_cast<int32_t>(i / plane), y = static_cast<int32_t>(i % plane / width);
  const auto x = static_cast<int32_t>(i % width);
  for (int b = 0; b < args.boxes; ++b) {
    const PatchBox box = boxes[b];
    if (t >= box.t0 && t < box.t1 && y >= box.y0 && y < box.y1 && x >= box.x0 && x < box.x1)
      return b;
  }
  return args.boxes;
}

constexpr int kMostBoxes = 256;

__global__ void __launch_bounds__(kThreads, 4)
    patch_parts_kernel(const __grid_constant__ PatchPartsArgs args) {
  RK_SHARED(Shared, shared, 1);
  RK_SHARED(PatchBox, boxes, kMostBoxes);
  Shared& s = shared[0];
  const Seed seed = load_seed(args.seed);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int64_t n = args.n, padded = padded_tokens(n);
  const int parts = part_count(args);
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    uint32_t* const keys = args.keys + row * padded;
    __syncthreads();
    if (thread + 1 < parts) {
      s.sizes[thread] = part_size(args, seed, row, thread);
      if (args.sizes != nullptr) args.sizes[row * (parts - 1) + thread] = s.sizes[thread];
    }
    if (thread < args.boxes) boxes[thread] = draw_patch_box(args, seed, row, thread);
    __syncthreads();
    if (thread == 0) {
      int64_t at = 0;
      for (int p = 0; p < parts; ++p) {
        s.start[p] = at;
        s.before[p] = 0;
        if (p + 1 < parts) at += s.sizes[p];
      }
    }
    for (int64_t c = thread; c < padded / 4; c += kThreads) {
      const int64_t block = c / 16;
      const int i = static_cast<int>(c % 16);
      const Words words = philox(seed, Stream::mask, key_counter(row, padded, block, i));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t token = block * kKeyBlock + 16 * j + i;
        uint32_t key = random_key(words.w[j]);
        if (args.boxes > 0 && token < n) {
          const int b = first_cover(args, boxes, token);
          if (b < args.boxes) key = kLastKey - static_cast<uint32_t>(b);
        }
        keys[token] = key;
      }
    }
    __syncthreads();
    if (args.scores != nullptr) {
      const float* const scores = args.scores + row * n;
      const int64_t last = n - s.start[parts - 1];
      const auto key = [&](int64_t i) { return score_key(scores[i]); };
      const uint64_t limit = threshold(n, top_count(args, last), s, key);
      for (int64_t i = thread; i < n; i += kThreads)
        if (token_priority(score_key(scores[i]), i) < limit) keys[i] = kLastKey;
      __syncthreads();
    }
    for (int p = 0; p + 1 < parts; ++p) {
      const uint64_t limit = threshold(n, s.start[p + 1], s, [&](int64_t i) { return keys[i]; });
      if (thread == 0) s.limits[p] = limit;
    }
    __syncthreads();
    int64_t* const ids = args.ids + row * args.listed * args.id_width;
    for (int64_t base = 0; base < n; base += kThreads) {
      const int64_t i = base + thread;
      const bool there = i < n;
      const uint64_t priority = there ? token_priority(keys[i], i) : 0;
      int part = 0;
      for (int p = 0; p + 1 < parts; ++p) part += priority >= s.limits[p] ? 1 : 0;
      uint32_t mates = 0;
      for (int p = 0; p < parts; ++p) {
        const uint32_t those = __ballot_sync(kWholeWarp, there && part == p);
        if (lane == 0) s.of_warp[p][warp] = static_cast<uint32_t>(__popc(those));
        if (p == part) mates = those;
      }
      __syncthreads();
      if (there) {
        int64_t rank = s.before[part] + __popc(mates & ((1u << lane) - 1u));
        for (int w = 0; w < warp; ++w) rank += s.of_warp[part][w];
        for (int q = 0; q < args.planes; ++q)
          args.mask[(row * args.planes + q) * n + i] =
              static_cast<uint8_t>(part == args.first_plane + q);
        if (part < args.listed) ids[part * args.id_width + rank] = i;
        if (args.restore != nullptr) args.restore[row * n + i] = s.start[part] + rank;
      }
      __syncthreads();
      if (thread < parts)
        for (int w = 0; w < kWarps; ++w) s.before[thread] += s.of_warp[thread][w];
      __syncthreads();
    }
    for (int64_t p = 0; p < args.listed; ++p)
      for (int64_t i = s.before[p] + thread; i < args.id_width; i += kThreads)
        ids[p * args.id_width + i] = -1;
  }
}

}  // namespace

void patch_parts(const PatchPartsArgs& args, Context context) {
  if (args.rows == 0) return;
  RK_LAUNCH(patch_parts_kernel, grid_blocks(args.rows, 8), kThreads, 0,
            static_cast<cudaStream_t>(context.stream), args);
}

}  // namespace regkern::cuda
