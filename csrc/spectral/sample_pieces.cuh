#pragma once

#include "core/square_sum.cuh"
#include "spectral/sample_pieces.h"

// A warp has a piece: kStripes stripes of 32 threads with kNeighbours neighbours each.

namespace regkern::spectral {

constexpr int kWarp = 32;
constexpr int kPieceThreads = 256;
constexpr int kPieceWarps = kPieceThreads / kWarp;
constexpr int kNeighbours = 4;
constexpr int kStripes = kPiece / (kWarp * kNeighbours);

// The first element of a stripe that is this thread's.
__device__ __forceinline__ int stripe_start(int stripe) {
  return (stripe * kWarp + static_cast<int>(threadIdx.x) % kWarp) * kNeighbours;
}

template <typename T>
bool has_vectors(const void* data, int64_t size) {
  return reinterpret_cast<std::uintptr_t>(data) % (sizeof(T) * kNeighbours) == 0 &&
         size % kNeighbours == 0;
}

// The thread's elements of a stripe of a piece of n, zeros beyond.
template <typename T>
__device__ __forceinline__ void load_stripe(const T* piece, int stripe, int n, bool wide,
                                            compute_t<T> (&out)[kNeighbours]) {
  const int e = stripe_start(stripe);
  if (wide && e + kNeighbours <= n) {
    const Vector<T, kNeighbours> x = load_vector<T, kNeighbours>(piece + e);
#pragma unroll
    for (int v = 0; v < kNeighbours; ++v) out[v] = widen(x.v[v]);
  } else {
#pragma unroll
    for (int v = 0; v < kNeighbours; ++v)
      out[v] = e + v < n ? widen(piece[e + v]) : compute_t<T>(0);
  }
}

template <typename T>
__device__ __forceinline__ void store_stripe(const compute_t<T> (&in)[kNeighbours], int stripe,
                                             int n, bool wide, T* piece) {
  const int e = stripe_start(stripe);
  if (wide && e + kNeighbours <= n) {
    Vector<T, kNeighbours> y;
#pragma unroll
    for (int v = 0; v < kNeighbours; ++v) narrow(in[v], y.v + v);
    store_vector<T, kNeighbours>(y, piece + e);
  } else {
#pragma unroll
    for (int v = 0; v < kNeighbours; ++v)
      if (e + v < n) narrow(in[v], piece + e + v);
  }
}

template <typename T>
__device__ __forceinline__ void load_piece(const T* piece, int n, bool wide,
                                           compute_t<T> (&out)[kStripes][kNeighbours]) {
#pragma unroll
  for (int k = 0; k < kStripes; ++k) load_stripe(piece, k, n, wide, out[k]);
}

// The sum of term(stripe, neighbour) over the warp, in every thread.
template <typename Term>
__device__ __forceinline__ double fold_piece(int n, const Term& term) {
  // What is beyond n adds zeros.
  if (n <= kWarp * kNeighbours)
    return fold_team<double, 1, kNeighbours>(kWarp, [&](int, int v) { return term(0, v); });
  return fold_team<double, kStripes, kNeighbours>(kWarp, term);
}

}  // namespace regkern::spectral
