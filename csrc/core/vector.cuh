#pragma once

#include <cstdint>

#include "core/launch.cuh"
#include "core/math.h"

namespace regkern {

constexpr int kVectorBytes = 16;  // the widest access of a thread

// V neighbours that travel in one access.
template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
  T v[V];
};
template <typename T>
constexpr int kLanesOf = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T, int V>
__device__ __forceinline__ Vector<T, V> load_vector(const T* data) {
  return *reinterpret_cast<const Vector<T, V>*>(data);
}
template <typename T, int V>
__device__ __forceinline__ void store_vector(const Vector<T, V>& value, T* data) {
#if defined(__CUDA_ARCH__)
  // By name: nvcc takes the store of a struct apart, and does not always put it together again.
  if constexpr (sizeof(T) * V == kVectorBytes) {
    __stwb(reinterpret_cast<uint4*>(data), bit_cast<uint4>(value));
    return;
  }
#endif
  *reinterpret_cast<Vector<T, V>*>(data) = value;
}

inline bool is_aligned(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % kVectorBytes == 0;
}

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// The sum over the warp, in every lane. For integers: their order does not matter.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}

}  // namespace regkern
