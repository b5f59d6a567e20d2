#pragma once

// What the torch-facing files of the family share.

#include <string>

#include "core/op.h"
#include "proximal/laws.h"

namespace regkern::proximal {

// A law by its name; the last of them, a power, is a penalty without a proximal operator.
inline Law law_of(const Checks& check, const std::string& name, bool proximal = true) {
  const int count = proximal ? kLaws - 1 : kLaws;
  std::string all;
  for (int i = 0; i < count; ++i) {
    if (name == kLawNames[i]) return static_cast<Law>(i);
    all += (i > 0 ? ", " : "") + std::string(kLawNames[i]);
  }
  check.that(false, "`law` to be one of " + all, name);
  return Law::soft;
}

// One number in the type that tensors of the dtype are computed in.
inline const void* check_number(const Checks& check, const Tensor& t, const char* name,
                                const Tensor& like, Dtype dtype) {
  check.same_device(t, name, like);
  check.dtype(t, name, compute_type(dtype), dtype == Dtype::float64 ? "float64" : "float32");
  check.that(t.numel() == 1, std::string("`") + name + "` of one element", sizes_name(t));
  return t.const_data_ptr();
}
inline const void* check_number(const Checks& check, const MaybeTensor& t, const char* name,
                                const Tensor& like, Dtype dtype) {
  return t.has_value() ? check_number(check, *t, name, like, dtype) : nullptr;
}

}  // namespace regkern::proximal
