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

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

// Every .cu file is read three times by nvcc, so this header holds no strings, and what needs some
// is in launch.cu.

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

[[noreturn]] void dimension_error(std::int64_t count);
[[noreturn]] void dimension_error(std::uint64_t count);

inline dim3 to_dim3(dim3 d) { return d; }

// dim3 holds 32 bits: a block count computed in int64 must not wrap on its way into it.
template <std::integral T>
dim3 to_dim3(T count) {
  if (!std::in_range<unsigned>(count)) {
    using Wide = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
    dimension_error(static_cast<Wide>(count));
  }
  return dim3(static_cast<unsigned>(count));
}

// Throws where the launch is beyond what CUDA allows.
void check_launch(const char* kernel, dim3 grid, dim3 block, SharedBytes shared);

#if defined(__CUDACC__)
// `kernel` is named by its address on the host, `params` holds the addresses of its arguments.
void launch_checked(const void* kernel, const char* name, dim3 grid, dim3 block, SharedBytes shared,
                    cudaStream_t stream, void** params);
#endif

}  // namespace detail

// Use through RK_LAUNCH. Arguments convert to the kernel's parameter types as in a call.
template <typename... Params>
void launch(void (*kernel)(Params...), const char* name, dim3 grid, dim3 block, SharedBytes shared,
            cudaStream_t stream, std::type_identity_t<Params>... params) {
#if defined(__CUDACC__)
  // The trailing null keeps the array non-empty for kernels without parameters.
  void* addresses[] = {static_cast<void*>(&params)..., nullptr};
  detail::launch_checked(reinterpret_cast<const void*>(kernel), name, grid, block, shared, stream,
                         addresses);
#else
  static_cast<void>(stream);
  detail::check_launch(name, grid, block, shared);
  const auto body = [&] { kernel(params...); };
  emulator::launch(name, grid, block, shared.bytes, body);
#endif
}

// Multiprocessors of the current device, for sizing grid-stride launches.
int device_sm_count();

// Blocks of a grid-stride launch over the work of `work` blocks: no more than `per_sm` for each
// multiprocessor.
inline std::int64_t grid_blocks(std::int64_t work, int per_sm) {
  const std::int64_t most = std::int64_t{device_sm_count()} * per_sm;
  return work < most ? work : most;
}

void zero_async(void* data, std::size_t bytes, cudaStream_t stream);

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
