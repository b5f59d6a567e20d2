#include "core/op_index.h"
#include "core/op_list.h"
#include "sparse/gate.h"
#include "sparse/gate_rows.h"
#include "sparse/sample_entries.h"

// Training a part of a dense weight: its entries, and gates of weights, gradients and channels.

namespace regkern::sparse {
namespace {

void sparse_write_(const Tensor& weight, const Tensor& values, const MaybeTensor& base,
                   const Tensor& offsets, const Tensor& index) {
  const Checks check("sparse_write_");
  EntryWriteArgs args{};
  args.dtype = check.floating(weight, "weight");
  check.that(weight.dim() == 2, "`weight` of two dimensions", sizes_name(weight));
  for (const auto& [t, name] : {std::pair{&offsets, "offsets"}, std::pair{&index, "index"}}) {
    check.same_device(*t, name, weight);
    check.that(t->dim() == 1 && t->is_contiguous(),
               std::string("a contiguous `") + name + "` of one dimension", sizes_name(*t));
  }
  check.dtype(offsets, "offsets", ScalarType::Long, "int64");
  check.dtype(index, "index", ScalarType::Int, "int32");
  args.rows = weight.size(0);
  args.columns = weight.size(1);
  args.nnz = index.numel();
  check.shape(offsets, "offsets", {args.rows + 1});
  check_offsets(check, offsets, "offsets", args.nnz);
  check_indices<int32_t>(check, index, "index", args.columns);
  const auto list = [&](const Tensor& t, const char* name) {
    check.same_device(t, name, weight);
    check.dtype(t, name, compute_type(args.dtype),
                args.dtype == Dtype::float64 ? "float64" : "float32");
    check.shape(t, name, {args.nnz});
    return torch::stable::contiguous(t);
  };
  const Tensor own = list(values, "values");
  Tensor own_base;
  if (base.has_value()) own_base = list(*base, "base");
  if (args.nnz == 0) return;
  args.offsets = const_data<int64_t>(offsets);
  args.index = const_data<int32_t>(index);
  args.values = own.const_data_ptr();
  args.base = base.has_value() ? own_base.const_data_ptr() : nullptr;
  Written written;
  args.weight = written.row_major(weight, true);
  backend::sparse_write(args, OnDevice(weight));
  written.copy_back();
}

// `t` as `like` is: device, dtype, shape.
void check_twin(const Checks& check, const Tensor& t, const char* name, const Tensor& like,
                const char* like_name) {
  check.same_device(t, name, like);
  const bool same = t.scalar_type() == like.scalar_type() && of_same_shape(t, like);
  check.that(same,
             std::string("`") + name + "` of the dtype and shape of `" + like_name + "`, " +
                 sizes_name(like),
             sizes_name(t));
}

Tensor score_gate(const Tensor& w, const Tensor& scores, double threshold) {
  const Checks check("score_gate");
  const Dtype dtype = check.floating(w, "w");
  check_twin(check, scores, "scores", w, "w");
  const Dense own = dense(w);
  const Tensor own_scores = dense_like(scores, own);
  Tensor y = torch::stable::empty_like(own.tensor);
  if (w.numel() == 0) return y;
  backend::score_gate(ScoreGateArgs{dtype, w.numel(), own.tensor.const_data_ptr(),
                                    own_scores.const_data_ptr(), threshold, y.mutable_data_ptr()},
                      OnDevice(w));
  return y;
}

Tensor gradient_dropout(const Tensor& g, const Tensor& reference, const Tensor& seed,
                        double strength, double epsilon) {
  const Checks check("gradient_dropout");
  const Dtype dtype = check.floating(g, "g");
  check_twin(check, reference, "reference", g, "g");
  check.seed(seed, g);
  // Elements are numbered by rows, so the memory is row-major.
  const Tensor own = torch::stable::contiguous(g), other = torch::stable::contiguous(reference);
  const Tensor y = new_tensor(g, sizes_of(g), g.scalar_type());
  if (g.numel() > 0)
    backend::gradient_dropout(
        GradientDropoutArgs{dtype, g.numel(), own.const_data_ptr(), other.const_data_ptr(),
                            const_data<int64_t>(seed), strength, epsilon, y.mutable_data_ptr()},
        OnDevice(g));
  return laid_out(y, g);
}

Tensor row_select(const Tensor& values, const Tensor& scores, int64_t k) {
  const Checks check("row_select");
  RowSelectArgs args{};
  args.dtype = check.floating(values, "values");
  check_twin(check, scores, "scores", values, "values");
  check.that(values.dim() >= 1, "`values` of one dimension or more", "0");
  args.n = values.size(values.dim() - 1);
  check.that(k > 0 && k < args.n, "`k` between 0 and " + std::to_string(args.n), std::to_string(k));
  args.rows = values.numel() / args.n;
  const Tensor own = torch::stable::contiguous(values);
  const bool same = values.const_data_ptr() == scores.const_data_ptr() && values.is_contiguous() &&
                    scores.is_contiguous();
  const Tensor own_scores = same ? own : torch::stable::contiguous(scores);
  const Tensor y = new_tensor(values, sizes_of(values), values.scalar_type());
  args.values = own.const_data_ptr();
  args.scores = own_scores.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.k = k;
  if (args.rows > 0) backend::row_select(args, OnDevice(values));
  return laid_out(y, values);
}

Tensor mass_gate(const Tensor& y, double mass) {
  const Checks check("mass_gate");
  const Dtype dtype = check.floating(y, "y");
  check.that(y.dim() >= 2, "`y` of two dimensions or more", sizes_name(y));
  check.that(mass >= 0.0 && mass <= 1.0, "`mass` in [0, 1]", std::to_string(mass));
  const int64_t batch = y.size(0), channels = y.size(1);
  const Tensor gates = new_tensor(y, {batch, channels}, y.scalar_type());
  if (batch * channels == 0) return gates;
  const Tensor peaks = new_tensor(y, {batch, channels}, y.scalar_type());
  const Dense own = dense(y);
  const OnDevice device(y);
  backend::plane_peak(
      PlanePeakArgs{dtype, own.channels_last, batch, channels, y.numel() / (batch * channels),
                    own.tensor.const_data_ptr(), peaks.mutable_data_ptr()},
      device);
  backend::mass_gate(
      MassGateArgs{dtype, batch, channels, peaks.const_data_ptr(), gates.mutable_data_ptr(), mass},
      device);
  return gates;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "sparse_write_(Tensor(a!) weight, Tensor values, Tensor? base, Tensor offsets, Tensor index) "
      "-> ()");
  m.def("score_gate(Tensor w, Tensor scores, float threshold) -> Tensor");
  m.def(
      "gradient_dropout(Tensor g, Tensor reference, Tensor seed, float strength, float epsilon) -> "
      "Tensor");
  m.def("row_select(Tensor values, Tensor scores, int k) -> Tensor");
  m.def("mass_gate(Tensor y, float mass) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("sparse_write_", TORCH_BOX(&sparse_write_));
  m.impl("score_gate", TORCH_BOX(&score_gate));
  m.impl("gradient_dropout", TORCH_BOX(&gradient_dropout));
  m.impl("row_select", TORCH_BOX(&row_select));
  m.impl("mass_gate", TORCH_BOX(&mass_gate));
}

}  // namespace regkern::sparse
