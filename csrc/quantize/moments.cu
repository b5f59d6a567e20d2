#include "core/vector.cuh"
#include "quantize/moments.h"
#include "quantize/range.h"

namespace regkern::cuda {
namespace {

using namespace quantize;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;

// Tensors of one launch: a warp finds its own with one vote.
constexpr int kPack = kWarpThreads;

struct Pack {
  MomentsItem items[kPack];
  int64_t begin[kPack];  // the first work item; beyond the last tensor, never reached
  int64_t from[kPack];   // where its results are read, and written
  int64_t to[kPack];
  int64_t results[kPack];  // to be merged, of a channel
  int64_t work;
};

constexpr int64_t kNever = int64_t{1} << 62;

__device__ __forceinline__ int item_of(const Pack& pack, int64_t work) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  return __popc(__ballot_sync(kWholeWarp, pack.begin[lane] <= work)) - 1;
}

// ---- chunks ----

// Brings the elements [q, q + size) of a channel side by side.
template <typename T>
__device__ __forceinline__ void stage_chunk(const MomentsItem& m, int64_t channel, int64_t q,
                                            int size, T* staged) {
  constexpr int V = kLanesOf<T>;
  constexpr int64_t kSmall = int64_t{1} << 30;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int64_t o = q / m.inner, i = q - o * m.inner;
  const T* run = static_cast<const T*>(m.x) + (o * m.channels + channel) * m.inner;
  const bool one = i + size <= m.inner;
  if (one && reinterpret_cast<std::uintptr_t>(run + i) % kVectorBytes == 0) {
    constexpr int kVectors = kMomentsChunk<T> / (kWarpThreads * V);
    Vector<T, V> v[kVectors];
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      const int p = (u * kWarpThreads + lane) * V;
      if (p + V <= size) v[u] = load_vector<T, V>(run + i + p);
    }
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      const int p = (u * kWarpThreads + lane) * V;
      if (p + V <= size) *reinterpret_cast<Vector<T, V>*>(staged + p) = v[u];
    }
    const int rest = size / V * V + lane;
    if (rest < size) staged[rest] = run[i + rest];
    return;
  }
  // A run that is longer than a chunk ends once in it at most.
  const int64_t skip = (m.channels - 1) * m.inner;
  const auto inner = static_cast<uint32_t>(m.inner < kSmall ? m.inner : kSmall);
#pragma unroll 4
  for (int p = lane; p < size; p += kWarpThreads) {
    const int64_t at = i + p;
    int64_t runs = 0;
    if (!one)
      runs = m.inner < kSmall ? static_cast<int64_t>(static_cast<uint32_t>(at) / inner)
                              : static_cast<int64_t>(at >= m.inner);
    staged[p] = run[at + runs * skip];
  }
}

__device__ __forceinline__ double butterfly(double value) {
  for (int half = kWarpThreads / 2; half > 0; half /= 2)
    value += __shfl_xor_sync(kWholeWarp, value, half);
  return value;
}

template <typename C>
struct ShuffledKey {
  using type = int;
};
template <>
struct ShuffledKey<double> {
  using type = long long;
};

template <typename T, bool kWhole>
__device__ __forceinline__ MomentsPartial chunk_moments(const T* staged, int size) {
  using C = compute_t<T>;
  using K = order_key_t<C>;
  using A = typename ShuffledKey<C>::type;
  constexpr int V = kMomentsVector<T>, L = kMomentsLanes<T>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int rows = kWhole ? kMomentsRows<T> : (size + L - 1) / L;
  K least = kLeastKey<C>, largest = kLargestKey<C>;
  C sum[V] = {};
#pragma unroll 4
  for (int j = 0; j < rows; ++j) {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const int p = j * L + V * lane + k;
      if (!kWhole && p >= size) continue;
      const C x = widen(staged[p]);
      const K key = order_key(x);
      sum[k] += x;
      least = key < least ? key : least;
      largest = key > largest ? key : largest;
    }
  }
  double total = static_cast<double>(sum[0]);
  for (int k = 1; k < V; ++k) total += static_cast<double>(sum[k]);
  for (int half = kWarpThreads / 2; half > 0; half /= 2) {
    const K low = __shfl_xor_sync(kWholeWarp, static_cast<A>(least), half);
    const K high = __shfl_xor_sync(kWholeWarp, static_cast<A>(largest), half);
    least = low < least ? low : least;
    largest = high > largest ? high : largest;
  }
  finish_range<C>(least, largest, &least, &largest);
  const C low = bit_cast<C>(least), high = bit_cast<C>(largest);
  const MomentsUnit<C> u = unit_of<C>(butterfly(total), static_cast<double>(size), low, high);
  C t1[V] = {}, t2[V] = {}, t3[V] = {}, t4[V] = {};
