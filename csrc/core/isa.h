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

// Declares the kernel `name(const Args&, Context)` of every backend, and its CPU dispatch. A
// family's ops.cpp calls `backend::name`, whichever backend it is compiled for.
#if defined(__x86_64__)
#define REGKERN_DECLARE_KERNEL(name, Args)                                        \
  namespace isa_baseline {                                                        \
  void name(const Args&, Context);                                                \
  }                                                                               \
  namespace isa_avx2 {                                                            \
  void name(const Args&, Context);                                                \
  }                                                                               \
  namespace isa_avx512 {                                                          \
  void name(const Args&, Context);                                                \
  }                                                                               \
  namespace cuda {                                                                \
  void name(const Args&, Context);                                                \
  }                                                                               \
  namespace cpu {                                                                 \
  inline void name(const Args& args, Context context) {                           \
    switch (capability()) {                                                       \
      case Isa::avx512:                                                           \
        return isa_avx512::name(args, context);                                   \
      case Isa::avx2:                                                             \
        return isa_avx2::name(args, context);                                     \
      case Isa::baseline:                                                         \
        return isa_baseline::name(args, context);                                 \
    }                                                                             \
  }                                                                               \
  }
#else
#define REGKERN_DECLARE_KERNEL(name, Args)                                        \
  namespace isa_baseline {                                                        \
  void name(const Args&, Context);                                                \
  }                                                                               \
  namespace cuda {                                                                \
  void name(const Args&, Context);                                                \
  }                                                                               \
  namespace cpu {                                                                 \
  inline void name(const Args& args, Context context) { isa_baseline::name(args, context); } \
  }
#endif
