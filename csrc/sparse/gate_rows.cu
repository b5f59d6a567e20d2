#include "core/vector.cuh"
#include "sparse/gate_rows.h"

namespace regkern::cuda {
namespace {

using namespace sparse;

constexpr int kThreads = 256, kWarps = kThreads / 32;

// Σ f(i) over the row, in every lane.
template <typename F>
__device__ __forceinline__ int64_t row_sum(int64_t n, int lane, F&& f) {
  int64_t sum = 0;
  for (int64_t i = lane; i < n; i += 32) sum += f(i);
  return warp_sum(sum);
}

// taken(i) where i is above t, or at t and among the first `ties` that are.
template <typename At, typename Write>
__device__ __forceinline__ void take(int64_t n, int lane, int64_t ties, At&& at, Write&& write) {
  int64_t before = 0;
  for (int64_t first = 0; first < n; first += 32) {
    const int64_t i = first + lane;
    const int place = i < n ? at(i) : -1;  // above, at or below t
    const unsigned equal = __ballot_sync(kWholeWarp, place == 0);
    const int64_t rank = before + __popc(equal & ((1u << lane) - 1u));
    if (i < n) write(i, place > 0 || (place == 0 && rank < ties));
    before += __popc(equal);
  }
}

template <typename M>
__device__ __forceinline__ int compared(M a, M b) {
  return a > b ? 1 : a == b ? 0 : -1;
}

// A row a warp.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4) row_select_kernel(RowSelectArgs args) {
  using C = compute_t<T>;
  using M = magnitude_t<C>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t n = args.n, step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp; r < args.rows; r += step) {
    const T* const scores = static_cast<const T*>(args.scores) + r * n;
    const T* const values = static_cast<const T*>(args.values) + r * n;
    T* const y = static_cast<T*>(args.y) + r * n;
    const auto bits = [&](int64_t i) { return magnitude_of(widen(scores[i])); };
    const auto count = [&](M least) {
      return row_sum(n, lane, [&](int64_t i) { return int64_t{bits(i) >= least}; });
    };
    const M t = largest_reaching<M>(kHighestBit<T>, kLowestBit<T>,
                                    [&](M least) { return count(least) >= args.k; });
    const int64_t ties = args.k - count(static_cast<M>(t + 1));
    take(
        n, lane, ties, [&](int64_t i) { return compared(bits(i), t); },
        [&](int64_t i, bool taken) {
          const C v = widen(values[i]);
          narrow(taken || v != v ? v : C(0), y + i);
        });
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) mass_gate_kernel(MassGateArgs args) {
  using C = compute_t<T>;
  using M = magnitude_t<C>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t n = args.n, step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp; r < args.rows; r += step) {
    const T* const peaks = static_cast<const T*>(args.peaks) + r * n;
    T* const gates = static_cast<T*>(args.gates) + r * n;
    const auto bits = [&](int64_t i) { return magnitude_of(widen(peaks[i])); };
    M top = 0;
    for (int64_t i = lane; i < n; i += 32) top = bits(i) > top ? bits(i) : top;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const M other = __shfl_xor_sync(kWholeWarp, top, offset);
      top = other > top ? other : top;
    }
    if (top >= kInfinityBits<C>) {
      const C nan = bit_cast<C>(static_cast<M>(kInfinityBits<C> | (kInfinityBits<C> >> 1)));
      for (int64_t i = lane; i < n; i += 32) narrow(nan, gates + i);
      continue;
    }
    const double scale = mass_scale(static_cast<double>(bit_cast<C>(top)));
    const auto mass = [&](M least) {
      return row_sum(n, lane, [&](int64_t i) {
        const M own = bits(i);
        return own >= least ? int64_t{mass_of(bit_cast<C>(own), scale)} : int64_t{0};
      });
    };
    const int64_t need = mass_needed(args.share, mass(0));
    M t = kInfinityBits<C>;
    int64_t ties = 0;
    if (need > 0) {
      t = largest_reaching<M>(kHighestBit<T>, kLowestBit<T>,
                              [&](M least) { return mass(least) >= need; });
      const int64_t rest = need - mass(static_cast<M>(t + 1));
      ties = ceil_div(rest, int64_t{mass_of(bit_cast<C>(t), scale)});
    }
    take(
        n, lane, ties, [&](int64_t i) { return compared(bits(i), t); },
        [&](int64_t i, bool taken) { narrow(taken ? C(1) : C(0), gates + i); });
  }
}

// A plane a warp.
template <typename T>
__global__ void __launch_bounds__(kThreads, 8) plane_peak_kernel(PlanePeakArgs args) {
  using C = compute_t<T>;
  using M = magnitude_t<C>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t planes = args.batch * args.channels, plane = args.plane;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kWarps + warp; p < planes; p += step) {
    const T* const x = static_cast<const T*>(args.y) + p * plane;
    M most = 0;
#pragma unroll 4
    for (int64_t i = lane; i < plane; i += 32) {
      const M bits = magnitude_of(widen(x[i]));
      most = bits > most ? bits : most;
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const M other = __shfl_xor_sync(kWholeWarp, most, offset);
      most = other > most ? other : most;
    }
    if (lane == 0) narrow(bit_cast<C>(most), static_cast<T*>(args.peaks) + p);
  }
}

// A channel a thread: neighbours lie side by side.
template <typename T>
__global__ void __launch_bounds__(kThreads, 8) channel_peak_kernel(PlanePeakArgs args) {
  using C = compute_t<T>;
  using M = magnitude_t<C>;
  const int64_t all = args.batch * args.channels, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; p < all; p += step) {
    const int64_t b = p / args.channels, c = p - b * args.channels;
    const T* const x = static_cast<const T*>(args.y) + b * args.plane * args.channels + c;
    M most = 0;
#pragma unroll 4
    for (int64_t s = 0; s < args.plane; ++s) {
      const M bits = magnitude_of(widen(x[s * args.channels]));
      most = bits > most ? bits : most;
    }
    narrow(bit_cast<C>(most), static_cast<T*>(args.peaks) + p);
  }
}

}  // namespace

void row_select(const RowSelectArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t blocks = grid_blocks(ceil_div(args.rows, int64_t{kWarps}), 8);
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((row_select_kernel<decltype(zero)>), blocks, kThreads, 0, stream, args);
  });
}

void mass_gate(const MassGateArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t blocks = grid_blocks(ceil_div(args.rows, int64_t{kWarps}), 8);
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((mass_gate_kernel<decltype(zero)>), blocks, kThreads, 0, stream, args);
  });
}

void plane_peak(const PlanePeakArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t planes = args.batch * args.channels;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.channels_last)
      RK_LAUNCH((channel_peak_kernel<T>), grid_blocks(ceil_div(planes, int64_t{kThreads}), 8),
                kThreads, 0, stream, args);
    else
      RK_LAUNCH((plane_peak_kernel<T>), grid_blocks(ceil_div(planes, int64_t{kWarps}), 8), kThreads,
                0, stream, args);
  });
}

}  // namespace regkern::cuda
