#pragma once

// What the torch-facing files of the spectral family share.

#include <string>
#include <vector>

#include "core/op_list.h"
#include "spectral/matrix.h"

namespace regkern::spectral {

using Dims = std::vector<int64_t>;

inline void check_dims(const Checks& check, const Dims& dims, const Tensors& weights,
                       const char* name) {
  if (dims.size() != weights.size())
    check.that(false, "a number in `dims` for each tensor, " + std::to_string(weights.size()),
               std::to_string(dims.size()));
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    if (w.dim() < 2)
      check.that(false, item_name(name, i) + " of two dimensions or more", sizes_name(w));
    if (dims[i] < 0 || dims[i] >= w.dim())
      check.that(false, "`dims` from 0 to " + std::to_string(w.dim() - 1), std::to_string(dims[i]));
  }
}

// Rows and columns around dimension `dim`, of contiguous memory.
inline Matrix row_major_matrix(const Checks& check, const Tensor& t, int64_t dim) {
  int64_t n0 = 1, n1 = 1;
  for (int64_t d = 0; d < t.dim(); ++d) (d < dim ? n0 : n1) *= d == dim ? 1 : t.size(d);
  constexpr int64_t kMost = int64_t{1} << 31;
  check.that(t.size(dim) < kMost && n0 < kMost && n1 < kMost && n0 * n1 < kMost,
             "less than 2^31 rows and columns", sizes_name(t));
  return {nullptr, static_cast<int32_t>(t.size(dim)), static_cast<int32_t>(n0),
          static_cast<int32_t>(n1), Layout::row_major};
}

// A tensor as a matrix where it lies; what has other strides than Layout knows is copied first.
inline Matrix matrix_of(const Checks& check, const Tensor& t, int64_t dim, Read* read) {
  Matrix m = row_major_matrix(check, t, dim);
  const bool transposed = t.dim() == 2 && !t.is_contiguous() && t.stride(0) == 1 &&
                          t.stride(1) == t.size(0) && t.size(1) > 1;
  if (transposed) {
    m.layout = dim == 0 ? Layout::rows_last : Layout::row_major;
    m.n1 = static_cast<int32_t>(t.size(1 - dim));
    m.n0 = 1;
  } else if (!t.is_contiguous() && is_channels_last(t) && dim <= 1) {
    const int64_t channels = t.size(1 - dim);
    m.layout = dim == 0 ? Layout::rows_first : Layout::rows_last;
    m.n1 = static_cast<int32_t>(channels > 0 ? static_cast<int64_t>(m.n0) * m.n1 / channels : 0);
    m.n0 = static_cast<int32_t>(channels);
  } else {
    m.data = read->row_major(t);
    if (m.n1 == 1 && m.n0 > 1) {
      m.layout = Layout::rows_last;
      m.n1 = m.n0;
      m.n0 = 1;
    }
    return m;
  }
  m.data = t.const_data_ptr();
  return m;
}

// A vector of the compute type for each matrix.
inline void check_vectors(const Checks& check, const Tensors& list, const char* name,
                          const Tensors& weights, const char* like_name) {
  if (list.size() != weights.size())
    check.that(false,
               std::string("`") + name + "` of as many tensors as `" + like_name + "`, " +
                   std::to_string(weights.size()),
               std::to_string(list.size()));
  for (size_t i = 0; i < list.size(); ++i)
    if (!on_same_device(list[i], weights[0]))
      check.that(false, item_name(name, i) + " on " + device_name(weights[0]),
                 device_name(list[i]));
}

inline void check_length(const Checks& check, const Tensor& t, const char* name, size_t i,
                         int64_t length) {
  if (t.dim() != 1 || t.size(0) != length)
    check.that(false, item_name(name, i) + " of shape (" + std::to_string(length) + ")",
               sizes_name(t));
}

// Contiguous memory of the compute type: t itself, or a copy that is added to `held`.
inline Tensor computed(const Tensor& t, Dtype dtype, Tensors* held) {
  const ScalarType type = compute_type(dtype);
  if (t.scalar_type() == type && t.is_contiguous()) return t;
  Tensor copy = new_tensor(t, sizes_of(t), type);
  torch::stable::copy_(copy, t);
  held->push_back(copy);
  return copy;
}

}  // namespace regkern::spectral
