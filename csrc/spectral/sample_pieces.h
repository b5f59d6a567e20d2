#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/square_sum.h"

// Sums over a sample, a row of (samples, size), in an order that is the same everywhere: pieces of
// kPiece elements, each folded in halves in double (core/square_sum.h), added one after the other.
//
// A sample may be shorter than its row: then only its first lengths[i] elements count.

namespace regkern::spectral {

constexpr int kPiece = 512;

struct Samples {
  int64_t count, size;
  const int64_t* lengths;  // null: all of them are full
};

REGKERN_HD int64_t piece_count(int64_t size) { return (size + kPiece - 1) / kPiece; }

REGKERN_HD int64_t sample_length(const Samples& s, int64_t sample) {
  if (s.lengths == nullptr) return s.size;
  const int64_t n = s.lengths[sample];
  return n < 0 ? 0 : n < s.size ? n : s.size;
}

// How many elements of a piece that begins at `first` count.
REGKERN_HD int piece_length(int64_t length, int64_t first) {
  const int64_t left = length - first;
  return left <= 0 ? 0 : left < kPiece ? static_cast<int>(left) : kPiece;
}

}  // namespace regkern::spectral
