#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/tensor_list.h"

// The k-th smallest magnitude of a list of tensors, or of each of its tensors, by counting the bits
// of |x| from the top: a pass over the data for every kDigit bits, no sort. Then something is done
// to the k smallest, exactly k: of equal magnitudes those of the lowest index count as larger. NaN
// counts as the largest.

namespace regkern::proximal {

// Magnitudes as integers of the same order. All NaN are one number, that after infinity.
REGKERN_HD uint32_t magnitude_key(float x) {
  const uint32_t key = bit_cast<uint32_t>(x) & 0x7FFFFFFFu;
  return key < 0x7F800001u ? key : 0x7F800001u;
}
REGKERN_HD uint32_t magnitude_key(bfloat16 x) {
  const uint32_t key = x.bits & 0x7FFFu;
  return key < 0x7F81u ? key : 0x7F81u;
}
REGKERN_HD uint32_t magnitude_key(float16 x) {
  const uint32_t key = x.bits & 0x7FFFu;
  return key < 0x7C01u ? key : 0x7C01u;
}
REGKERN_HD uint64_t magnitude_key(double x) {
  const uint64_t key = bit_cast<uint64_t>(x) & 0x7FFFFFFFFFFFFFFFull;
  return key < 0x7FF0000000000001ull ? key : 0x7FF0000000000001ull;
}

// The magnitude that a key stands for.
template <typename T>
REGKERN_HD compute_t<T> magnitude_of(uint64_t key) {
  if constexpr (sizeof(T) == 8) return bit_cast<double>(key);
  if constexpr (sizeof(T) == 4) return bit_cast<float>(static_cast<uint32_t>(key));
  if constexpr (sizeof(T) == 2) {
    T x;
    x.bits = static_cast<uint16_t>(key);
    return widen(x);
  }
}

template <typename T>
using key_t = decltype(magnitude_key(T{}));

// Keys are cut into digits from the top, of at most kDigit bits.
constexpr int kDigit = 11;
constexpr int kBins = 1 << kDigit;

struct Digit {
  int shift, width;
};

template <typename T>
REGKERN_HD constexpr int digit_count() {
  return sizeof(T) == 8 ? 6 : sizeof(T) == 4 ? 3 : 2;
}
template <typename T>
REGKERN_HD constexpr Digit digit_of(int pass) {
  if (sizeof(T) == 8) {  // 63 bits
    return pass < 3 ? Digit{52 - 11 * pass, 11} : Digit{20 - 10 * (pass - 3), 10};
  }
  if (sizeof(T) == 4) {  // 31 bits
    return pass == 0 ? Digit{20, 11} : pass == 1 ? Digit{10, 10} : Digit{0, 10};
  }
  return pass == 0 ? Digit{7, 8} : Digit{0, 7};  // 15 bits
}

// The slot of a key in a pass: its digit where the digits above are those found, else one that
// nobody reads.
template <typename U>
REGKERN_HD uint32_t slot_of(U key, U prefix, Digit digit) {
  const uint32_t low = static_cast<uint32_t>(key >> digit.shift) & ((1u << digit.width) - 1u);
  return (key >> digit.shift >> digit.width) == prefix ? low : static_cast<uint32_t>(kBins);
}

// One search: over all tensors, or over one.
struct Search {
  uint64_t prefix;  // the digits found; in the end the key of the k-th magnitude
  int64_t rank;     // of the one looked for among those with this prefix, from 1 on; 0 for none
  int64_t k;
  int64_t below, equal;  // how many are smaller, and how many have the key
  // Of the equal ones, those in tiles before `cut` are larger, and `kept` in it.
  int64_t cut, kept;
  int64_t tiles_begin, tiles_end;
};

REGKERN_HD int64_t dropped_equals(const Search& s) { return s.k - s.below; }
REGKERN_HD bool cuts_ties(const Search& s) {
  return dropped_equals(s) > 0 && dropped_equals(s) < s.equal;
}

struct MagnitudeRow {
  const void* x;
  const void* minus;  // magnitudes of x − minus, in the compute type, where there is one
  void* out;          // what is written: x itself, or a mask
  int64_t numel, first;
  int64_t tile;    // the number of its first tile in the list
  int64_t k;       // of its search
  int64_t search;  // negative where it is not the first tensor of its search: ~number
};

REGKERN_HD int64_t search_of(const MagnitudeRow& row) {
  return row.search < 0 ? ~row.search : row.search;
}

constexpr int64_t kMagnitudeTile = 2048;
REGKERN_HD int64_t tile_count(int64_t numel) {
  return (numel + kMagnitudeTile - 1) / kMagnitudeTile;
}

enum class Selected : int32_t {
  nothing,  // find the magnitudes alone
  scaled,   // the k smallest times a factor; 0 makes them 0
  mask,     // bytes: 1 for what is not among the k smallest
  bits,     // the same, packed
};

struct MagnitudeSelectArgs {
  Dtype dtype;
  Selected selected;
  bool difference;
  double factor;
  const MagnitudeRow* rows;
  int64_t count, searches, tiles;
  // Scratch.
  Search* search;   // (searches)
  int64_t* counts;  // (searches, kBins)
  int32_t* ties;    // (tiles)
  // Results of every search.
  void* magnitude;  // (searches) of the compute type
  int64_t* ranks;   // (searches, 2): how many are smaller, and how many are equal
};

// What becomes of an element.
template <typename T>
REGKERN_HD T scaled_element(T x, bool dropped, double factor) {
  if (!dropped) return x;
  using C = compute_t<T>;
  return narrowed<T>(factor == 0.0 ? C(0) : widen(x) * static_cast<C>(factor));
}

}  // namespace regkern::proximal

namespace regkern {
REGKERN_DECLARE_KERNEL(magnitude_select, proximal::MagnitudeSelectArgs)
}
