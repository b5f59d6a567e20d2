// What other parts of the package ask the library. Plain C, found by name.

#include "core/isa.h"

extern "C" __attribute__((visibility("default"))) const char* regkern_cpu_capability() {
  return regkern::isa_name(regkern::capability());
}

namespace {

// The choice is made when the library is loaded, so that a wrong REGKERN_CPU_CAPABILITY is told by
// the import and not by the first call.
[[maybe_unused]] const regkern::Isa chosen = regkern::capability();

}  // namespace