#pragma unroll 4
  for (int j = 0; j < rows; ++j) {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const int p = j * L + V * lane + k;
      if (!kWhole && p >= size) continue;
      const C t = widen(staged[p]) * u.inverse - u.scaled_pivot, q = t * t;
      t1[k] += t;
      t2[k] += q;
      t3[k] += q * t;
      t4[k] += q * q;
    }
  }
  const auto thread_sum = [](const C* lanes) {
    double sum = static_cast<double>(lanes[0]);
    for (int k = 1; k < V; ++k) sum += static_cast<double>(lanes[k]);
    return butterfly(sum);
  };
  return chunk_partial(u, static_cast<double>(size), thread_sum(t1), thread_sum(t2), thread_sum(t3),
                       thread_sum(t4), static_cast<double>(low), static_cast<double>(high));
}

// A warp per chunk, which it keeps in shared memory. Neighbouring warps take the same chunk of
// neighbouring channels: where runs are short, they share their cache lines.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3)
    moments_chunks_kernel(const __grid_constant__ Pack pack, MomentsPartial* partials) {
  using Vectors = Vector<T, kLanesOf<T>>;
  constexpr int kStaged = kMomentsChunk<T> / kLanesOf<T>;
  RK_SHARED(Vectors, shared, kWarps * kStaged);
  T* staged = reinterpret_cast<T*>(shared + threadIdx.x / kWarpThreads * kStaged);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t work = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpThreads;
       work < pack.work; work += warps) {
    const int which = item_of(pack, work);
    const MomentsItem& m = pack.items[which];
    const int64_t local = work - pack.begin[which];
    const int64_t chunk = local / m.channels, channel = local - chunk * m.channels;
    const int64_t n = channel_elements(m), q = chunk * kMomentsChunk<T>;
    const int size = static_cast<int>(n - q < kMomentsChunk<T> ? n - q : kMomentsChunk<T>);
    __syncwarp();
    stage_chunk<T>(m, channel, q, size, staged);
    __syncwarp();
    const MomentsPartial p = size == kMomentsChunk<T> ? chunk_moments<T, true>(staged, size)
                                                      : chunk_moments<T, false>(staged, size);
    if (threadIdx.x % kWarpThreads == 0)
      partials[pack.to[which] + channel * pack.results[which] + chunk] = p;
  }
}

// ---- the tree over chunks ----

__device__ __forceinline__ MomentsPartial shuffled_down(const MomentsPartial& p, int step) {
  const auto from = [step](double value) {
    return __shfl_down_sync(kWholeWarp, value, static_cast<unsigned>(step));
  };
  return {from(p.n), from(p.mean), from(p.m2), from(p.m3), from(p.m4), from(p.low), from(p.high)};
}

// A warp merges kWarpThreads neighbours; the last one of a channel writes what it reports.
__global__ void __launch_bounds__(kThreads)
    moments_merge_kernel(const __grid_constant__ Pack pack, MomentsPartial* partials, double* range,
                         double* moments, int64_t stride) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t work = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpThreads;
       work < pack.work; work += warps) {
    const int which = item_of(pack, work);
    const int64_t results = pack.results[which], local = work - pack.begin[which];
    const int64_t groups = results > kWarpThreads ? ceil_div(results, int64_t{kWarpThreads}) : 1;
    const int64_t channel = local / groups, group = local - channel * groups;
    const int64_t i = group * kWarpThreads + lane;
    MomentsPartial p = no_elements();
    if (i < results) p = partials[pack.from[which] + channel * results + i];
    for (int step = 1; step < kWarpThreads; step *= 2) {
      const MomentsPartial other = shuffled_down(p, step);
      if (other.n > 0.0 && lane + step < kWarpThreads) p = merged_moments(p, other);
    }
    if (lane != 0) continue;
    if (groups == 1)
      write_moments(p, pack.items[which].first + channel, stride, range, moments);
    else
      partials[pack.to[which] + channel * groups + group] = p;
  }
}

