#include "core/vector.cuh"
#include "masks/drop_block.h"

namespace regkern::cuda {
namespace {

using namespace masks;

using Count = unsigned long long;  // what atomicAdd takes

constexpr int kWarp = 32;
constexpr int kMaxWarps = 8;
constexpr int kTakenWords = kChunk / 32;
// What a plane may take of the 48 KiB of shared memory beside the warps' chunks.
constexpr int64_t kSharedBits = int64_t{40} * 1024 * 8;

// ---- The plan ----

// Adds the lanes' partial sums as SequentialKept does, from lane 0 up; every lane gets the total.
struct WarpKept {
  int lane;

  __device__ Kept operator()(const Geometry& g, double q) const {
    const Kept part = kept_partial(g, q, lane);
    Kept total{0.0, 0.0};
    for (int i = 0; i < kLanes; ++i) {
      total.value += __shfl_sync(kWholeWarp, part.value, i);
      total.slope += __shfl_sync(kWholeWarp, part.slope, i);
    }
    const double n = static_cast<double>(elements(g));
    return {total.value / n, total.slope / n};
  }
};

__global__ void __launch_bounds__(kWarp) plan_kernel(DropBlockMaskArgs args) {
  const int lane = static_cast<int>(threadIdx.x);
  const double p = args.p_tensor != nullptr ? *args.p_tensor : args.p;
  const PlanRate rate = plan_rate(args.geometry, p, args.rate, args.gamma_scale, WarpKept{lane});
  if (lane == 0) static_cast<PlanRate&>(*args.plan) = rate;
  if (lane < 2)
    make_table(lane == 0 ? kChunk : rest_of(args.geometry), drawn_gamma(rate),
               lane == 0 ? &args.plan->full : &args.plan->rest);
  auto* kept = reinterpret_cast<Count*>(args.kept);
  for (int64_t i = lane; i < args.groups; i += kWarp) kept[i] = 0;
}

// ---- The anchors of a chunk ----

// Sets the bits of runs, `at` bits into the words, which other threads may be setting too.
struct SetBits {
  uint32_t* words;
  int64_t at;

