#include "core/bits.h"
#include "core/vector.cuh"
#include "masks/mix.h"

namespace regkern::cuda {
namespace {

using namespace masks;

constexpr int kThreads = 256;

// A box on the rows of a sample: pixel rows, and columns in elements.
template <typename I>
struct Region {
  I y0, y1, begin, end;
};

template <typename I>
__device__ __forceinline__ Region<I> region_of(const int32_t* boxes, const Images& m, int64_t i) {
  const Box box = clipped(box_at(boxes, m, i), m);
  const I inner = static_cast<I>(m.inner);
  return {static_cast<I>(box.y0), static_cast<I>(box.y1), static_cast<I>(box.x0) * inner,
          static_cast<I>(box.x1) * inner};
}

// Where V neighbouring elements stand in their sample.
template <typename I>
struct Place {
  I y, column, row, height;
};

template <typename I>
__device__ __forceinline__ Place<I> place_of(const Images& m, I e) {
  const I row = static_cast<I>(m.width * m.inner), height = static_cast<I>(m.height);
  const I r = e / row;
  return {r % height, e - r * row, row, height};
}

// Bit i is whether element i of V is inside.
template <int V, typename I>
__device__ __forceinline__ uint32_t inside(const Region<I>& region, const Place<I>& place) {
  if (place.column + V <= place.row) {
    if (place.y < region.y0 || place.y >= region.y1) return 0;
    const I begin = region.begin > place.column ? region.begin - place.column : 0;
    const I end = region.end > place.column ? region.end - place.column : 0;
    return low_bits(static_cast<int64_t>(end)) & ~low_bits(static_cast<int64_t>(begin)) &
           low_bits(V);
  }
  uint32_t bits = 0;
  I y = place.y, column = place.column;
#pragma unroll 1
  for (int i = 0; i < V; ++i) {
    const bool in =
        y >= region.y0 && y < region.y1 && column >= region.begin && column < region.end;
    bits |= static_cast<uint32_t>(in) << i;
    if (++column < place.row) continue;
    column = 0;
    if (++y == place.height) y = 0;
  }
  return bits;
}

// V elements on their way. Vectors travel as words: of bytes and halves, each would take a
// register.
template <typename T, int V>
using Payload = std::conditional_t<V == 1, Vector<T, 1>, Vector<uint32_t, 4>>;

template <typename T, int V>
__device__ __forceinline__ Payload<T, V> load_payload(const T* data) {
  static_assert(V == 1 || V * sizeof(T) == kVectorBytes);
  if constexpr (V == 1)
    return load_vector<T, 1>(data);
  else
    return load_vector<uint32_t, 4>(reinterpret_cast<const uint32_t*>(data));
}
template <typename T, int V>
__device__ __forceinline__ void store_payload(const Payload<T, V>& value, T* data) {
  if constexpr (V == 1)
    store_vector<T, 1>(value, data);
  else
    store_vector<uint32_t, 4>(value, reinterpret_cast<uint32_t*>(data));
}

// What stands for a partner that is not there. Numbers on a GPU cannot be checked without waiting
// for it, so the mistake has to show in the result: all bits set are a NaN in every floating-point
// type. Bytes become 0.
template <typename T, int V>
__device__ __forceinline__ Payload<T, V> nobody() {
  Payload<T, V> v;
  memset(&v, sizeof(T) == 1 ? 0x00 : 0xFF, sizeof(v));
  return v;
}

// The elements of `other` where a bit is set, else those of `own`.
template <typename T, int V>
__device__ __forceinline__ Payload<T, V> chosen(uint32_t bits, Payload<T, V> own,
                                                const Payload<T, V>& other) {
  if constexpr (V == 1) {
    return (bits & 1u) != 0 ? other : own;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t here = bits >> (i * V / 4);
      uint32_t mask;
      if constexpr (sizeof(T) == 1)
        mask = ((here & 15u) * 0x00204081u & 0x01010101u) * 0xFFu;  // bit j to byte j
      else if constexpr (sizeof(T) == 2)
        mask = ((here & 1u) | (here & 2u) << 15) * 0xFFFFu;
      else
        mask = (here & 1u) * 0xFFFFFFFFu;
      own.v[i] = (own.v[i] & ~mask) | (other.v[i] & mask);
    }
    return own;
  }
}

// a x + (1 − a) o.
template <typename T, int V>
__device__ __forceinline__ Payload<T, V> blended(double weight, const Payload<T, V>& own,
                                                 const Payload<T, V>& other) {
  using C = compute_t<T>;
  const C a = static_cast<C>(weight), b = C(1) - a;
  auto x = bit_cast<Vector<T, V>>(own);
  const auto o = bit_cast<Vector<T, V>>(other);
#pragma unroll
  for (int i = 0; i < V; ++i) narrow(a * widen(x.v[i]) + b * widen(o.v[i]), x.v + i);
  return bit_cast<Payload<T, V>>(x);
}

// ---- mix ----

// Elements that only move, whatever they mean.
struct alignas(16) Bytes16 {
  uint64_t halves[2];
};

// Blocks along x share a sample, blocks along y are samples. kBlend: weights other than 0 and 1.
template <typename T, int V, bool kBlend, typename I>
__global__ void __launch_bounds__(kThreads, 4) mix_kernel(MixArgs args) {
  constexpr int kUnroll = kBlend ? 2 : 4;
  constexpr I kTile = kThreads * kUnroll * V;
  constexpr uint32_t kAll = (1u << V) - 1u;
  const Images& m = args.images;
  const I size = static_cast<I>(sample_size(m));
  for (int64_t b = blockIdx.y; b < m.batch; b += gridDim.y) {
    const double weight = weight_at(args.weight, b);
    const int64_t partner = args.partner[b];
    const bool found = partner >= 0 && partner < args.others;
    Region<I> region = region_of<I>(args.boxes, m, b);
    if (weight == 1.0) region = {0, 0, 0, 0};
    const T* own = static_cast<const T*>(args.x) + b * sample_size(m);
    const T* theirs = static_cast<const T*>(args.other) + (found ? partner : 0) * sample_size(m);
    T* y = static_cast<T*>(args.y) + b * sample_size(m);
    const bool none = region.y0 == region.y1;
    const bool pastes = !kBlend || weight == 0.0;
    for (I base = static_cast<I>(blockIdx.x) * kTile; base < size;
         base += static_cast<I>(gridDim.x) * kTile) {
      Payload<T, V> first[kUnroll]{}, second[kBlend ? kUnroll : 1]{};
      uint32_t in[kUnroll]{};
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const I e = base + static_cast<I>((u * kThreads + static_cast<int>(threadIdx.x)) * V);
        if (e >= size) continue;
        in[u] = none ? 0u : inside<V>(region, place_of(m, e));
        // One load where one source serves all V.
        const bool pasted = pastes && found && in[u] == kAll;
        first[u] = load_payload<T, V>((pasted ? theirs : own) + e);
        if constexpr (kBlend)
          if (in[u] != 0 && !pasted)
            second[u] = found ? load_payload<T, V>(theirs + e) : nobody<T, V>();
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const I e = base + static_cast<I>((u * kThreads + static_cast<int>(threadIdx.x)) * V);
        if (e >= size) continue;
        Payload<T, V> out = first[u];
        if (in[u] != 0 && !(pastes && found && in[u] == kAll)) {
          if constexpr (kBlend) {
            const bool whole = pastes || !found;
            out =
                chosen<T, V>(in[u], out, whole ? second[u] : blended<T, V>(weight, out, second[u]));
          } else {
            out = chosen<T, V>(in[u], out, found ? load_payload<T, V>(theirs + e) : nobody<T, V>());
          }
        }
        store_payload<T, V>(out, y + e);
      }
    }
  }
}

