// What the rest of the package asks the library about itself.

#include <torch/csrc/stable/library.h>

#include <string>

#include "core/isa.h"

namespace {

// An op, so that an unknown REGKERN_CPU_CAPABILITY reaches Python as an exception.
std::string cpu_capability() { return regkern::isa_name(regkern::capability()); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(regkern, m) { m.def("cpu_capability() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(regkern, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}
