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

}  // namespace regkern::proximal
