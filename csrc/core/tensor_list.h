#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/parallel.h"

// Lists of tensors: the parameters of a network in one call. A row stands for one tensor; whatever
// pointers it has, it has
//
//     int64_t numel;   its elements, in row-major order
//     int64_t first;   the number of its first element in the list
//
// Numbers run on from tensor to tensor, each tensor beginning at a multiple of kListAlign: random
// numbers belong to an element of the list, and no two tensors share any.

namespace regkern {

constexpr int64_t kListAlign = 128;

REGKERN_HD int64_t list_span(int64_t numel) {
  return (numel + kListAlign - 1) / kListAlign * kListAlign;
}

namespace {

// f(row, begin, end) for the elements [begin, end) of a row, in as many pieces as there are threads
// for, wherever tensors end; begin is a multiple of kListAlign.
template <typename Row, typename F>
void parallel_for_list(const Row* rows, int64_t count, int64_t grain, F&& f) {
  if (count == 0) return;
  const int64_t origin = rows[0].first;
  const int64_t all = rows[count - 1].first + list_span(rows[count - 1].numel) - origin;
  parallel_for(all / kListAlign, grain / kListAlign, [&](int64_t begin, int64_t end) {
    begin = origin + begin * kListAlign;
    end = origin + end * kListAlign;
    // The last row that begins no later.
    int64_t row = 0;
    for (int64_t above = count; above - row > 1;) {
      const int64_t middle = row + (above - row) / 2;
      (rows[middle].first <= begin ? row : above) = middle;
    }
    for (; row < count && rows[row].first < end; ++row) {
      const Row& r = rows[row];
      const int64_t from = begin > r.first ? begin - r.first : 0;
      const int64_t to = end - r.first < r.numel ? end - r.first : r.numel;
      if (from < to) f(r, from, to);
    }
  });
}

}  // namespace
}  // namespace regkern
