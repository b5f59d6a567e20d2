#pragma once

#include "core/dtype.h"
#include "core/isa.h"
#include "core/math.h"

// Over the rows of (rows, columns), in double: kRowPiece rows are added one after the other, and
// so are the pieces.
//
//     standardize    y = x − μ, or (x − μ) / √(var + ε);  var = Σ (x − μ)² / (rows − correction)
//     products       Σ a and Σ a b
//     combine        y = p a + q b + r with three numbers for each column
//
// The gradients of all three are the other two.

namespace regkern::spectral {

constexpr int64_t kRowPiece = 64;

REGKERN_HD int64_t row_pieces(int64_t rows) { return (rows + kRowPiece - 1) / kRowPiece; }

struct StandardizeColumnsArgs {
  Dtype dtype;
  int64_t rows, columns;
  const void* x;
  bool standardize;
  int64_t correction;
  double eps;
  void* y;
  void* mean;      // (columns), of the compute type
  void* variance;  // (columns), of the compute type
  double* space;   // of a CUDA device: (row_pieces + 2, columns)
};

struct ColumnProductsArgs {
  Dtype dtype;
  int64_t rows, columns;
  const void* a;
  const void* b;
  void* sums;     // (2, columns), of the compute type
  double* space;  // of a CUDA device: (2, row_pieces, columns)
};

struct ColumnCombineArgs {
  Dtype dtype;
  int64_t rows, columns;
  const void* a;
  const void* b;
  const void* numbers;  // (3, columns), of the compute type: p, q and r
  void* y;
};

// A variance of nothing, or of fewer rows than the correction, is 0/0.
REGKERN_HD double column_variance(double squares, int64_t rows, int64_t correction) {
  return squares / static_cast<double>(rows > correction ? rows - correction : 0);
}

// 1 / √(var + ε); a column that does not vary stays zero.
REGKERN_HD double column_factor(const StandardizeColumnsArgs& args, double variance) {
  if (!args.standardize) return 1.0;
  const double root = regkern::sqrt(variance + args.eps);
  return root == 0.0 ? 0.0 : 1.0 / root;
}

template <typename C>
REGKERN_HD C standardized(C x, double mean, double factor) {
  return static_cast<C>((static_cast<double>(x) - mean) * factor);
}

}  // namespace regkern::spectral

namespace regkern {
REGKERN_DECLARE_KERNEL(standardize_columns, spectral::StandardizeColumnsArgs)
REGKERN_DECLARE_KERNEL(column_products, spectral::ColumnProductsArgs)
REGKERN_DECLARE_KERNEL(column_combine, spectral::ColumnCombineArgs)
}  // namespace regkern
