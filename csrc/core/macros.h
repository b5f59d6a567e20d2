#pragma once

// The maths of the library is written once and compiled for the host (per instruction set), for
// CUDA devices and for the emulator.
#if defined(__CUDACC__)
#define REGKERN_HD __host__ __device__ __forceinline__
#else
#define REGKERN_HD inline __attribute__((always_inline))
#endif
