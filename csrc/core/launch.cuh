// What every .cu file stands on: one way to launch a kernel and one way to declare shared memory,
// so that the same text compiles for the GPU and for the emulator that runs it on the CPU.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#elif defined(REGKERN_EMULATOR)
#include "emulator/cuda_on_cpu.h"
#else
#error "core/launch.cuh: compile with nvcc, or with REGKERN_EMULATOR defined for the CPU emulator"
#endif

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace regkern {

template <std::integral T, std::integral U>
__host__ __device__ constexpr std::common_type_t<T, U> ceil_div(T dividend, U divisor) {
  using R = std::common_type_t<T, U>;
  // Not (a + b - 1) / b: that overflows near the top of the range.
  const R a = static_cast<R>(dividend);
  const R b = static_cast<R>(divisor);
  return static_cast<R>(a / b + (a % b != 0 ? 1 : 0));
}

inline constexpr std::size_t kSharedBytesDefault = std::size_t{48} << 10;
inline constexpr std::size_t kSharedBytesOptIn = std::size_t{227} << 10;

// Dynamic shared memory of a launch. A plain number is held to the 48 KiB that every GPU grants;
// `large_shared(bytes)` opts in to what the hardware has beyond that.
struct SharedBytes {
  std::size_t bytes = 0;
  bool opted_in = false;

  template <std::integral T>
  SharedBytes(T size)  // NOLINT(google-explicit-constructor): launches pass plain numbers
      : bytes(static_cast<std::size_t>(size)) {}
  SharedBytes(std::size_t size, bool opt_in) : bytes(size), opted_in(opt_in) {}
};

inline SharedBytes large_shared(std::size_t bytes) { return SharedBytes(bytes, true); }

namespace detail {

inline std::string to_string(dim3 d) {
  // Not "(" + std::to_string(...): gcc 12 warns of an overlap in that, wrongly (-Wrestrict, -O3).
  std::string text = "(";
  text.append(std::to_string(d.x)).append(", ").append(std::to_string(d.y)).append(", ");
  return text.append(std::to_string(d.z)).append(")");
}

[[noreturn]] inline void launch_error(const char* kernel, dim3 grid, dim3 block,
                                      const std::string& why) {
  throw std::runtime_error("launch of kernel " + std::string(kernel) + " with grid " +
                           to_string(grid) + " and block " + to_string(block) + " failed: " + why);
}

inline dim3 to_dim3(dim3 d) { return d; }

// dim3 holds 32 bits: a block count computed in int64 must not wrap on its way into it.
template <std::integral T>
dim3 to_dim3(T count) {
  if (!std::in_range<unsigned>(count)) {
    throw std::runtime_error("launch dimension " + std::to_string(count) +
                             " does not fit in 32 bits");
  }
  return dim3(static_cast<unsigned>(count));
}

inline void check_launch(const char* kernel, dim3 grid, dim3 block, SharedBytes shared) {
  constexpr unsigned kMaxGridX = 0x7fffffffu;
  constexpr unsigned kMaxGridYZ = 65535u;
  constexpr std::uint64_t kMaxThreads = 1024;
  constexpr unsigned kMaxBlockZ = 64;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
    launch_error(kernel, grid, block, "the grid is empty");
  }
  if (block.x == 0 || block.y == 0 || block.z == 0) {
    launch_error(kernel, grid, block, "the block is empty");
  }
  if (grid.x > kMaxGridX || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) {
    launch_error(kernel, grid, block, "a grid has at most (2147483647, 65535, 65535) blocks");
  }
  if (block.x > kMaxThreads || block.y > kMaxThreads || block.z > kMaxBlockZ ||
      std::uint64_t{block.x} * block.y * block.z > kMaxThreads) {
    launch_error(kernel, grid, block,
                 "a block has at most 1024 threads, and (1024, 1024, 64) along its axes");
  }
  const std::size_t limit = shared.opted_in ? kSharedBytesOptIn : kSharedBytesDefault;
  if (shared.bytes > limit) {
    launch_error(kernel, grid, block,
                 std::to_string(shared.bytes) + " bytes of dynamic shared memory exceed " +
                     std::to_string(limit) +
                     (shared.opted_in ? "" : " (large_shared() opts in to more)"));
  }
}

}  // namespace detail

