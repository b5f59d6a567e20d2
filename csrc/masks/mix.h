#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "masks/image.h"

// Mixing with a partner inside a box:
//
//     y_i = x_i                              outside box_i
//     y_i = a_i x_i + (1 − a_i) o_π(i)       inside
//
// CutMix (Yun et al., ICCV 2019) is a = 0; MixUp (Zhang et al., ICLR 2018) is the whole image.
// Where a_i is exactly 0 or 1 the other image is not touched, so its NaN does not spread.

namespace regkern::masks {

struct Weights {
  const void* data;  // null: all zero
  bool is_double;
};

REGKERN_HD double weight_at(const Weights& w, int64_t i) {
  if (w.data == nullptr) return 0.0;
  return w.is_double ? static_cast<const double*>(w.data)[i]
                     : static_cast<double>(static_cast<const float*>(w.data)[i]);
}

REGKERN_HD Box box_at(const int32_t* boxes, const Images& m, int64_t i) {
  return boxes != nullptr
             ? load_box(boxes, i)
             : Box{0, static_cast<int32_t>(m.height), 0, static_cast<int32_t>(m.width)};
}

struct MixArgs {
  Dtype dtype;
  int64_t itemsize;  // a pure paste (no weights) moves bytes of any dtype
  Images images;
  const void* x;
  const void* other;  // may be x
  void* y;
  const int64_t* partner;
  int64_t others;        // size of the other batch
  const int32_t* boxes;  // null: the whole image
  Weights weight;
};

// The transpose of the mix as a linear map of x (own) and of the other batch (partner):
//
//     out_j = [own] (1 outside, a_j inside) g_j + [partner] Σ_{i: π(i) = j} (1 − a_i) 1_box_i g_i
//
// `head` and `next` list the i of each j in rising order, so the sum is deterministic.
struct MixAdjointArgs {
  Dtype dtype;
  Images images;
  int64_t others;  // size of the other batch, the output's where partner is asked for
  const void* g;
  void* out;
  const int64_t* partner;
  const int32_t* boxes;
  Weights weight;
  bool own, from_partner;
  int64_t* head;  // (others), scratch
  int64_t* next;  // (batch), scratch
};

// da_i = Σ_{inside box_i} g_i (x_i − o_π(i)), summed in the same order everywhere: kDotLanes
// interleaved sums over each segment of kDotSegment elements, halved until one is left, and the
// segments one after the other.
constexpr int kDotLanes = 256;
constexpr int64_t kDotSegment = 16384;
struct MixDotArgs {
  Dtype dtype;
  Images images;
  const void* g;
  const void* x;
  const void* other;
  const int64_t* partner;
  int64_t others;  // size of the other batch
  const int32_t* boxes;
  double* segments;  // (batch, segments of a sample), scratch
  double* out;       // (batch)
};

// Soft targets: one_hot(label, smoothing) mixed by λ. t[k] = s/K everywhere, (1 − s) λ more at
// label_i and (1 − s)(1 − λ) more at label_π(i).
struct MixLabelsArgs {
  Dtype dtype;
  int64_t batch, classes;
  const int64_t* labels;
  const int64_t* other_labels;
  const int64_t* partner;
  int64_t others;  // size of the other batch
  const float* lam;
  double smoothing;
  void* out;
};

}  // namespace regkern::masks

namespace regkern {
REGKERN_DECLARE_KERNEL(mix, masks::MixArgs)
REGKERN_DECLARE_KERNEL(mix_adjoint, masks::MixAdjointArgs)
REGKERN_DECLARE_KERNEL(mix_dot, masks::MixDotArgs)
REGKERN_DECLARE_KERNEL(mix_labels, masks::MixLabelsArgs)
}  // namespace regkern
