#pragma once

#include "core/dtype.h"
#include "core/random_lanes.cuh"
#include "core/tensor_list.cuh"
#include "quantize/blocks.h"
#include "quantize/rounding.h"

// Eight neighbours a thread: loads and stores by dtype, thresholds, blocks.

namespace regkern::quantize {

template <typename C>
__device__ __forceinline__ void load_as(Dtype dtype, const void* x, int64_t e, int64_t left,
                                        bool aligned, C out[kListLanes]) {
  const auto load = [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(compute_t<T>) == sizeof(C)) {
      T in[kListLanes];
      load_lanes(static_cast<const T*>(x) + e, left, aligned, in);
#pragma unroll
      for (int i = 0; i < kListLanes; ++i) out[i] = widen(in[i]);
    }
  };
  if constexpr (sizeof(C) == 8) {
    load(double{});
  } else {
    if (dtype == Dtype::float32)
      load(float{});
    else if (dtype == Dtype::bfloat16)
      load(bfloat16{});
    else
      load(float16{});
  }
}

template <typename T, typename C>
__device__ __forceinline__ void store_as(const C in[kListLanes], int64_t e, int64_t left,
                                         bool aligned, void* y) {
  T out[kListLanes];
#pragma unroll
  for (int i = 0; i < kListLanes; ++i) out[i] = narrowed<T>(in[i]);
  store_lanes(out, left, aligned, static_cast<T*>(y) + e);
}

// Thresholds of the thread's elements; with a cut grid the raw bits. All of the warp calls it.
__device__ __forceinline__ void draw_lanes(Seed seed, int random_bits, int64_t e, DrawnWords* words,
                                           uint32_t out[kListLanes]) {
  if (random_bits == 16)
    return random_lanes(seed, Stream::rounding, static_cast<uint64_t>(e), words, out);
  // A counter per element: other widths are for experiments.
#pragma unroll 1
  for (int i = 0; i < kListLanes; ++i) {
    const auto at = static_cast<uint64_t>(e + i);
    const uint32_t bits = random_bits == 8 ? regkern::random_bits<8>(seed, Stream::rounding, at)
                                           : regkern::random_bits<32>(seed, Stream::rounding, at);
#pragma unroll
    for (int j = 0; j < kListLanes; ++j) out[j] = j == i ? bits : out[j];
  }
}

// The blocks of consecutive elements.
class BlockCursor {
 public:
  __device__ BlockCursor(const Blocks& b, int64_t e) : b_(b) { seek(e); }

  __device__ int64_t block() const { return block_; }
  __device__ void next() {
    ++c_;
    if (--left_ > 0) return;
    if (c_ >= b_.cols) {
      seek((o_ * b_.rows + r_ + 1) * b_.cols);
    } else {
      ++block_;
      left_ = b_.cols - c_ < b_.block_cols ? b_.cols - c_ : b_.block_cols;
    }
  }

 private:
  __device__ void seek(int64_t e) {
    if (e < (int64_t{1} << 31) && b_.cols < (int64_t{1} << 31) && b_.rows < (int64_t{1} << 31)) {
      const auto small = static_cast<uint32_t>(e), cols = static_cast<uint32_t>(b_.cols);
      const uint32_t row = small / cols;
      c_ = small - row * cols;
      o_ = row / static_cast<uint32_t>(b_.rows);
      r_ = row - static_cast<uint32_t>(o_) * static_cast<uint32_t>(b_.rows);
    } else {
      const int64_t row = e / b_.cols;
      c_ = e - row * b_.cols;
      o_ = row / b_.rows;
      r_ = row - o_ * b_.rows;
    }
    block_ = block_of(b_, o_, r_, c_);
    const int64_t inside = c_ % b_.block_cols;
    left_ = b_.block_cols - inside;
    left_ = b_.cols - c_ < left_ ? b_.cols - c_ : left_;
  }

  const Blocks& b_;
  int64_t o_, r_, c_, block_, left_;
};

}  // namespace regkern::quantize
