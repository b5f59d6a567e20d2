#pragma once

// CPU kernels are plain C++ compiled once per instruction set into the namespace named by
// REGKERN_ISA; the set is chosen once, when the library is loaded.

namespace regkern {

// The order matters: a machine that runs one runs all before it.
enum class Isa { baseline, avx2, avx512 };

// The best instruction set of this machine, or what REGKERN_CPU_CAPABILITY asks for. An unknown
// name, or one this machine cannot run, throws.
Isa capability();
const char* isa_name(Isa isa);

// Where an op runs and in which order: the CUDA stream, unused on the CPU.
struct Context {
  void* stream = nullptr;
};

namespace cpu {}
namespace cuda {}

}  // namespace regkern

#define REGKERN_DECLARE_IN(space, name, Args) \
  namespace space {                           \
  void name(const Args&, Context);            \
  }

#if defined(__x86_64__)
#define REGKERN_DECLARE_VECTORISED(name, Args) \
  REGKERN_DECLARE_IN(isa_avx2, name, Args)     \
  REGKERN_DECLARE_IN(isa_avx512, name, Args)
#define REGKERN_CHOOSE(name)                      \
  (capability() == Isa::avx512 ? isa_avx512::name \
   : capability() == Isa::avx2 ? isa_avx2::name   \
                               : isa_baseline::name)
#else
#define REGKERN_DECLARE_VECTORISED(name, Args)
#define REGKERN_CHOOSE(name) (isa_baseline::name)
#endif

// Declares the kernel `name(const Args&, Context)` of every backend, and its CPU dispatch. A
// family's ops.cpp calls `backend::name`, whichever backend it is compiled for.
#define REGKERN_DECLARE_KERNEL(name, Args)                                                     \
  REGKERN_DECLARE_IN(isa_baseline, name, Args)                                                 \
  REGKERN_DECLARE_VECTORISED(name, Args)                                                       \
  REGKERN_DECLARE_IN(cuda, name, Args)                                                         \
  namespace cpu {                                                                              \
  inline void name(const Args& args, Context context) { REGKERN_CHOOSE(name)(args, context); } \
  }
