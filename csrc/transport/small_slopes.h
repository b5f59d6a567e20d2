#pragma once

#include "core/dtype.h"
#include "core/isa.h"
#include "transport/dense.h"
#include "transport/normalize.h"

// Plans of many small dense costs, times a number of each problem, with their sums: what the value
// of a problem is differentiated by, in one pass.
//
//     slope    s_p P_ij,   P_ij = a_i b_j e^((f_i + g_j − C_ij)/ε)
//     sums     Σ_j P_ij,   Σ_i P_ij,   Σ_ij P_ij (f_i + g_j − C_ij)
//
// Sums are of doubles, by index, and the last one over the rows' sums.

namespace regkern::transport {

struct SmallSlopesArgs {
  Dtype dtype;
  int64_t batch;
  int32_t n, m;                        // up to kNormalizeSide
  const void* cost;                    // (B, n, m)
  const double *a, *b;                 // (B, n), (B, m), or null: 1 / n, 1 / m
  const double *f, *g;                 // (B, n), (B, m)
  const double* eps;                   // (B)
  const double* scale;                 // (B), or null: 1
  void* slope;                         // (B, n, m)
  double *rows, *columns, *exponents;  // (B, n), (B, m), (B), or null
};

// P (f + g − C), 0 where P is: forbidden pairs are infinite.
template <typename C>
REGKERN_HD double plan_exponent(C mass, C row, C cost, C column) {
  const C apart = (row - cost) + column;
  return static_cast<double>(choose(mass == C(0), C(0), mass * apart));
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(transport_small_slopes, transport::SmallSlopesArgs)
}  // namespace regkern
