#include "core/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace regkern {
namespace {

Isa best() {
#if defined(__x86_64__)
  // The AVX-512 build uses what x86-64-v4 names: F, BW, CD, DQ and VL.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa choose() {
  const Isa available = best();
  const char* wanted = std::getenv("REGKERN_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return available;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (std::string(wanted) != isa_name(isa)) continue;
    if (isa > available)
      throw std::runtime_error("regkern: REGKERN_CPU_CAPABILITY=" + std::string(wanted) +
                               " asks for more than this machine has (" + isa_name(available) +
                               ")");
    return isa;
  }
  throw std::runtime_error(
      "regkern: expected REGKERN_CPU_CAPABILITY to be baseline, avx2 or avx512, got " +
      std::string(wanted));
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      break;
  }
  return "baseline";
}

Isa capability() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace regkern
