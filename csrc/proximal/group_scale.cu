#include "proximal/group_lanes.cuh"

namespace regkern::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
constexpr int64_t kScaleTile = int64_t{kThreads} * kNeighbours<T>;

// A thread has V neighbours, and the factor of each.
template <Before kBefore, typename T, bool kTwo, typename I>
__global__ void __launch_bounds__(kThreads)
    group_scale_kernel(const __grid_constant__ ListChunk<GroupRow> chunk, GroupScaleArgs args,
                       int tiles) {
  using C = compute_t<T>;
  constexpr int V = kNeighbours<T>;
  const C* const a = static_cast<const C*>(args.a);
  const C* const b = static_cast<const C*>(args.b);
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const GroupRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kScaleTile<T> + static_cast<int64_t>(threadIdx.x) * V;
    if (e >= row.numel) continue;
    const T* const raw = static_cast<const T*>(row.x);
    const T* const z = static_cast<const T*>(row.z);
    T* const y = static_cast<T*>(row.y);
    const auto x = prepared<kBefore, T>(row, args.soft, args.positive);
    const I inner = static_cast<I>(row.inner), slices = static_cast<I>(row.slices);
    const I run = static_cast<I>(e) / inner;
    I at = static_cast<I>(e) - run * inner, slice = run % slices;
    const bool whole = e + V <= row.numel;
    const bool wide = whole && aligned_for_vectors(raw) && aligned_for_vectors(y) &&
                      (!kTwo || aligned_for_vectors(z));
    Vector<T, V> in, other, out;
    if (wide) {
      in = load_vector<T, V>(raw + e);
      if constexpr (kTwo) other = load_vector<T, V>(z + e);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        in.v[v] = e + v < row.numel ? raw[e + v] : T{};
        if constexpr (kTwo) other.v[v] = e + v < row.numel ? z[e + v] : T{};
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t place_of_slice = row.slice + static_cast<int64_t>(slice);
      const int64_t group =
          args.map != nullptr ? static_cast<int64_t>(args.map[place_of_slice]) : place_of_slice;
      if (e + v >= row.numel) {
        out.v[v] = T{};
      } else if (group < 0) {
        out.v[v] = args.keep ? in.v[v] : T{};
      } else {
        C value = scaled_by(a[group], x.of(widen(in.v[v]), e + v));
        if constexpr (kTwo) value = value + scaled_by(b[group], widen(other.v[v]));
        narrow(value, &out.v[v]);
      }
      if (++at == inner) {
        at = 0;
        slice = slice + 1 == slices ? 0 : slice + 1;
      }
    }
    if (wide) {
      store_vector<T, V>(out, y + e);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (e + v < row.numel) y[e + v] = out.v[v];
    }
  }
}

template <Before kBefore, typename T, bool kTwo>
void launch_scale(const GroupScaleArgs& args, cudaStream_t stream) {
  bool small = true;
  for (int64_t r = 0; r < args.count; ++r) small = small && args.rows[r].numel < (int64_t{1} << 31);
  for_each_group_chunk(
      args.rows, args.count, [](const GroupRow& row) { return ceil_div(row.numel, kScaleTile<T>); },
      [&](const ListChunk<GroupRow>& chunk, int64_t tiles) {
        if (small)
          RK_LAUNCH((group_scale_kernel<kBefore, T, kTwo, uint32_t>), grid_blocks(tiles, 16),
                    kThreads, 0, stream, chunk, args, static_cast<int>(tiles));
        else
          RK_LAUNCH((group_scale_kernel<kBefore, T, kTwo, uint64_t>), grid_blocks(tiles, 16),
                    kThreads, 0, stream, chunk, args, static_cast<int>(tiles));
      });
}

}  // namespace

void group_scale(const GroupScaleArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.b != nullptr)
    return dispatch_floating(args.dtype, [&](auto zero) {
      launch_scale<Before::nothing, decltype(zero), true>(args, stream);
    });
  dispatch_before(args.before, args.dtype, [&](auto before, auto zero) {
    launch_scale<decltype(before)::value, decltype(zero), false>(args, stream);
  });
}

}  // namespace regkern::cuda