// Blocks for the elements of a sample and for the samples.
dim3 sample_grid(const Images& m, int64_t tile) {
  constexpr int64_t kMostTiles = 4096, kMostSamples = 65535;
  const int64_t tiles = ceil_div(sample_size(m), tile);
  return dim3(static_cast<unsigned>(tiles < kMostTiles ? tiles : kMostTiles),
              static_cast<unsigned>(m.batch < kMostSamples ? m.batch : kMostSamples));
}

template <typename T, int V, bool kBlend, typename I>
void launch_mix(const MixArgs& args, cudaStream_t stream) {
  RK_LAUNCH((mix_kernel<T, V, kBlend, I>),
            sample_grid(args.images, int64_t{kThreads} * (kBlend ? 2 : 4) * V), kThreads, 0, stream,
            args);
}

bool is_small(const Images& m) { return sample_size(m) < (int64_t{1} << 31); }

// Vectors where each sample consists of whole ones.
template <typename T>
bool has_vectors(const Images& m) {
  return is_small(m) && sample_size(m) * static_cast<int64_t>(sizeof(T)) % kVectorBytes == 0;
}

template <typename T, bool kBlend>
void mix_as(const MixArgs& args, cudaStream_t stream) {
  if (has_vectors<T>(args.images) && is_aligned(args.x) && is_aligned(args.other) &&
      is_aligned(args.y))
    return launch_mix<T, kLanesOf<T>, kBlend, uint32_t>(args, stream);
  if (is_small(args.images)) return launch_mix<T, 1, kBlend, uint32_t>(args, stream);
  launch_mix<T, 1, kBlend, int64_t>(args, stream);
}

