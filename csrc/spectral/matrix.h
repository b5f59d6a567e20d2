#pragma once

#include <cstdint>

#include "core/dtype.h"

// Weights as matrices: one dimension makes the rows, all others together the columns, those before
// it first. Seen so, a tensor has the dimensions (n0, rows, n1), and column c is (c / n1, c % n1).

namespace regkern::spectral {

// The order of the dimensions in memory.
enum class Layout : int32_t {
  row_major,   // (n0, rows, n1): what is contiguous
  rows_first,  // (rows, n1, n0): channels last, rows of the first dimension
  rows_last,   // (n0, n1, rows): channels last, rows of the second dimension; transposed matrices
};

struct Matrix {
  const void* data;
  int32_t rows, n0, n1;
  Layout layout;
};

struct Strides {
  int64_t row, s0, s1;
};

REGKERN_HD int64_t columns_of(const Matrix& m) { return static_cast<int64_t>(m.n0) * m.n1; }

REGKERN_HD Strides strides_of(const Matrix& m) {
  const int64_t rows = m.rows, n0 = m.n0, n1 = m.n1;
  if (m.layout == Layout::row_major) return {n1, rows * n1, 1};
  if (m.layout == Layout::rows_first) return {n0 * n1, 1, n0};
  return {1, n1 * rows, rows};
}

// Rows whose elements are neighbours.
REGKERN_HD bool has_dense_rows(const Matrix& m) {
  return (m.layout == Layout::row_major && m.n0 == 1) ||
         (m.layout == Layout::rows_first && m.n0 == 1);
}

}  // namespace regkern::spectral