// Use through RK_LAUNCH. Arguments convert to the kernel's parameter types as in a call.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), const char* name, dim3 grid, dim3 block, SharedBytes shared,
            cudaStream_t stream, Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "wrong number of kernel arguments");
  detail::check_launch(name, grid, block, shared);
  std::tuple<Params...> params(static_cast<Params>(std::forward<Args>(args))...);
#if defined(__CUDACC__)
  cudaError_t status = cudaSuccess;
  if (shared.bytes > kSharedBytesDefault) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared.bytes));
  }
  if (status == cudaSuccess) {
    status = std::apply(
        [&](auto&... param) {
          // The trailing null keeps the array non-empty for kernels without parameters.
          void* addresses[] = {static_cast<void*>(&param)..., nullptr};
          return cudaLaunchKernel(kernel, grid, block, addresses, shared.bytes, stream);
        },
        params);
  }
  if (status != cudaSuccess) {
    // The runtime keeps the error until it is read: cleared here, since it is thrown from here,
    // or the next unrelated check would report it again.
    static_cast<void>(cudaGetLastError());
    detail::launch_error(name, grid, block, cudaGetErrorString(status));
  }
#else
  static_cast<void>(stream);
  const auto body = [&] { std::apply(kernel, params); };
  emulator::launch(name, grid, block, shared.bytes, body);
#endif
}

// Multiprocessors of the current device, for sizing grid-stride launches.
inline int device_sm_count() {
#if defined(__CUDACC__)
  constexpr int kMaxDevices = 64;
  static std::atomic<int> cached[kMaxDevices] = {};
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  const bool cacheable = device >= 0 && device < kMaxDevices;
  int count = status == cudaSuccess && cacheable ? cached[device].load() : 0;
  if (status == cudaSuccess && count == 0) {
    status = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    if (status == cudaSuccess && cacheable) cached[device].store(count);
  }
  if (status != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw std::runtime_error(std::string("cannot read the device's multiprocessor count: ") +
                             cudaGetErrorString(status));
  }
  return count;
#else
  // Small, so that grid-stride loops go round more than once on the sizes that tests use.
  return 4;
#endif
}

// Blocks of a grid-stride launch over the work of `work` blocks: no more than `per_sm` for each
// multiprocessor.
inline std::int64_t grid_blocks(std::int64_t work, int per_sm) {
  const std::int64_t most = std::int64_t{device_sm_count()} * per_sm;
  return work < most ? work : most;
}

inline void zero_async(void* data, std::size_t bytes, cudaStream_t stream) {
  const cudaError_t status = cudaMemsetAsync(data, 0, bytes, stream);
  if (status != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw std::runtime_error(std::string("cannot zero device memory: ") +
                             cudaGetErrorString(status));
  }
}

}  // namespace regkern

// RK_LAUNCH((kernel<float, 4>), grid, block, shared_bytes, stream, args...)
//
// Queues the kernel without synchronising; throws std::runtime_error naming kernel, grid, block and
// the reason if it cannot be launched. The grid and the block are dim3 or plain numbers.
#define RK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                            \
  ::regkern::launch(kernel, #kernel, ::regkern::detail::to_dim3(grid),                       \
                    ::regkern::detail::to_dim3(block), ::regkern::SharedBytes(shared_bytes), \
                    stream __VA_OPT__(, ) __VA_ARGS__)

#if defined(__CUDACC__)

// A shared array of `count` elements. A type with a comma in it needs an alias; a row type
// (`using Row = float[33];`) makes a matrix.
#define RK_SHARED(type, name, count) __shared__ type name[count]

// A pointer to the launch's dynamic shared memory. One extern symbol serves all types, since one
// name declared with two types does not link; hence bytes, aligned for 16-byte accesses.
#define RK_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char rk_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(rk_dynamic_shared)

#else

// The address of the static tells declarations apart, and the instantiations of a template too.
#define RK_SHARED(type, name, count)                 \
  static char name##_site;                           \
  type(&name)[count] = *static_cast<type(*)[count]>( \
      ::regkern::emulator::shared_array(&name##_site, sizeof(type) * (count), alignof(type)))

#define RK_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::regkern::emulator::dynamic_shared())

#endif