// ---- mix_adjoint ----

// Thread t finds the next sample with the partner of sample t, and the first one whose partner is
// t.
__global__ void __launch_bounds__(kThreads) links_kernel(MixAdjointArgs args) {
  RK_SHARED(int64_t, partners, kThreads);
  const int64_t batch = args.images.batch;
  const int64_t most = batch > args.others ? batch : args.others;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads; base < most;
       base += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t t = base + threadIdx.x;
    const int64_t mine = t < batch ? args.partner[t] : -1;
    int64_t head = -1, next = -1;
    for (int64_t from = 0; from < batch; from += kThreads) {
      const int count = static_cast<int>(batch - from < kThreads ? batch - from : kThreads);
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < count)
        partners[threadIdx.x] = args.partner[from + threadIdx.x];
      __syncthreads();
      for (int i = 0; i < count; ++i) {
        if (head < 0 && partners[i] == t) head = from + i;
        if (next < 0 && from + i > t && partners[i] == mine) next = from + i;
      }
    }
    if (t < args.others) args.head[t] = head;
    if (t < batch) args.next[t] = next;
  }
}

template <typename T, int V, typename C>
__device__ __forceinline__ void add_scaled(const Vector<T, V>& g, uint32_t in, C a, C* sum) {
#pragma unroll
  for (int i = 0; i < V; ++i)
    if ((in >> i & 1u) != 0) sum[i] += a * widen(g.v[i]);
}

