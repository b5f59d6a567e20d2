#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "core/op_list.h"
#include "core/tensor_list.h"
#include "spectral/gram_residual.h"
#include "spectral/row_norms.h"

// Residuals of gram matrices, and rows scaled by their norms.

namespace regkern::spectral {
namespace {

// ---- gram_residual_ ----

// Sums of every matrix: a tensor is a matrix, or several of one shape.
Tensor gram_residual_(Tensors grams, std::string target, std::string norm) {
  const Checks check("gram_residual_");
  GramResidualArgs a{};
  a.dtype = check_list(check, grams, "grams");
  check.that(a.dtype == Dtype::float32 || a.dtype == Dtype::float64,
             "`grams` of dtype float32 or float64", "another");
  a.target =
      static_cast<GramTarget>(check.one_of(target, "target", {"identity", "off_diagonal", "zero"}));
  a.norm = static_cast<ResidualNorm>(check.one_of(norm, "norm", {"squares", "magnitudes"}));
  std::vector<GramRow> rows;
  int64_t first = 0;
  bool empty = false;
  for (size_t i = 0; i < grams.size(); ++i) {
    const Tensor& t = grams[i];
    if (t.dim() != 2 && t.dim() != 3)
      check.that(false, item_name("grams", i) + " of two or three dimensions", sizes_name(t));
    const int64_t side = t.size(t.dim() - 1), height = t.size(t.dim() - 2);
    if (a.target != GramTarget::zero && side != height)
      check.that(false, item_name("grams", i) + " of square matrices", sizes_name(t));
    if (!t.is_contiguous())
      check.that(false, "contiguous " + item_name("grams", i), "a strided one");
    const int64_t matrices = t.dim() == 3 ? t.size(0) : 1, numel = side * height;
    auto* data = static_cast<char*>(t.mutable_data_ptr());
    for (int64_t m = 0; m < matrices; ++m) {
      empty = empty || numel == 0;
      const int64_t bytes = numel * (a.dtype == Dtype::float64 ? 8 : 4);
      rows.push_back({data + m * bytes, numel, first, a.all_spans, side});
      first += list_span(numel);
      a.all_spans += span_count(numel);
    }
  }
  a.rows = rows.data();
  a.count = static_cast<int64_t>(rows.size());
  Tensor scratch = new_tensor(grams[0], {a.all_spans}, ScalarType::Double);
  Tensor out = new_tensor(grams[0], {a.count}, ScalarType::Double);
  a.spans = mutable_data<double>(scratch);
  a.out = mutable_data<double>(out);
  if (empty) torch::stable::zero_(out);
  if (a.all_spans > 0) backend::gram_residual(a, OnDevice(grams[0]));
  return out;
}

// ---- rows by their norms ----

// A tensor by its first dimension.
NormedRows matrix_of(const Checks& check, const Tensor& t, const std::string& name) {
  if (t.dim() < 2) check.that(false, name + " of at least two dimensions", sizes_name(t));
  NormedRows row{};
  row.rows = t.size(0);
  row.numel = t.numel();
  row.n = row.rows > 0 ? row.numel / row.rows : 0;
  return row;
}

Tensor row_rescale_(Tensors ys, MaybeTensor step, std::string law) {
  const Checks check("row_rescale_");
  RowRescaleArgs a{};
  a.dtype = check_list(check, ys, "ys");
  a.law = static_cast<RowLaw>(check.one_of(law, "law", {"project", "norm_loss"}));
  check.that(step.has_value() == (a.law == RowLaw::norm_loss), "`step` with law norm_loss alone",
             step.has_value() ? "one" : "none");
  if (step.has_value()) {
    check.same_device(*step, "step", ys[0]);
    check.dtype(*step, "step", compute_type(a.dtype),
                a.dtype == Dtype::float64 ? "float64" : "float32");
    check.that(step->numel() == 1, "`step` of one element", sizes_name(*step));
    a.step = step->const_data_ptr();
  }
  Written written;
  std::vector<NormedRows> rows;
  int64_t first = 0, count = 0;
  bool empty = false;
  for (size_t i = 0; i < ys.size(); ++i) {
    NormedRows row = matrix_of(check, ys[i], item_name("ys", i));
    row.row = count;
    row.first = first;
    count += row.rows;
    if (row.numel == 0) {
      empty = true;
      continue;
    }
    row.y = written.row_major(ys[i], true);
    row.x = row.y;
    first += list_span(row.numel);
    rows.push_back(row);
  }
  Tensor norms = new_tensor(ys[0], {count}, ScalarType::Double);
  if (empty) torch::stable::zero_(norms);
  a.rows = rows.data();
  a.count = static_cast<int64_t>(rows.size());
  a.norms = mutable_data<double>(norms);
  if (!rows.empty()) backend::row_rescale(a, OnDevice(ys[0]));
  written.copy_back();
  return norms;
}

std::tuple<Tensor, Tensor> row_project(const Tensor& x) {
  const Checks check("row_project");
  RowRescaleArgs a{};
  a.dtype = check.floating(x, "x");
  a.law = RowLaw::project;
  NormedRows row = matrix_of(check, x, "`x`");
  const Tensor in = torch::stable::contiguous(x);
  Tensor y = new_tensor(x, sizes_of(x), x.scalar_type());
  Tensor norms = new_tensor(x, {row.rows}, ScalarType::Double);
  row.x = in.const_data_ptr();
  row.y = y.mutable_data_ptr();
  a.rows = &row;
  a.count = 1;
  a.norms = mutable_data<double>(norms);
  if (row.numel > 0)
    backend::row_rescale(a, OnDevice(x));
  else
    torch::stable::zero_(norms);
  return {laid_out(y, x), norms};
}

Tensor row_project_backward(const Tensor& g, const Tensor& x, const Tensor& norms) {
  const Checks check("row_project_backward");
  RowProjectBackwardArgs a{};
  a.dtype = check.floating(x, "x");
  NormedRows row = matrix_of(check, x, "`x`");
  check.same_device(g, "g", x);
  check.that(g.scalar_type() == x.scalar_type(), "`g` of the dtype of `x`", "another");
  check.that(of_same_shape(g, x), "`g` of shape " + sizes_name(x), sizes_name(g));
  check.same_device(norms, "norms", x);
  check.dtype(norms, "norms", ScalarType::Double, "float64");
  check.shape(norms, "norms", {row.rows});
  check.that(norms.is_contiguous(), "contiguous `norms`", "a strided one");
  const Tensor in = torch::stable::contiguous(x), grad = torch::stable::contiguous(g);
  Tensor dx = new_tensor(x, sizes_of(x), x.scalar_type());
  row.x = in.const_data_ptr();
  row.g = grad.const_data_ptr();
  row.y = dx.mutable_data_ptr();
  a.rows = &row;
  a.count = 1;
  a.norms = const_data<double>(norms);
  if (row.numel > 0) backend::row_project_backward(a, OnDevice(x));
  return laid_out(dx, x);
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def("gram_residual_(Tensor(a!)[] grams, str target, str norm) -> Tensor");
  m.def("row_rescale_(Tensor(a!)[] ys, Tensor? step, str law) -> Tensor");
  m.def("row_project(Tensor x) -> (Tensor y, Tensor norms)");
  m.def("row_project_backward(Tensor g, Tensor x, Tensor norms) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("gram_residual_", TORCH_BOX(&gram_residual_));
  m.impl("row_rescale_", TORCH_BOX(&row_rescale_));
  m.impl("row_project", TORCH_BOX(&row_project));
  m.impl("row_project_backward", TORCH_BOX(&row_project_backward));
}

}  // namespace regkern::spectral
