#pragma once

#include "core/op_index.h"
#include "sparse/spmm.h"

namespace regkern::sparse {

// A pattern as ops are given it: both views, and where the entries of the second are in the first.
struct Pattern {
  Tensor offsets, index, t_offsets, t_index, t_order;
  SparseView by_rows, by_columns;
};

// The views that an op follows: the places in others are not looked at.
enum class Views { rows, columns, both };

inline Pattern pattern_of(const Checks& check, const Tensor& like, const Tensor& offsets,
                          const Tensor& index, const Tensor& t_offsets, const Tensor& t_index,
                          const Tensor& t_order, Views views = Views::both) {
  const auto list = [&](const Tensor& t, const char* name, ScalarType type, const char* text) {
    check.same_device(t, name, like);
    check.dtype(t, name, type, text);
    check.that(t.dim() == 1, std::string("`") + name + "` of one dimension", sizes_name(t));
    return torch::stable::contiguous(t);
  };
  Pattern p{};
  p.offsets = list(offsets, "offsets", ScalarType::Long, "int64");
  p.t_offsets = list(t_offsets, "t_offsets", ScalarType::Long, "int64");
  p.index = list(index, "index", ScalarType::Int, "int32");
  p.t_index = list(t_index, "t_index", ScalarType::Int, "int32");
  p.t_order = list(t_order, "t_order", ScalarType::Int, "int32");
  const int64_t nnz = index.numel(), rows = offsets.numel() - 1, columns = t_offsets.numel() - 1;
  check.that(rows >= 0 && columns >= 0, "`offsets` and `t_offsets` of at least one element",
             sizes_name(offsets) + " and " + sizes_name(t_offsets));
  check.shape(t_index, "t_index", {nnz});
  check.shape(t_order, "t_order", {nnz});
  p.by_rows = {rows,   columns, nnz, const_data<int64_t>(p.offsets), const_data<int32_t>(p.index),
               nullptr};
  p.by_columns = {columns,
                  rows,
                  nnz,
                  const_data<int64_t>(p.t_offsets),
                  const_data<int32_t>(p.t_index),
                  const_data<int32_t>(p.t_order)};
  check_offsets(check, p.offsets, "offsets", nnz);
  check_offsets(check, p.t_offsets, "t_offsets", nnz);
  if (views != Views::columns) check_indices<int32_t>(check, p.index, "index", columns);
  if (views == Views::rows) return p;
  check_indices<int32_t>(check, p.t_index, "t_index", rows);
  check_indices<int32_t>(check, p.t_order, "t_order", nnz);
  return p;
}

// The entries of a sparse weight, or a bias.
inline Tensor check_numbers(const Checks& check, const Tensor& t, const char* name, int64_t count,
                            const Tensor& like, Dtype dtype) {
  check.same_device(t, name, like);
  check.dtype(t, name, compute_type(dtype), dtype == Dtype::float64 ? "float64" : "float32");
  check.shape(t, name, {count});
  return torch::stable::contiguous(t);
}

}  // namespace regkern::sparse
