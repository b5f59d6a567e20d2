// What launches do once, whatever the kernel: checks, errors, and what the device is asked for.
#include <atomic>
#include <stdexcept>
#include <string>

#include "core/launch.cuh"

namespace regkern {
namespace {

std::string to_string(dim3 d) {
  // Not "(" + std::to_string(...): gcc 12 warns of an overlap in that, wrongly (-Wrestrict, -O3).
  std::string text = "(";
  text.append(std::to_string(d.x)).append(", ").append(std::to_string(d.y)).append(", ");
  return text.append(std::to_string(d.z)).append(")");
}

[[noreturn]] void launch_error(const char* kernel, dim3 grid, dim3 block, const std::string& why) {
  throw std::runtime_error("launch of kernel " + std::string(kernel) + " with grid " +
                           to_string(grid) + " and block " + to_string(block) + " failed: " + why);
}

std::runtime_error dimension_misfit(const std::string& count) {
  return std::runtime_error("launch dimension " + count + " does not fit in 32 bits");
}

}  // namespace

namespace detail {

void dimension_error(std::int64_t count) { throw dimension_misfit(std::to_string(count)); }
void dimension_error(std::uint64_t count) { throw dimension_misfit(std::to_string(count)); }

void check_launch(const char* kernel, dim3 grid, dim3 block, SharedBytes shared) {
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

#if defined(__CUDACC__)
void launch_checked(const void* kernel, const char* name, dim3 grid, dim3 block, SharedBytes shared,
                    cudaStream_t stream, void** params) {
  check_launch(name, grid, block, shared);
  cudaError_t status = cudaSuccess;
  if (shared.bytes > kSharedBytesDefault) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared.bytes));
  }
  if (status == cudaSuccess) {
    status = cudaLaunchKernel(kernel, grid, block, params, shared.bytes, stream);
  }
  if (status != cudaSuccess) {
    // The runtime keeps the error until it is read: cleared here, since it is thrown from here,
    // or the next unrelated check would report it again.
    static_cast<void>(cudaGetLastError());
    launch_error(name, grid, block, cudaGetErrorString(status));
  }
}
#endif

}  // namespace detail

int device_sm_count() {
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

void zero_async(void* data, std::size_t bytes, cudaStream_t stream) {
  const cudaError_t status = cudaMemsetAsync(data, 0, bytes, stream);
  if (status != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw std::runtime_error(std::string("cannot zero device memory: ") +
                             cudaGetErrorString(status));
  }
}

}  // namespace regkern
