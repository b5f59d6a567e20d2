// Kernels that test the emulator: right ones, and the same with one mistake each. Every entry point
// returns 0, or 1 with the text of the error.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>

#include "core/launch.cuh"

namespace {

using regkern::ceil_div;

constexpr unsigned kFullWarp = 0xffffffffu;

// ---- Right in every order, but for the switch that leaves a barrier out. ----

template <int kThreads, bool kBarrier>
__global__ void __launch_bounds__(kThreads)
    block_sum_kernel(const float* __restrict__ in, float* __restrict__ out, std::int64_t n) {
  RK_SHARED(float, warp_sums, kThreads / 32);
  float sum = 0.0f;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += stride) {
    sum += __ldg(in + i);
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  if constexpr (kBarrier) __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < kThreads / 32 ? warp_sums[threadIdx.x] : 0.0f;
    for (unsigned offset = 16; offset > 0; offset /= 2) {
      sum += __shfl_down_sync(kFullWarp, sum, offset);
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
  }
}

// Reverses a block's elements through shared memory.
template <bool kBarrier>
__global__ void reverse_kernel(const int* in, int* out) {
  RK_SHARED(int, staged, 256);
  const unsigned base = blockIdx.x * blockDim.x;
  staged[threadIdx.x] = in[base + threadIdx.x];
  if constexpr (kBarrier) __syncthreads();
  out[base + threadIdx.x] = staged[blockDim.x - 1 - threadIdx.x];
}

// The positive elements of one block, in order, and how many there are.
__global__ void compact_kernel(const int* in, int* out, int* total, int n) {
  RK_SHARED(int, counts, 32);
  const int i = static_cast<int>(threadIdx.x);
  const int warp = i / warpSize;
  const bool keep = i < n && in[i] > 0;
  const unsigned votes = __ballot_sync(kFullWarp, keep);
  if (i % warpSize == 0) counts[warp] = __popc(votes);
  __syncthreads();
  int position = __popc(votes & ((1u << i % warpSize) - 1u));
  for (int w = 0; w < warp; ++w) position += counts[w];
  if (keep) out[position] = in[i];
  const int kept = __syncthreads_count(keep);
  if (i == 0) *total = kept;
}

// out[b, c, r] = in[b, r, c], a tile of 32 x 32 at a time.
template <typename T>
__global__ void transpose_kernel(const T* in, T* out, int rows, int columns) {
  RK_DYNAMIC_SHARED(T, tile);
  const std::int64_t base = static_cast<std::int64_t>(blockIdx.z) * rows * columns;
  const int x = static_cast<int>(threadIdx.x), column = static_cast<int>(blockIdx.x) * 32;
  const int row = static_cast<int>(blockIdx.y) * 32;
  for (int y = static_cast<int>(threadIdx.y); y < 32; y += static_cast<int>(blockDim.y)) {
    if (row + y < rows && column + x < columns) {
      tile[y * 33 + x] = in[base + static_cast<std::int64_t>(row + y) * columns + column + x];
    }
  }
  __syncthreads();
  for (int y = static_cast<int>(threadIdx.y); y < 32; y += static_cast<int>(blockDim.y)) {
    if (column + y < columns && row + x < rows) {
      out[base + static_cast<std::int64_t>(column + y) * rows + row + x] = tile[x * 33 + y];
    }
  }
}

__global__ void histogram_kernel(const int* in, int* out, int n, int bins) {
  RK_DYNAMIC_SHARED(int, local);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int b = thread; b < bins; b += threads) local[b] = 0;
  __syncthreads();
  for (int i = static_cast<int>(blockIdx.x) * threads + thread; i < n;
       i += static_cast<int>(gridDim.x) * threads) {
    atomicAdd(&local[in[i]], 1);
  }
  __syncthreads();
  for (int b = thread; b < bins; b += threads) atomicAdd(&out[b], local[b]);
}

