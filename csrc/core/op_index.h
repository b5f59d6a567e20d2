#pragma once

#include <limits>
#include <string>
#include <type_traits>

#include "core/op.h"

// What a list of places must be before a kernel follows it. Looked at where that does not wait.

namespace regkern {

inline bool do_not_fall(const int64_t* at, int64_t count) {
  bool ok = true;
  for (int64_t i = 0; i + 1 < count; ++i) ok = ok & (at[i] <= at[i + 1]);
  return ok;
}

// Whether indices are in [0, end).
template <typename I>
bool all_below(const I* at, int64_t count, int64_t end) {
  // The sign of `wrong` is set by an index below 0 or behind the last. Bits alone: this loop is to
  // be as fast as reading.
  using U = std::make_unsigned_t<I>;
  constexpr int64_t kMost = std::numeric_limits<I>::max();
  const U last = static_cast<U>(end - 1 < kMost ? end - 1 : kMost);
  U wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    const U own = static_cast<U>(at[i]);
    wrong |= own | (last - own);
  }
  return static_cast<I>(wrong) >= 0;
}

// Offsets that do not fall, from 0 to `end`.
inline void check_offsets(const Checks& check, const Tensor& offsets, const char* name,
                          int64_t end) {
  if constexpr (!kValuesReadable) return;
  const auto* at = const_data<int64_t>(offsets);
  const int64_t count = offsets.numel();
  check.that(at[0] == 0 && at[count - 1] == end && do_not_fall(at, count),
             std::string("`") + name + "` that do not fall, from 0 to " + std::to_string(end),
             "others");
}

// Indices in [0, end).
template <typename I>
void check_indices(const Checks& check, const Tensor& indices, const char* name, int64_t end) {
  if constexpr (!kValuesReadable) return;
  const auto* at = const_data<I>(indices);
  if (all_below(at, indices.numel(), end)) return;
  int64_t i = 0;
  while (at[i] >= 0 && at[i] < end) ++i;
  check.that(false, std::string("`") + name + "` in [0, " + std::to_string(end) + ")",
             std::to_string(at[i]));
}

}  // namespace regkern
