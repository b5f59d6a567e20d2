#pragma once

#include "core/registers.h"

// Vectors as wide as the registers that a file is compiled for, of elements that need not be
// aligned. For CPU kernels where a plain loop does not keep its sums in registers.

namespace regkern {
namespace {

template <typename C>
struct RegisterOf {
  typedef C type __attribute__((vector_size(kRegisterBytes)));
  typedef C Unaligned __attribute__((vector_size(kRegisterBytes), aligned(alignof(C)), may_alias));
};
template <typename C>
using Register = typename RegisterOf<C>::type;
template <typename C>
constexpr int kRegisterLanes = kRegisterBytes / static_cast<int>(sizeof(C));

template <typename C>
inline Register<C> load_register(const C* from) {
  return *reinterpret_cast<const typename RegisterOf<C>::Unaligned*>(from);
}
template <typename C>
inline void store_register(C* to, const Register<C>& x) {
  *reinterpret_cast<typename RegisterOf<C>::Unaligned*>(to) = x;
}

}  // namespace
}  // namespace regkern
