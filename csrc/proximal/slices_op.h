#pragma once

// What the torch-facing files of the projections share.

#include "core/op.h"
#include "proximal/slices.h"

namespace regkern::proximal {

inline Slices parse_slices(const Checks& check, const std::vector<int64_t>& s, int64_t numel,
                           size_t at = 0) {
  check.that(s.size() >= at + 4, "`slices` of 4 numbers (batch, outer, count, inner)",
             std::to_string(s.size()));
  const Slices parsed{s[at], s[at + 1], s[at + 2], s[at + 3]};
  check.that(parsed.batch >= 0 && parsed.outer >= 0 && parsed.count >= 0 && parsed.inner >= 0 &&
                 element_count(parsed) == numel,
             "`slices` of " + std::to_string(numel) + " elements, batch * outer * count * inner",
             std::to_string(s[at]) + " * " + std::to_string(s[at + 1]) + " * " +
                 std::to_string(s[at + 2]) + " * " + std::to_string(s[at + 3]));
  // Slices that follow one another are rows.
  if (parsed.count == 1) return {1, 1, parsed.batch, slice_size(parsed)};
  return parsed;
}

// A number per slice, or one for all: float64 on the device of `like`.
inline int64_t check_per_slice(const Checks& check, const Tensor& t, const char* name,
                               const Slices& slices, const Tensor& like) {
  check.same_device(t, name, like);
  check.dtype(t, name, ScalarType::Double, "float64");
  check.that(t.is_contiguous(), std::string("contiguous `") + name + "`", "a strided one");
  check.that(
      t.numel() == 1 || t.numel() == slice_count(slices),
      std::string("`") + name + "` of 1 or " + std::to_string(slice_count(slices)) + " elements",
      std::to_string(t.numel()));
  return t.numel() == 1 ? 0 : 1;
}

inline void check_same(const Checks& check, const Tensor& t, const char* name, const Tensor& like) {
  check.same_device(t, name, like);
  check.that(t.scalar_type() == like.scalar_type() && t.numel() == like.numel(),
             std::string("`") + name + "` like `x`, " + sizes_name(like), sizes_name(t));
}

}  // namespace regkern::proximal
