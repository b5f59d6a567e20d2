#include "native/probes.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "core/math.h"

namespace regkern::native {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Free {
  void operator()(char* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<char, Free>;

Buffer page_buffer(int64_t bytes) {
  constexpr int64_t kPage = 4096;
  const auto rounded = static_cast<size_t>((bytes + kPage - 1) / kPage * kPage);
  Buffer buffer(static_cast<char*>(std::aligned_alloc(kPage, rounded)));
  if (!buffer) throw std::bad_alloc();
  std::memset(buffer.get(), 1, rounded);
  return buffer;
}

// Keeps the compiler from dropping a result.
template <typename T>
void keep(const T& value) {
  asm volatile("" : : "g"(&value) : "memory");
}

// Independent chains, enough of them to cover the latency of the units in any vector width.
#if defined(__x86_64__)
__attribute__((target_clones("default", "arch=haswell", "arch=x86-64-v4")))
#endif
void fma_chains(float* x, int64_t rounds) {
  constexpr int kChains = 256;
  for (int64_t r = 0; r < rounds; ++r)
#pragma omp simd
    for (int i = 0; i < kChains; ++i) x[i] = x[i] * 0.999f + 0.001f;
}

#if defined(__x86_64__)
__attribute__((target_clones("default", "arch=haswell", "arch=x86-64-v4")))
#endif
void exponentials(const double* x, double* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = regkern::exp(x[i]);
}

template <typename F>
double best_of(int repeats, F&& f) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = Clock::now();
    f();
    const double t = seconds_since(start);
    best = t < best ? t : best;
  }
  return best;
}

}  // namespace

double copy_bandwidth(int64_t bytes, int threads, int repeats) {
  const Buffer from = page_buffer(bytes), to = page_buffer(bytes);
  const double best = best_of(repeats, [&] {
    std::vector<std::thread> pool;
    const int64_t piece = (bytes + threads - 1) / threads;
    for (int t = 0; t < threads; ++t) {
      const int64_t begin = t * piece, end = begin + piece < bytes ? begin + piece : bytes;
      if (begin >= end) break;
      auto copy = [&, begin, end] {
        std::memcpy(to.get() + begin, from.get() + begin, static_cast<size_t>(end - begin));
      };
      if (threads == 1)
        copy();
      else
        pool.emplace_back(copy);
    }
    for (std::thread& thread : pool) thread.join();
  });
  keep(*to);
  return 2.0 * static_cast<double>(bytes) / best;
}

double fma_rate() {
  constexpr int64_t kRounds = 1 << 16;
  alignas(64) float x[256] = {};
  const double best = best_of(5, [&] { fma_chains(x, kRounds); });
  keep(x);
  return 2.0 * 256.0 * static_cast<double>(kRounds) / best;
}

double exp_rate() {
  constexpr int64_t n = 4096;
  std::vector<double> x(n), y(n);
  for (int64_t i = 0; i < n; ++i) x[static_cast<size_t>(i)] = -static_cast<double>(i) / 500.0;
  const double best = best_of(20, [&] {
    for (int r = 0; r < 16; ++r) exponentials(x.data(), y.data(), n);
  });
  keep(y[0]);
  return 16.0 * static_cast<double>(n) / best;
}

}  // namespace regkern::native