  __device__ void operator()(int64_t offset, int64_t length) const {
    uint32_t* word = words + ((at + offset) >> 5);
    int shift = static_cast<int>((at + offset) & 31);
    while (length > 0) {
      const int here = length < 32 - shift ? static_cast<int>(length) : 32 - shift;
      const uint32_t ones = low_bits(here) << shift;
      // Overlapping blocks have set most of it already. An outdated word costs an atomic, no more.
      if ((*word & ones) != ones) atomicOr(word, ones);
      ++word;
      length -= here;
      shift = 0;
    }
  }
};

// binomial() by a warp: the thresholds rise, so counting those that u reaches finds its place.
__device__ int warp_binomial(const BinomialTable& table, uint64_t u, int lane) {
  const int last = table.size - 1;
  int place = 0;
  for (int base = 0; base < last; base += kWarp) {
    const int i = base + lane;
    const int reached = __popc(__ballot_sync(kWholeWarp, i < last && u >= table.thresholds[i]));
    place += reached;
    if (reached < kWarp) break;
  }
  return table.first + place;
}

// A constant index keeps the words in registers.
__device__ uint32_t word_of(const Words& words, int i) {
  return i == 0 ? words.w[0] : i == 1 ? words.w[1] : i == 2 ? words.w[2] : words.w[3];
}

// Draws the anchors of a chunk with one warp and stamps their blocks. The words of the chunk's
// stream are those of Draws: the first two choose the count, and as many of the following ones as
// it takes to find `count` distinct places. Drawing exactly the missing number in each round, all
// at once, sets the places that drawing them one by one does.
__device__ void draw_chunk(const DropBlockMaskArgs& args, Seed seed, int64_t item, int64_t begin,
                           int size, uint32_t* taken, int lane, const SetBits& set) {
  constexpr int kFirst = 2;
  const Geometry& g = args.geometry;
  const Plan& plan = *args.plan;
  const uint64_t stream = static_cast<uint64_t>(item) * kDrawsPerItem;
  const Words words =
      philox(seed, Stream::mask, stream + static_cast<uint64_t>((kFirst + lane) / 4));
  const uint64_t u = __shfl_sync(kWholeWarp, words.w[0], 0) |
                     static_cast<uint64_t>(__shfl_sync(kWholeWarp, words.w[1], 0)) << 32;
  const int count = warp_binomial(size == kChunk ? plan.full : plan.rest, u, lane);
  const bool inverted = plan.inverted != 0;
  if (count == 0 && !inverted) return;

  for (int i = lane; i < kTakenWords; i += kWarp) taken[i] = 0;
  __syncwarp();
  int next = kFirst;
  for (int missing = count; missing > 0;) {
    int fresh = 0;
    for (int i = lane; i < missing; i += kWarp) {
      const int t = next + i;
      const bool in_hand = t == kFirst + lane;  // drawn together with the count
      const Words more =
          in_hand ? words : philox(seed, Stream::mask, stream + static_cast<uint64_t>(t / 4));
      const uint32_t word = word_of(more, t % 4);
      const auto place = static_cast<uint32_t>(
          static_cast<uint64_t>(word) * static_cast<uint32_t>(size) >> 32);  // Draws::below
      const uint32_t bit = 1u << (place & 31);
      fresh += (atomicOr(taken + (place >> 5), bit) & bit) == 0;
    }
    next += missing;
    missing -= warp_sum(fresh);
  }
  __syncwarp();
  for (int i = lane * 32; i < size; i += kWarp * 32) {
    const uint32_t word = inverted ? ~taken[i >> 5] & low_bits(size - i) : taken[i >> 5];
    for (uint32_t left = word; left != 0; left &= left - 1)
      for_each_run(g, begin + i + __ffs(static_cast<int>(left)) - 1, set);
  }
  // The next chunk clears what lanes of this one may still be reading.
  __syncwarp();
}

__device__ int chunk_size(int64_t anchors, int64_t begin) {
  return static_cast<int>(anchors - begin < kChunk ? anchors - begin : kChunk);
}

// Adds what the lanes counted to kept[group]; the lanes may be at different groups.
__device__ void add_kept(Count count, int64_t group, Count* kept) {
  const long long first = __shfl_sync(kWholeWarp, static_cast<long long>(group), 0);
  if (__all_sync(kWholeWarp, group == first)) {
    count = warp_sum(count);
    if (threadIdx.x % kWarp != 0) return;
  }
  if (count != 0) atomicAdd(kept + group, count);
}

// ---- Planes that fit in shared memory ----

// Writes the inverse of the plane's bits at position `at` of the packed output and returns how many
// of the ones were written by this thread. Words at the ends may be shared with other planes.
__device__ Count write_kept(const uint32_t* bits, int64_t size, uint32_t* out, int64_t at) {
  Count kept = 0;
  const int64_t words = bit_words(size), first = at >> 5, end = (at + size + 31) >> 5;
  const int shift = static_cast<int>(at & 31);
  for (int64_t w = first + threadIdx.x; w < end; w += blockDim.x) {
    const int64_t from = (w - first) * 32 - shift;  // the word's first bit in the plane
    const uint32_t dropped = from < 0 ? bits[0] << shift : load_bits(bits, words, from);
    uint32_t valid = low_bits(size - from);
    if (from < 0) valid &= ~low_bits(-from);
    const uint32_t word = ~dropped & valid;
    if (valid == 0xFFFFFFFFu)
      out[w] = word;
    else
      atomicOr(out + w, word);
    kept += static_cast<Count>(popcount(word));
  }
  return kept;
}

// A block draws neighbouring planes one after the other, a warp per chunk of anchors.
__global__ void __launch_bounds__(kWarp* kMaxWarps, 3) planes_kernel(DropBlockMaskArgs args) {
  RK_DYNAMIC_SHARED(uint32_t, bits);
  RK_SHARED(uint32_t, taken, kMaxWarps* kTakenWords);
  const Geometry& g = args.geometry;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const Seed seed = load_seed(args.seed);
  const int64_t n = anchors(g), chunks = ceil_div(n, int64_t{kChunk});
  const int64_t size = elements(g), per_group = g.planes / args.groups;
  auto* kept = reinterpret_cast<Count*>(args.kept);
  const int64_t grid = gridDim.x, block = blockIdx.x;
  const int64_t share = g.planes / grid, extra = g.planes % grid;
  const int64_t begin = block * share + (block < extra ? block : extra);
  const int64_t end = begin + share + (block < extra ? 1 : 0);
  Count counted = 0;
  int64_t group = begin / per_group;
  for (int64_t plane = begin; plane < end; ++plane) {
    for (int64_t i = threadIdx.x; i < bit_words(size); i += blockDim.x) bits[i] = 0;
    __syncthreads();
    for (int64_t chunk = warp; chunk < chunks; chunk += warps)
      draw_chunk(args, seed, plane * chunks + chunk, chunk * kChunk, chunk_size(n, chunk * kChunk),
                 taken + warp * kTakenWords, lane, SetBits{bits, 0});
    __syncthreads();
    if (plane == (group + 1) * per_group) {
      add_kept(counted, group++, kept);
      counted = 0;
    }
    counted += write_kept(bits, size, args.mask, plane * size);
    __syncthreads();
  }
  add_kept(counted, group, kept);
}

// ---- Larger planes: the dropped bits are set in the output, which is inverted afterwards ----

__global__ void __launch_bounds__(kWarp* kMaxWarps, 3) chunks_kernel(DropBlockMaskArgs args) {
  RK_SHARED(uint32_t, taken, kMaxWarps* kTakenWords);
  const Geometry& g = args.geometry;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Seed seed = load_seed(args.seed);
  const int64_t n = anchors(g), chunks = ceil_div(n, int64_t{kChunk}), size = elements(g);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kMaxWarps;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kMaxWarps + warp; item < g.planes * chunks;
       item += stride) {
    const int64_t plane = item / chunks, begin = (item - plane * chunks) * kChunk;
    draw_chunk(args, seed, item, begin, chunk_size(n, begin), taken + warp * kTakenWords, lane,
               SetBits{args.mask, plane * size});
  }
}

__global__ void __launch_bounds__(kWarp* kMaxWarps) invert_kernel(DropBlockMaskArgs args) {
  const Geometry& g = args.geometry;
  const int64_t bits = g.planes * elements(g), per_group = bits / args.groups;
  auto* kept = reinterpret_cast<Count*>(args.kept);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  Count counted = 0;
  int64_t group = 0;
  for (int64_t w = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; w < bit_words(bits);
       w += stride) {
    const uint32_t word = ~args.mask[w] & low_bits(bits - w * 32);
    args.mask[w] = word;
    if (w * 32 >= (group + 1) * per_group) {
      if (counted != 0) atomicAdd(kept + group, counted);
      counted = 0;
      group = w * 32 / per_group;
    }
    // A word holds bits of two groups at most: a plane here is larger than shared memory.
    const int64_t left = (group + 1) * per_group - w * 32;
    const Count here = static_cast<Count>(popcount(word & low_bits(left)));
    const Count beyond = static_cast<Count>(popcount(word)) - here;
    counted += here;
    if (beyond != 0) atomicAdd(kept + group + 1, beyond);
  }
  add_kept(counted, group, kept);
}

__global__ void __launch_bounds__(kWarp* kMaxWarps) scale_kernel(DropBlockMaskArgs args) {
  const Geometry& g = args.geometry;
  const int64_t total = g.planes / args.groups * elements(g);
  const auto* kept = reinterpret_cast<const Count*>(args.kept);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < args.groups;
       i += stride)
    args.scale[i] = mask_scale(*args.plan, args.normalize, total, static_cast<int64_t>(kept[i]));
}

}  // namespace

