#pragma once

#include <cstdint>

// Memory that will be read next, asked for while what is in the cache is worked on: else it would
// rest meanwhile. For CPU kernels.

namespace regkern {
namespace {

constexpr int64_t kLine = 64;  // bytes

// Asks for the memory of n elements, of which `left` are there, to write to them or to read.
template <bool kWrite = true, typename T>
inline void fetch(const T* data, int64_t n, int64_t left) {
  n = (n < left ? n : left) * static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < n; i += kLine)
    __builtin_prefetch(reinterpret_cast<const char*>(data) + i, kWrite ? 1 : 0, 3);
}

}  // namespace
}  // namespace regkern
