#pragma once

#include <cstdint>

namespace regkern::native {

// Bytes read plus written per second by a copy of `bytes` bytes, best of `repeats`, with `threads`
// threads; the buffers are warm.
double copy_bandwidth(int64_t bytes, int threads, int repeats);

// Multiply-adds in flight: floating-point operations per second of one thread.
double fma_rate();

// Exponentials per second of one thread, by the branch-free polynomial of core/math.h in float64.
double exp_rate();

}  // namespace regkern::native