template <typename T, int V, typename I>
__global__ void __launch_bounds__(kThreads, 4)
    adjoint_kernel(MixAdjointArgs args, int64_t outputs) {
  using C = compute_t<T>;
  constexpr I kTile = kThreads * V;
  const Images& m = args.images;
  const I size = static_cast<I>(sample_size(m));
  const T* g = static_cast<const T*>(args.g);
  for (int64_t j = blockIdx.y; j < outputs; j += gridDim.y) {
    T* out = static_cast<T*>(args.out) + j * sample_size(m);
    for (I e = static_cast<I>(blockIdx.x) * kTile + static_cast<I>(threadIdx.x) * V; e < size;
         e += static_cast<I>(gridDim.x) * kTile) {
      const Place<I> place = place_of(m, e);
      C sum[V] = {};
      if (args.own) {
        const double a = weight_at(args.weight, j);
        const uint32_t in = a != 1.0 ? inside<V>(region_of<I>(args.boxes, m, j), place) : 0u;
        if (a != 0.0 || in != low_bits(V)) {
          const Vector<T, V> own = load_vector<T, V>(g + j * sample_size(m) + e);
          add_scaled<T, V>(own, ~in, C(1), sum);
          if (a != 0.0) add_scaled<T, V>(own, in, static_cast<C>(a), sum);
        }
      }
      if (args.from_partner) {
        for (int64_t i = args.head[j]; i >= 0; i = args.next[i]) {
          const double a = weight_at(args.weight, i);
          if (a == 1.0) continue;
          const uint32_t in = inside<V>(region_of<I>(args.boxes, m, i), place);
          if (in == 0) continue;
          add_scaled<T, V>(load_vector<T, V>(g + i * sample_size(m) + e), in,
                           C(1) - static_cast<C>(a), sum);
        }
      }
      Vector<T, V> result;
#pragma unroll
      for (int i = 0; i < V; ++i) narrow(sum[i], result.v + i);
      store_vector<T, V>(result, out + e);
    }
  }
}

template <typename T, int V, typename I>
void launch_adjoint(const MixAdjointArgs& args, cudaStream_t stream) {
  const int64_t outputs = args.own ? args.images.batch : args.others;
  Images shape = args.images;
  shape.batch = outputs;
  RK_LAUNCH((adjoint_kernel<T, V, I>), sample_grid(shape, int64_t{kThreads} * V), kThreads, 0,
            stream, args, outputs);
}

template <typename T>
void adjoint_as(const MixAdjointArgs& args, cudaStream_t stream) {
  if (has_vectors<T>(args.images) && is_aligned(args.g) && is_aligned(args.out))
    return launch_adjoint<T, kLanesOf<T>, uint32_t>(args, stream);
  if (is_small(args.images)) return launch_adjoint<T, 1, uint32_t>(args, stream);
  launch_adjoint<T, 1, int64_t>(args, stream);
}

// ---- mix_dot ----

__device__ double not_a_number() { return bit_cast<double>(uint64_t{0x7FF8000000000000}); }

// A block sums a segment, a thread one of its interleaved sums.
template <typename T, typename I>
__global__ void __launch_bounds__(kDotLanes, 4) segments_kernel(MixDotArgs args, int64_t segments) {
  RK_SHARED(double, lanes, kDotLanes);
  const Images& m = args.images;
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t size = sample_size(m);
  for (int64_t work = blockIdx.x; work < m.batch * segments; work += gridDim.x) {
    const int64_t b = work / segments, begin = (work - b * segments) * kDotSegment;
    const I end = static_cast<I>(begin + kDotSegment < size ? begin + kDotSegment : size);
    const Region<I> region = region_of<I>(args.boxes, m, b);
    const int64_t partner = args.partner[b];
    const bool found = partner >= 0 && partner < args.others;
    const T* g = static_cast<const T*>(args.g) + b * size;
    const T* x = static_cast<const T*>(args.x) + b * size;
    const T* o = static_cast<const T*>(args.other) + (found ? partner : 0) * size;
    double sum = found || region.y0 == region.y1 ? 0.0 : not_a_number();
    if (found && region.y0 != region.y1) {
#pragma unroll 4
      for (I e = static_cast<I>(begin) + static_cast<I>(lane); e < end; e += kDotLanes)
        if (inside<1>(region, place_of(m, e)) != 0)
          sum += static_cast<double>(widen(g[e])) *
                 (static_cast<double>(widen(x[e])) - static_cast<double>(widen(o[e])));
    }
    lanes[lane] = sum;
    __syncthreads();
    for (int width = kDotLanes / 2; width > 0; width /= 2) {
      if (lane < width) lanes[lane] += lanes[lane + width];
      __syncthreads();
    }
    if (lane == 0) args.segments[work] = lanes[0];
  }
}

