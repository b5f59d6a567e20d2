#pragma once

#include <cstdint>

// A thread that works on one problem by itself, in the order of a block of kLanes threads
// (block_team.cuh).

namespace regkern::transport {
namespace {

template <int kLanes>
struct SoloTeam {
  template <typename F>
  void each(int64_t n, F&& f) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) f(i);
  }
  template <typename F>
  double sum(int64_t n, F&& f) {
    double lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) lanes[l] += f(i + l);
    }
    for (int l = 0; i + l < n; ++l) lanes[l] += f(i + l);
    for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma omp simd
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    return lanes[0];
  }
  template <typename F>
  double most(int64_t n, F&& f) {
    double most = -__builtin_inf();
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n; ++i) {
      const double x = f(i);
      most = x > most ? x : most;
    }
    return most;
  }
  template <typename F>
  void one(F&& f) {
    f();
  }
  template <typename F>
  void own(int64_t, F&& f) {
    f();
  }
  void wait() {}
  template <typename State>
  State load(const State* from) {
    return *from;
  }
  template <typename State>
  void store(State* to, const State& s) {
    *to = s;
  }
};

}  // namespace
}  // namespace regkern::transport