// One warp; out[k * 32 + lane] is the k-th intrinsic's result.
__global__ void intrinsics_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x;
  unsigned k = 0;
  const auto put = [&](unsigned value) { out[32 * k++ + lane] = value; };
  put(__shfl_sync(kFullWarp, lane, 5, 8));
  put(__shfl_up_sync(kFullWarp, lane, 3));
  put(__shfl_down_sync(kFullWarp, lane, 3, 16));
  put(__shfl_xor_sync(kFullWarp, lane, 9, 8));
  if (lane < 12) {
    put(__ballot_sync(0xfffu, lane % 3 == 0));
  } else {
    put(__ballot_sync(0xfffff000u, lane % 2 == 0));
  }
  put(static_cast<unsigned>(__any_sync(kFullWarp, lane == 7)));
  put(static_cast<unsigned>(__all_sync(kFullWarp, lane < 31)));
  put(static_cast<unsigned>(__syncthreads_and(lane < 32)));
  put(static_cast<unsigned>(__syncthreads_or(lane == 40)));
  put(__brev(lane));
  put(__funnelshift_l(0x80000001u, lane, 4));
  put(__funnelshift_r(0x80000001u, lane, 4));
  put(__umulhi(lane << 28, 48u));
  put(static_cast<unsigned>(__clz(static_cast<int>(lane))));
  put(static_cast<unsigned>(__ffs(static_cast<int>(lane))));
  put(__float_as_uint(min(__uint_as_float(0x7fc00000u), 1.0f)));
  put(max(-1, 3u));
  const double wide = __shfl_sync(kFullWarp, 1.0 / 3.0 + lane, 31);
  put(static_cast<unsigned>(__double_as_longlong(wide)));
  RK_SHARED(unsigned, cells, 32);
  unsigned* const cell = &cells[lane];
  *cell = lane;
  put(atomicMax(cell, 9u) + atomicCAS(cell, 9u, 100u) + *cell);
}

// Half of the threads leave before the barrier: CUDA counts them as arrived.
__global__ void early_exit_kernel(int* out) {
  if (threadIdx.x % 2 == 1) return;
  __syncwarp();
  const int count = __syncthreads_count(1);
  out[threadIdx.x] = count;
}

__global__ void busy_kernel(float* out) {
  float value = static_cast<float>(threadIdx.x);
  for (int i = 0; i < 6; ++i) {
    value += __shfl_xor_sync(kFullWarp, value, 1 << i % 5);
    __syncthreads();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

// ---- Wrong whatever the order. ----

__global__ void global_write_kernel(float* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i <= n) out[i] = 1.0f;
}

__global__ void static_write_kernel(float* out, int n) {
  RK_SHARED(float, staged, 64);
  // Through a pointer, as device functions see it: the bound is out of UBSan's sight.
  float* volatile base = staged;
  if (static_cast<int>(threadIdx.x) < n) base[threadIdx.x] = 2.0f;
  __syncthreads();
  if (threadIdx.x == 0) *out = base[n - 1];
}

__global__ void dynamic_write_kernel(float* out, int n) {
  RK_DYNAMIC_SHARED(float, staged);
  if (static_cast<int>(threadIdx.x) < n) staged[threadIdx.x] = 3.0f;
  __syncthreads();
  if (threadIdx.x == 0) *out = staged[n - 1];
}

__global__ void uninitialised_kernel(float* out) {
  RK_SHARED(float, staged, 32);
  if (threadIdx.x > 0) staged[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) *out = staged[0] + staged[1];
}

__global__ void divergent_kernel(int* out) {
  if (threadIdx.x < 40) {
    __syncthreads();
    *out = 1;
  } else {
    __syncthreads();
  }
}

__global__ void deadlock_kernel(int* out) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    *out = __shfl_sync(kFullWarp, 1, 0);
  }
}

__global__ void exited_lane_kernel(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_down_sync(kFullWarp, 1, 1);
}

__global__ void inactive_lane_kernel(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1, 20);
}

__global__ void wrong_mask_kernel(int* out) { *out = __any_sync(0xfffffffeu, 1); }

__global__ void trap_kernel(int when) {
  if (static_cast<int>(threadIdx.x) == when) __trap();
  __syncthreads();
}

template <typename Launches>
int guarded(char* error, Launches&& launches) {
  try {
    launches();
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(error, 2048, "%s", e.what());
    return 1;
  }
}

constexpr cudaStream_t kStream = nullptr;

}  // namespace

#define RK_ENTRY extern "C" __attribute__((visibility("default"))) int

RK_ENTRY block_sum(const float* in, float* out, std::int64_t n, int blocks, int barrier,
                   char* error) {
  return guarded(error, [&] {
    if (barrier != 0) {
      RK_LAUNCH((block_sum_kernel<256, true>), blocks, 256, 0, kStream, in, out, n);
    } else {
      RK_LAUNCH((block_sum_kernel<256, false>), blocks, 256, 0, kStream, in, out, n);
    }
  });
}

