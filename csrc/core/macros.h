#pragma once

// The maths of the library is written once and compiled for the host (per instruction set), for
// CUDA devices and for the emulator.
#if defined(__CUDACC__)
#define REGKERN_HD __host__ __device__ __forceinline__
// Above a function template that calls what it is given: a kernel gives it a __device__ function,
// and nvcc would warn of the host instance that nobody calls.
#define REGKERN_CALLS_ARGUMENT _Pragma("nv_exec_check_disable")
#else
#define REGKERN_CALLS_ARGUMENT
#define REGKERN_HD inline __attribute__((always_inline))
#endif