int64_t groups_of(int64_t results) {
  return results > kWarpThreads ? ceil_div(results, int64_t{kWarpThreads}) : 1;
}

template <typename T>
void pack_moments(const MomentsArgs& args, const MomentsItem* items, int count,
                  MomentsPartial* partials, cudaStream_t stream) {
  Pack pack{};
  int64_t offset = 0;
  for (int i = 0; i < kPack; ++i) {
    pack.begin[i] = i < count ? pack.work : kNever;
    if (i >= count) continue;
    const MomentsItem& m = items[i];
    pack.items[i] = m;
    pack.results[i] = ceil_div(channel_elements(m), int64_t{kMomentsChunk<T>});
    pack.work += m.channels * pack.results[i];
    pack.to[i] = offset;
    offset += m.channels * pack.results[i];
    pack.from[i] = offset;
    offset += m.channels * (pack.results[i] > 0 ? groups_of(pack.results[i]) : 0);
  }
  if (pack.work > 0)
    RK_LAUNCH((moments_chunks_kernel<T>), grid_blocks(ceil_div(pack.work, int64_t{kWarps}), 32),
              kThreads, 0, stream, pack, partials);
  for (bool more = true; more;) {
    more = false;
    pack.work = 0;
    for (int i = 0; i < count; ++i) {
      std::swap(pack.from[i], pack.to[i]);
      pack.begin[i] = pack.work;
      pack.work += pack.items[i].channels * groups_of(pack.results[i]);
      more = more || groups_of(pack.results[i]) > 1;
    }
    if (pack.work == 0) return;
    RK_LAUNCH((moments_merge_kernel), grid_blocks(ceil_div(pack.work, int64_t{kWarps}), 32),
              kThreads, 0, stream, pack, partials, args.range, args.moments, args.stride);
    for (int i = 0; i < count; ++i) {
      if (groups_of(pack.results[i]) > 1) {
        pack.results[i] = groups_of(pack.results[i]);
      } else {
        pack.items[i].channels = 0;  // done
      }
    }
  }
}

// ---- backward ----

template <typename C>
__global__ void __launch_bounds__(kThreads)
    moments_cubics_kernel(const __grid_constant__ Pack pack, MomentsBackwardArgs args) {
  auto* cubics = static_cast<MomentsCubicAs<C>*>(args.cubics);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int which = 0; which < args.count; ++which) {
    const MomentsItem& m = pack.items[which];
    const auto n = static_cast<double>(channel_elements(m));
    for (int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; c < m.channels;
         c += stride)
      cubics[m.first + c] = cubic_as<C>(cubic_of(args, m.first + c, n));
  }
}

constexpr int kUnroll = 4;  // vectors of a thread

