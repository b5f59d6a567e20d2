#pragma once

#include "core/random_bits.h"
#include "core/tensor_list.cuh"

// The 16 random bits of each of a thread's eight neighbours. A counter serves eight elements that
// stand 16 apart, so half a warp draws one counter a thread and trades the words in shared memory:
// as in the CPU's blocks, element 32 w + i of its 128 reads the lower half of word w of counter i,
// and element 32 w + 16 + i the upper.

namespace regkern {

// What a thread draws; a kernel has one for each of its threads in shared memory.
using DrawnWords = Vector<uint32_t, 4>;

// `element` is that of the thread's first neighbour, and a multiple of 8. All of the warp calls it.
__device__ __forceinline__ void random_lanes(Seed seed, Stream stream, uint64_t element,
                                             DrawnWords* words, uint32_t bits[kListLanes]) {
  const int i = static_cast<int>(threadIdx.x) % 16;
  uint32_t* shared = words[threadIdx.x - static_cast<unsigned>(i)].v;
  // Counter 16 c + i serves chunk c of 128 elements, whose 16 threads are this half of the warp.
  const Words drawn = philox(seed, stream, element / 128 * 16 + static_cast<uint64_t>(i));
  __syncwarp();  // what was drawn before has been read
#pragma unroll
  for (int w = 0; w < 4; ++w) shared[16 * w + i] = drawn.w[w];
  __syncwarp();
  // Elements 8 i … 8 i + 7 of the chunk: half i / 2 mod 2 of word i / 4, of eight counters.
  const uint32_t* from = shared + i / 4 * 16 + i % 2 * 8;
  const int shift = i / 2 % 2 * 16;
#pragma unroll
  for (int k = 0; k < kListLanes; k += 4) {
    const DrawnWords four = load_vector<uint32_t, 4>(from + k);
#pragma unroll
    for (int j = 0; j < 4; ++j) bits[k + j] = (four.v[j] >> shift) & 0xFFFFu;
  }
}

}  // namespace regkern