void drop_block_mask(const DropBlockMaskArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Geometry& g = args.geometry;
  const int64_t size = elements(g), bits = g.planes * size;
  if (bits == 0 || args.groups == 0) return;
  constexpr int kThreads = kWarp * kMaxWarps;
  RK_LAUNCH(plan_kernel, 1, kWarp, 0, stream, args);
  zero_async(args.mask, static_cast<size_t>(bit_words(bits)) * sizeof(uint32_t), stream);
  const int64_t chunks = ceil_div(anchors(g), int64_t{kChunk});
  if (size <= kSharedBits) {
    // As many warps as have a chunk to draw; small blocks make up for it by their number.
    const int64_t warps = chunks < kMaxWarps ? chunks : kMaxWarps;
    RK_LAUNCH(planes_kernel, grid_blocks(g.planes, static_cast<int>(64 / warps)), warps * kWarp,
              bit_words(size) * static_cast<int64_t>(sizeof(uint32_t)), stream, args);
  } else {
    const int64_t blocks = ceil_div(g.planes * chunks, int64_t{kMaxWarps});
    RK_LAUNCH(chunks_kernel, grid_blocks(blocks, 8), kThreads, 0, stream, args);
    RK_LAUNCH(invert_kernel, grid_blocks(ceil_div(bit_words(bits), int64_t{kThreads}), 8), kThreads,
              0, stream, args);
  }
  RK_LAUNCH(scale_kernel, grid_blocks(ceil_div(args.groups, int64_t{kThreads}), 8), kThreads, 0,
            stream, args);
}

}  // namespace regkern::cuda