__global__ void __launch_bounds__(kThreads) sum_segments_kernel(MixDotArgs args, int64_t segments) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < args.images.batch;
       b += stride) {
    double sum = 0.0;
    for (int64_t s = 0; s < segments; ++s) sum += args.segments[b * segments + s];
    args.out[b] = sum;
  }
}

// ---- mix_labels ----

template <typename T, typename I>
__global__ void __launch_bounds__(kThreads) mix_labels_kernel(MixLabelsArgs args) {
  using C = compute_t<T>;
  const I classes = static_cast<I>(args.classes), total = static_cast<I>(args.batch) * classes;
  const C off = static_cast<C>(args.smoothing / static_cast<double>(args.classes));
  const C on = static_cast<C>(1.0 - args.smoothing);
  for (I e = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; e < total;
       e += static_cast<I>(gridDim.x) * kThreads) {
    const I b = e / classes;
    const auto k = static_cast<int64_t>(e - b * classes);
    const int64_t partner = args.partner[b], own = args.labels[b];
    const bool found = partner >= 0 && partner < args.others;
    const int64_t theirs = found ? args.other_labels[partner] : -1;
    const bool valid = own >= 0 && own < args.classes && theirs >= 0 && theirs < args.classes;
    const C lam = static_cast<C>(args.lam[b]);
    C value = off;
    if (!valid)
      value = static_cast<C>(not_a_number());
    else if (k == own)
      value = own == theirs ? off + on : off + on * lam;
    else if (k == theirs)
      value = off + on * (C(1) - lam);
    static_cast<T*>(args.out)[e] = narrowed<T>(value);
  }
}

}  // namespace

void mix(const MixArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.weight.data != nullptr)
    return dispatch_floating_or_byte(
        args.dtype, [&](auto zero) { mix_as<decltype(zero), true>(args, stream); });
  switch (args.itemsize) {
    case 2:
      return mix_as<uint16_t, false>(args, stream);
    case 4:
      return mix_as<uint32_t, false>(args, stream);
    case 8:
      return mix_as<uint64_t, false>(args, stream);
    case 16:
      if (is_aligned(args.x) && is_aligned(args.other) && is_aligned(args.y))
        return mix_as<Bytes16, false>(args, stream);
      break;
    default:
      break;
  }
  MixArgs bytes = args;
  bytes.images.inner *= args.itemsize;
  mix_as<uint8_t, false>(bytes, stream);
}

void mix_adjoint(const MixAdjointArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t batch = args.images.batch, most = batch > args.others ? batch : args.others;
  if (args.from_partner)
    RK_LAUNCH(links_kernel, grid_blocks(ceil_div(most, int64_t{kThreads}), 8), kThreads, 0, stream,
              args);
  dispatch_floating(args.dtype, [&](auto zero) { adjoint_as<decltype(zero)>(args, stream); });
}

void mix_dot(const MixDotArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Images& m = args.images;
  const int64_t segments = ceil_div(sample_size(m), kDotSegment);
  const int64_t blocks = grid_blocks(m.batch * segments, 32);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (is_small(m))
      RK_LAUNCH((segments_kernel<T, uint32_t>), blocks, kDotLanes, 0, stream, args, segments);
    else
      RK_LAUNCH((segments_kernel<T, int64_t>), blocks, kDotLanes, 0, stream, args, segments);
  });
  RK_LAUNCH(sum_segments_kernel, grid_blocks(ceil_div(m.batch, int64_t{kThreads}), 8), kThreads, 0,
            stream, args, segments);
}

void mix_labels(const MixLabelsArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t total = args.batch * args.classes;
  const int64_t blocks = grid_blocks(ceil_div(total, int64_t{kThreads}), 16);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (total < (int64_t{1} << 31))
      RK_LAUNCH((mix_labels_kernel<T, uint32_t>), blocks, kThreads, 0, stream, args);
    else
      RK_LAUNCH((mix_labels_kernel<T, int64_t>), blocks, kThreads, 0, stream, args);
  });
}

}  // namespace regkern::cuda
