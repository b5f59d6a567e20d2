#include "core/vector.cuh"
#include "proximal/pattern.h"

namespace regkern::cuda {
namespace {

using namespace proximal;

constexpr int kThreads = 256;
constexpr int kMostItems = 32;

struct PatternChunk {
  PatternItem items[kMostItems];
  int64_t begin[kMostItems + 1];  // groups of the launch before an item
  int count, n, m;
};

// A thread has a group; of four neighbours in one access where kFour.
template <typename S, bool kFour>
__global__ void __launch_bounds__(kThreads)
    pattern_kernel(const __grid_constant__ PatternChunk chunk) {
  const int64_t all = chunk.begin[chunk.count];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < all;
       at += step) {
    int i = 0;
    while (chunk.begin[i + 1] <= at) ++i;
    const PatternItem& item = chunk.items[i];
    const Slices& s = item.slices;
    const int64_t group = at - chunk.begin[i];
    const S* scores = static_cast<const S*>(item.scores);
    const S* values = static_cast<const S*>(item.values);
    if constexpr (kFour) {
      const Vector<S, 4> key = load_vector<S, 4>(scores + group * 4);
      Vector<S, 4> value = values == scores ? key : load_vector<S, 4>(values + group * 4);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const S mine = key.v[k] & kMagnitudeOf<S>;
        int rank = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (j != k)
            rank += (key.v[j] & kMagnitudeOf<S>) > static_cast<S>(j < k ? mine - 1 : mine);
        value.v[k] = rank < chunk.n ? value.v[k] : S(0);
      }
      store_vector(value, static_cast<S*>(item.out) + group * 4);
      continue;
    }
    // Neighbouring threads have neighbouring slices.
    const int64_t along = groups_along(s, chunk.m);
    const int64_t column = group % s.count, unit = group / s.count;
    const int64_t b = unit / along, first = (unit - b * along) * chunk.m;
    const int size = static_cast<int>(s.outer - first < chunk.m ? s.outer - first : chunk.m);
    const int64_t start = (b * s.outer + first) * s.count + column;
    uint64_t kept = 0;
    for (int k = 0; k < size; ++k) {
      const S mine = scores[start + k * s.count] & kMagnitudeOf<S>;
      int rank = 0;
      for (int j = 0; j < size; ++j) {
        const S other = scores[start + j * s.count] & kMagnitudeOf<S>;
        rank += j != k && other > static_cast<S>(j < k ? mine - 1 : mine);
      }
      kept |= static_cast<uint64_t>(rank < chunk.n) << k;
    }
    for (int k = 0; k < size; ++k) {
      const int64_t e = start + k * s.count;
      const bool keep = kept >> k & 1u;
      if (values == nullptr)
        static_cast<uint8_t*>(item.out)[e] = keep;
      else
        static_cast<S*>(item.out)[e] = keep ? values[e] : S(0);
    }
  }
}

template <typename S>
bool takes_four(const PatternArgs& args, const PatternItem& item) {
  const auto aligned = [](const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % (4 * sizeof(S)) == 0;
  };
  return args.m == 4 && sizeof(S) <= 4 && item.slices.count == 1 && item.slices.outer % 4 == 0 &&
         item.values != nullptr && aligned(item.values) && aligned(item.scores) &&
         aligned(item.out);
}

}  // namespace

void n_m_pattern(const PatternArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_bytes(args.bytes, [&](auto zero) {
    using S = decltype(zero);
    for (int64_t i = 0; i < args.count;) {
      PatternChunk chunk;
      chunk.count = 0;
      chunk.begin[0] = 0;
      chunk.n = args.n;
      chunk.m = args.m;
      const bool four = takes_four<S>(args, args.items[i]);
      for (; i < args.count && chunk.count < kMostItems; ++i) {
        if (takes_four<S>(args, args.items[i]) != four) break;
        chunk.items[chunk.count] = args.items[i];
        chunk.begin[chunk.count + 1] =
            chunk.begin[chunk.count] + group_count(args.items[i].slices, args.m);
        ++chunk.count;
      }
      const int64_t work = ceil_div(chunk.begin[chunk.count], int64_t{kThreads});
      if (work == 0) continue;
      if constexpr (sizeof(S) <= 4) {
        if (four) {
          RK_LAUNCH((pattern_kernel<S, true>), grid_blocks(work, 16), kThreads, 0, stream, chunk);
          continue;
        }
      }
      RK_LAUNCH((pattern_kernel<S, false>), grid_blocks(work, 16), kThreads, 0, stream, chunk);
    }
  });
}

}  // namespace regkern::cuda
