#pragma once

#include "core/vec.h"
#include "spectral/sample_pieces.h"

// Pieces of samples for CPU kernels.

namespace regkern::spectral {
namespace {

// The elements of a piece in the compute type: where they are, or widened.
template <typename T>
class PieceBuffer {
 public:
  using C = compute_t<T>;

  const C* read(const T* data, int n) {
    if constexpr (sizeof(T) == sizeof(C)) {
      return data;
    } else {
      load_elements(data, n, values_);
      return values_;
    }
  }

 private:
  alignas(64) C values_[sizeof(T) == sizeof(C) ? 1 : kPiece];
};

template <typename C>
inline double product(C a, C b) {
  return static_cast<double>(a) * static_cast<double>(b);
}

template <typename Term>
inline double piece_sum(int n, Term term) {
  return n > 0 ? segment_sum<double>(n, term) : 0.0;
}

}  // namespace
}  // namespace regkern::spectral
