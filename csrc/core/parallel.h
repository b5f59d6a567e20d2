#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace regkern {

// Runs body(context, begin, end) over pieces of [0, n), in torch's thread pool when n > grain.
void run_parallel(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);

// f(begin, end) must not depend on where the pieces are cut: results are the same for any number
// of threads. Static, so that every instruction set has its own copy.
template <typename F>
static inline void parallel_for(int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  if (n <= grain) return f(int64_t{0}, n);
  run_parallel(
      n, grain, [](void* g, int64_t begin, int64_t end) { (*static_cast<F*>(g))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

namespace {

// Uninitialised scratch of a thread. Not std::vector: its weak symbols, compiled for AVX-512, could
// be the ones that the linker keeps for everybody.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t n)
      : data_(static_cast<T*>(std::malloc(static_cast<size_t>(n > 0 ? n : 1) * sizeof(T)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

}  // namespace

}  // namespace regkern