RK_ENTRY reverse(const int* in, int* out, int blocks, int barrier, char* error) {
  return guarded(error, [&] {
    if (barrier != 0) {
      RK_LAUNCH(reverse_kernel<true>, blocks, 256, 0, kStream, in, out);
    } else {
      RK_LAUNCH(reverse_kernel<false>, blocks, 256, 0, kStream, in, out);
    }
  });
}

RK_ENTRY compact(const int* in, int* out, int* total, int n, char* error) {
  return guarded(error, [&] {
    RK_LAUNCH(compact_kernel, 1, ceil_div(n, 32) * 32, 0, kStream, in, out, total, n);
  });
}

RK_ENTRY transpose(const double* in, double* out, int batch, int rows, int columns, char* error) {
  return guarded(error, [&] {
    const dim3 grid(static_cast<unsigned>(ceil_div(columns, 32)),
                    static_cast<unsigned>(ceil_div(rows, 32)), static_cast<unsigned>(batch));
    RK_LAUNCH(transpose_kernel<double>, grid, dim3(32, 8), 32 * 33 * sizeof(double), kStream, in,
              out, rows, columns);
  });
}

RK_ENTRY histogram(const int* in, int* out, int n, int bins, char* error) {
  return guarded(error, [&] {
    if (cudaMemsetAsync(out, 0, sizeof(int) * static_cast<unsigned>(bins), kStream) !=
        cudaSuccess) {
      throw std::runtime_error("cudaMemsetAsync failed");
    }
    RK_LAUNCH(histogram_kernel, regkern::device_sm_count(), 128,
              sizeof(int) * static_cast<unsigned>(bins), kStream, in, out, n, bins);
  });
}

RK_ENTRY intrinsics(unsigned* out, char* error) {
  return guarded(error, [&] { RK_LAUNCH(intrinsics_kernel, 1, 32, 0, kStream, out); });
}

RK_ENTRY early_exit(int* out, int threads, char* error) {
  return guarded(error, [&] { RK_LAUNCH(early_exit_kernel, 1, threads, 0, kStream, out); });
}

RK_ENTRY busy(float* out, int blocks, char* error) {
  return guarded(error, [&] { RK_LAUNCH(busy_kernel, blocks, 256, 0, kStream, out); });
}

// `excess` elements beyond the end; 0 is right.
RK_ENTRY global_write(int excess, char* error) {
  return guarded(error, [&] {
    constexpr int kCount = 256;
    auto* out = new float[kCount];
    RK_LAUNCH(global_write_kernel, 3, 100, 0, kStream, out, kCount - 1 + excess);
    delete[] out;
  });
}

RK_ENTRY static_write(int excess, char* error) {
  return guarded(error, [&] {
    float out = 0.0f;
    RK_LAUNCH(static_write_kernel, 2, 128, 0, kStream, &out, 64 + excess);
  });
}

RK_ENTRY dynamic_write(int excess, char* error) {
  return guarded(error, [&] {
    float out = 0.0f;
    RK_LAUNCH(dynamic_write_kernel, 2, 128, 50 * sizeof(float), kStream, &out, 50 + excess);
  });
}

RK_ENTRY uninitialised(float* out, int blocks, char* error) {
  return guarded(error, [&] { RK_LAUNCH(uninitialised_kernel, blocks, 32, 0, kStream, out); });
}

RK_ENTRY misuse(const char* what, int* out, char* error) {
  return guarded(error, [&] {
    switch (what[0]) {
      case 'b':
        RK_LAUNCH(divergent_kernel, 1, 64, 0, kStream, out);
        break;
      case 'd':
        RK_LAUNCH(deadlock_kernel, 1, 32, 0, kStream, out);
        break;
      case 'e':
        RK_LAUNCH(exited_lane_kernel, 1, 32, 0, kStream, out);
        break;
      case 'i':
        RK_LAUNCH(inactive_lane_kernel, 1, 32, 0, kStream, out);
        break;
      case 'm':
        RK_LAUNCH(wrong_mask_kernel, 1, 32, 0, kStream, out);
        break;
      case 't':
        RK_LAUNCH(trap_kernel, 2, 64, 0, kStream, 33);
        break;
      default:
        throw std::invalid_argument(what);
    }
  });
}

RK_ENTRY launch_shape(std::int64_t grid, int block, std::int64_t shared, int large, char* error) {
  return guarded(error, [&] {
    const auto bytes = static_cast<std::size_t>(shared);
    RK_LAUNCH(trap_kernel, grid, block,
              large != 0 ? regkern::large_shared(bytes) : regkern::SharedBytes(bytes), kStream, -1);
  });
}
