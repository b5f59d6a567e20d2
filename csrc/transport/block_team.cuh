#pragma once

#include "core/vector.cuh"

// A block of a power of two threads that works on one problem: thread t has the elements t, t +
// threads and so on, and whatever all of them know has the same bits in each.

namespace regkern::transport {

template <int kThreads>
struct BlockTeam {
  double* space;  // kThreads, shared

  template <typename F>
  __device__ __forceinline__ void each(int64_t n, F&& f) {
    for (int64_t i = threadIdx.x; i < n; i += kThreads) f(i);
  }
  // Lanes are folded by halves.
  template <typename Join>
  __device__ __forceinline__ double fold(double mine, Join&& join) {
    const int me = static_cast<int>(threadIdx.x);
    space[me] = mine;
    __syncthreads();
    for (int half = kThreads / 2; half >= 32; half /= 2) {
      if (me < half) space[me] = mine = join(mine, space[me + half]);
      __syncthreads();
    }
    if (me < 32) {
      for (int half = 16; half > 0; half /= 2)
        mine = join(mine, __shfl_down_sync(kWholeWarp, mine, half));
      if (me == 0) space[0] = mine;
    }
    __syncthreads();
    const double all = space[0];
    __syncthreads();
    return all;
  }
  template <typename F>
  __device__ __forceinline__ double sum(int64_t n, F&& f) {
    double mine = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) mine += f(i);
    return fold(mine, [](double x, double y) { return x + y; });
  }
  template <typename F>
  __device__ __forceinline__ double most(int64_t n, F&& f) {
    double mine = -__builtin_inf();
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const double x = f(i);
      mine = x > mine ? x : mine;
    }
    return fold(mine, [](double x, double y) { return y > x ? y : x; });
  }
  template <typename F>
  __device__ __forceinline__ void one(F&& f) {
    if (threadIdx.x == 0) f();
  }
  // By the thread that has element i.
  template <typename F>
  __device__ __forceinline__ void own(int64_t i, F&& f) {
    if (static_cast<int>(threadIdx.x) == static_cast<int>(i % kThreads)) f();
  }
  __device__ __forceinline__ void wait() { __syncthreads(); }
  template <typename State>
  __device__ __forceinline__ State load(const State* from) {
    return *from;
  }
  // Nobody reads it any more, and nobody goes on before it is there.
  template <typename State>
  __device__ __forceinline__ void store(State* to, const State& s) {
    __syncthreads();
    if (threadIdx.x == 0) *to = s;
    __syncthreads();
  }
};

}  // namespace regkern::transport