template <typename T, int V, typename I>
__global__ void __launch_bounds__(kThreads)
    moments_cubic_kernel(const __grid_constant__ Pack pack, const void* coefficients) {
  using C = compute_t<T>;
  constexpr int64_t kTile = int64_t{kThreads} * V * kUnroll;
  const auto* cubics = static_cast<const MomentsCubicAs<C>*>(coefficients);
  for (int64_t work = blockIdx.x; work < pack.work; work += gridDim.x) {
    const int which = item_of(pack, work);
    const MomentsItem& m = pack.items[which];
    const T* x = static_cast<const T*>(m.x);
    T* dx = static_cast<T*>(m.dx);
    const I n = static_cast<I>(m.outer * m.channels * m.inner), inner = static_cast<I>(m.inner);
    const I channels = static_cast<I>(m.channels);
    const I base = static_cast<I>((work - pack.begin[which]) * kTile + threadIdx.x * V);
    const MomentsCubicAs<C>* own = cubics + m.first;
    Vector<T, V> v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const I e = base + static_cast<I>(u * kThreads * V);
      if (e + V <= n)
        v[u] = load_vector<T, V>(x + e);
      else
        for (int k = 0; k < V; ++k)
          if (e + static_cast<I>(k) < n) v[u].v[k] = x[e + static_cast<I>(k)];
    }
    MomentsCubicAs<C> cubic = own[0];
    I held = 0;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const I e = base + static_cast<I>(u * kThreads * V);
      if (e >= n) continue;
      const I run = channels == 1 ? 0 : e / inner;
      I channel = channels == 1 ? 0 : run % channels;
      I left = channels == 1 ? n - e : (run + 1) * inner - e;
#pragma unroll
      for (int k = 0; k < V; ++k, --left) {
        if (left == 0) {
          channel = channel + 1 == channels ? 0 : channel + 1;
          left = inner;
        }
        if (channel != held) cubic = own[channel];
        held = channel;
        narrow(cubic_at(cubic, widen(v[u].v[k])), v[u].v + k);
      }
      if (e + V <= n)
        store_vector<T, V>(v[u], dx + e);
      else
        for (int k = 0; k < V; ++k)
          if (e + static_cast<I>(k) < n) dx[e + static_cast<I>(k)] = v[u].v[k];
    }
  }
}

template <typename T, int V, typename I>
void launch_cubic(Pack& pack, const MomentsBackwardArgs& args, cudaStream_t stream) {
  constexpr int64_t kTile = int64_t{kThreads} * V * kUnroll;
  pack.work = 0;
  for (int i = 0; i < args.count; ++i) {
    const MomentsItem& m = pack.items[i];
    pack.begin[i] = pack.work;
    pack.work += ceil_div(m.outer * m.channels * m.inner, kTile);
  }
  if (pack.work > 0)
    RK_LAUNCH((moments_cubic_kernel<T, V, I>), grid_blocks(pack.work, 16), kThreads, 0, stream,
              pack, args.cubics);
}

// `args` of at most kPack items.
template <typename T>
void pack_backward(const MomentsBackwardArgs& args, cudaStream_t stream) {
  Pack pack{};
  int64_t channels = 0, largest = 0;
  bool vectors = true;
  for (int i = 0; i < kPack; ++i) {
    pack.begin[i] = kNever;
    if (i >= args.count) continue;
    const MomentsItem& m = args.items[i];
    pack.items[i] = m;
    channels = m.channels > channels ? m.channels : channels;
    const int64_t n = m.outer * m.channels * m.inner;
    largest = n > largest ? n : largest;
    vectors = vectors && is_aligned(m.x) && is_aligned(m.dx);
  }
  if (largest == 0) return;
  RK_LAUNCH((moments_cubics_kernel<compute_t<T>>),
            grid_blocks(ceil_div(channels, int64_t{kThreads}), 8), kThreads, 0, stream, pack, args);
  constexpr int V = kLanesOf<T>;
  const bool small = largest < (int64_t{1} << 30);
  if (vectors && small)
    launch_cubic<T, V, uint32_t>(pack, args, stream);
  else if (vectors)
    launch_cubic<T, V, int64_t>(pack, args, stream);
  else if (small)
    launch_cubic<T, 1, uint32_t>(pack, args, stream);
  else
    launch_cubic<T, 1, int64_t>(pack, args, stream);
}

}  // namespace

void moments(const MomentsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  MomentsPartial* partials = args.partials;
  for (int64_t i = 0; i < args.count; i += kPack) {
    const int count = static_cast<int>(args.count - i < kPack ? args.count - i : kPack);
    dispatch_floating(args.dtype, [&](auto zero) {
      pack_moments<decltype(zero)>(args, args.items + i, count, partials, stream);
    });
    partials += moments_partials(args.dtype, args.items + i, count);
  }
}

void moments_backward(const MomentsBackwardArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  for (int64_t i = 0; i < args.count; i += kPack) {
    MomentsBackwardArgs part = args;
    part.items = args.items + i;
    part.count = args.count - i < kPack ? args.count - i : kPack;
    dispatch_floating(args.dtype, [&](auto zero) { pack_backward<decltype(zero)>(part, stream); });
  }
}

}  // namespace regkern::cuda
