#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "core/op_list.h"
#include "proximal/complex_magnitude.h"
#include "proximal/elementwise.h"
#include "proximal/op.h"

// The shrinkage laws of single elements, and their penalties.

namespace regkern::proximal {
namespace {

void check_extra(const Checks& check, const Tensor& t, const std::string& name, const Tensor& like,
                 Dtype dtype) {
  check.same_device(t, name.c_str(), like);
  check.dtype(t, name.c_str(), compute_type(dtype),
              dtype == Dtype::float64 ? "float64" : "float32");
  if (!of_same_shape(t, like))
    check.that(false, "`" + name + "` of shape " + sizes_name(like), sizes_name(t));
}

LawArgs law_args(const Checks& check, const std::string& law, const Tensor& t, const Tensor& lam,
                 double shape, double low, double high, const Tensor& like, Dtype dtype) {
  check.that(low <= 0.0 && high >= 0.0, "`low` and `high` on either side of 0",
             std::to_string(low) + " and " + std::to_string(high));
  return {law_of(check, law, true),
          check_number(check, t, "t", like, dtype),
          check_number(check, lam, "lam", like, dtype),
          shape,
          low,
          high};
}

// ---- prox_elementwise ----

Tensor prox_elementwise(const Tensor& x, const Tensor& t, const Tensor& lam, MaybeTensor weights,
                        MaybeTensor shapes, std::string law, double shape, double low,
                        double high) {
  const Checks check("prox_elementwise");
  const Dtype dtype = check.floating(x, "x");
  const LawArgs args = law_args(check, law, t, lam, shape, low, high, x, dtype);
  const Dense d = dense(x);
  Tensor kept[2];
  const void* data[2] = {};
  const MaybeTensor* extra[] = {&weights, &shapes};
  const char* names[] = {"weights", "shapes"};
  for (int i = 0; i < 2; ++i) {
    if (!extra[i]->has_value()) continue;
    check_extra(check, **extra[i], names[i], x, dtype);
    kept[i] = dense_like(**extra[i], d);
    data[i] = kept[i].const_data_ptr();
  }
  Tensor y = torch::stable::empty_like(d.tensor);
  Tensor zeros = new_tensor(x, {}, ScalarType::Long);
  const ShrinkRow row{
      d.tensor.const_data_ptr(), y.mutable_data_ptr(), data[0], data[1], x.numel(), 0};
  backend::prox_elementwise(
      ProxElementwiseArgs{dtype, args, &row, x.numel() > 0, mutable_data<int64_t>(zeros)},
      OnDevice(x));
  return y;
}

std::tuple<Tensor, Tensor, Tensor> prox_elementwise_backward(const Tensor& g, const Tensor& x,
                                                             const Tensor& t, const Tensor& lam,
                                                             MaybeTensor weights,
                                                             MaybeTensor shapes, std::string law,
                                                             double shape, double low, double high,
                                                             bool weights_gradient) {
  const Checks check("prox_elementwise_backward");
  const Dtype dtype = check.floating(x, "x");
  const LawArgs args = law_args(check, law, t, lam, shape, low, high, x, dtype);
  check.same_device(g, "g", x);
  check.that(g.scalar_type() == x.scalar_type(), "`g` of the dtype of `x`", "another");
  check.that(of_same_shape(g, x), "`g` of shape " + sizes_name(x), sizes_name(g));
  // Sums go by logical element.
  const Tensor in = torch::stable::contiguous(x), grad = torch::stable::contiguous(g);
  Tensor kept[2];
  const void* data[2] = {};
  const MaybeTensor* extra[] = {&weights, &shapes};
  const char* names[] = {"weights", "shapes"};
  for (int i = 0; i < 2; ++i) {
    if (!extra[i]->has_value()) continue;
    check_extra(check, **extra[i], names[i], x, dtype);
    kept[i] = torch::stable::contiguous(**extra[i]);
    data[i] = kept[i].const_data_ptr();
  }
  Tensor dx = torch::stable::empty_like(in);
  const ScalarType compute = compute_type(dtype);
  Tensor dweights =
      weights_gradient ? new_tensor(x, sizes_of(x), compute) : new_tensor(x, {0}, compute);
  Tensor sums = new_tensor(x, {kShrinkSums}, compute);
  const int64_t spans = span_count(x.numel());
  Tensor scratch = new_tensor(x, {spans, kShrinkSums}, ScalarType::Double);
  const ShrinkGradientRow row{grad.const_data_ptr(),
                              in.const_data_ptr(),
                              data[0],
                              data[1],
                              dx.mutable_data_ptr(),
                              weights_gradient ? dweights.mutable_data_ptr() : nullptr,
                              x.numel(),
                              0};
  backend::prox_elementwise_backward(
      ProxElementwiseBackwardArgs{dtype, args, &row, x.numel() > 0, spans,
                                  mutable_data<double>(scratch), sums.mutable_data_ptr()},
      OnDevice(x));
  return {laid_out(dx, x), sums, dweights};
}

Tensor prox_elementwise_(Tensors tensors, const Tensor& t, const Tensor& lam, Tensors weights,
                         Tensors shapes, std::string law, double shape, double low, double high) {
  const Checks check("prox_elementwise_");
  const Dtype dtype = check_list(check, tensors, "tensors");
  const LawArgs args = law_args(check, law, t, lam, shape, low, high, tensors[0], dtype);
  const Tensors* extra[] = {&weights, &shapes};
  const char* names[] = {"weights", "shapes"};
  for (int k = 0; k < 2; ++k) {
    if (extra[k]->empty()) continue;
    check_like(check, *extra[k], names[k], tensors, "tensors");
    for (size_t i = 0; i < tensors.size(); ++i)
      check_extra(check, (*extra[k])[i], names[k], tensors[i], dtype);
  }
  Written written;
  Read read;
  std::vector<ShrinkRow> rows;
  int64_t first = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t numel = tensors[i].numel();
    if (numel == 0) continue;
    void* data = written.row_major(tensors[i], true);
    rows.push_back({data, data, weights.empty() ? nullptr : read.row_major(weights[i]),
                    shapes.empty() ? nullptr : read.row_major(shapes[i]), numel, first});
    first += list_span(numel);
  }
  Tensor zeros = new_tensor(tensors[0], {}, ScalarType::Long);
  backend::prox_elementwise(
      ProxElementwiseArgs{dtype, args, rows.data(), static_cast<int64_t>(rows.size()),
                          mutable_data<int64_t>(zeros)},
      OnDevice(tensors[0]));
  written.copy_back();
  return zeros;
}

// ---- prox_complex ----

// Pairs of parts in the last dimension. Returns what the sums are.
Tensor run_complex(const Checks& check, const Tensors& pairs, const Tensor* g, const Tensor* out,
                   const Tensor& t, const Tensor& lam, const std::string& law, double shape) {
  const Dtype dtype = check_list(check, pairs, "pairs");
  check.that(dtype == Dtype::float32 || dtype == Dtype::float64,
             "`pairs` of dtype float32 or float64", "another");
  ProxComplexArgs a{};
  a.dtype = dtype;
  constexpr double kNone = __builtin_inf();
  a.law = law_args(check, law, t, lam, shape, -kNone, kNone, pairs[0], dtype);
  a.gradient = g != nullptr;
  Written written;
  Read read;
  std::vector<ComplexRow> rows;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const Tensor& z = pairs[i];
    if (z.dim() < 1 || z.size(z.dim() - 1) != 2)
      check.that(false, item_name("pairs", i) + " of shape (..., 2)", sizes_name(z));
    if (z.numel() == 0) continue;
    void* to = out != nullptr ? out->mutable_data_ptr() : written.row_major(z, true);
    rows.push_back({g != nullptr ? read.row_major(*g) : nullptr,
                    out != nullptr ? read.row_major(z) : to, to, z.numel() / 2, a.all_spans});
    a.all_spans += span_count(z.numel() / 2);
  }
  a.rows = rows.data();
  a.count = static_cast<int64_t>(rows.size());
  Tensor scratch = new_tensor(pairs[0], {a.all_spans, kShrinkSums}, ScalarType::Double);
  Tensor sums = new_tensor(pairs[0], {kShrinkSums}, compute_type(dtype));
  a.spans = mutable_data<double>(scratch);
  a.out = sums.mutable_data_ptr();
  backend::prox_complex(a, OnDevice(pairs[0]));
  written.copy_back();
  return sums;
}

Tensor prox_complex(const Tensor& pairs, const Tensor& t, const Tensor& lam, std::string law,
                    double shape) {
  Tensor y = new_tensor(pairs, sizes_of(pairs), pairs.scalar_type());
  run_complex(Checks("prox_complex"), {pairs}, nullptr, &y, t, lam, law, shape);
  return y;
}

std::tuple<Tensor, Tensor> prox_complex_backward(const Tensor& g, const Tensor& pairs,
                                                 const Tensor& t, const Tensor& lam,
                                                 std::string law, double shape) {
  const Checks check("prox_complex_backward");
  check.same_device(g, "g", pairs);
  check.that(g.scalar_type() == pairs.scalar_type(), "`g` of the dtype of `pairs`", "another");
  check.that(of_same_shape(g, pairs), "`g` of shape " + sizes_name(pairs), sizes_name(g));
  Tensor dz = new_tensor(pairs, sizes_of(pairs), pairs.scalar_type());
  Tensor sums = run_complex(check, {pairs}, &g, &dz, t, lam, law, shape);
  return {dz, sums};
}

Tensor prox_complex_(Tensors pairs, const Tensor& t, const Tensor& lam, std::string law,
                     double shape) {
  return run_complex(Checks("prox_complex_"), pairs, nullptr, nullptr, t, lam, law, shape);
}

// ---- penalty_elementwise ----

// The call, with what it points to. Gradients: none, fresh ones, or those given.
struct PenaltyCall {
  PenaltyElementwiseArgs args{};
  std::vector<PenaltyRow> rows;
  Read read;
  Written written;
  Tensors gradients;
  Tensor sums, scratch;
};

void run_penalty(const Checks& check, PenaltyCall& call, const Tensors& tensors, const Tensor& lam,
                 const Tensors& weights, const std::string& law, double shape, bool fresh,
                 const Tensors* given, const Tensor* scale) {
  const Dtype dtype = check_list(check, tensors, "tensors");
  const Tensor& like = tensors[0];
  PenaltyElementwiseArgs& a = call.args;
  a.dtype = dtype;
  a.law = {law_of(check, law, false),
           scale != nullptr ? check_number(check, *scale, "scale", like, dtype) : nullptr,
           check_number(check, lam, "lam", like, dtype),
           shape,
           0.0,
           0.0};
  a.accumulate = given != nullptr;
  if (!weights.empty()) {
    check_like(check, weights, "weights", tensors, "tensors");
    for (size_t i = 0; i < tensors.size(); ++i)
      check_extra(check, weights[i], "weights", tensors[i], dtype);
  }
  if (given != nullptr) {
    check_like(check, *given, "grads", tensors, "tensors");
    check_list(check, *given, "grads");
    check.that((*given)[0].scalar_type() == like.scalar_type(), "`grads` of the dtype of `tensors`",
               "another");
  }
  int64_t span = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    void* dx = nullptr;
    if (fresh) {
      call.gradients.push_back(new_tensor(t, sizes_of(t), t.scalar_type()));
      dx = call.gradients.back().mutable_data_ptr();
    } else if (given != nullptr) {
      dx = call.written.row_major((*given)[i], true);
    }
    if (t.numel() == 0) continue;
    call.rows.push_back({call.read.row_major(t),
                         weights.empty() ? nullptr : call.read.row_major(weights[i]), dx, t.numel(),
                         span});
    span += span_count(t.numel());
  }
  a.rows = call.rows.data();
  a.count = static_cast<int64_t>(call.rows.size());
  a.all_spans = span;
  call.scratch = new_tensor(like, {span, kShrinkSums}, ScalarType::Double);
  call.sums = new_tensor(like, {kShrinkSums}, compute_type(dtype));
  a.spans = mutable_data<double>(call.scratch);
  a.out = call.sums.mutable_data_ptr();
  backend::penalty_elementwise(a, OnDevice(like));
  call.written.copy_back();
  for (size_t i = 0; i < call.gradients.size(); ++i)
    call.gradients[i] = laid_out(call.gradients[i], tensors[i]);
}

Tensors listed(const MaybeTensor& t) { return t.has_value() ? Tensors{*t} : Tensors{}; }

Tensor penalty_elementwise(const Tensor& x, const Tensor& lam, MaybeTensor weights, std::string law,
                           double shape) {
  PenaltyCall call;
  run_penalty(Checks("penalty_elementwise"), call, {x}, lam, listed(weights), law, shape, false,
              nullptr, nullptr);
  return call.sums;
}

Tensor penalty_elementwise_backward(const Tensor& scale, const Tensor& x, const Tensor& lam,
                                    MaybeTensor weights, std::string law, double shape) {
  PenaltyCall call;
  call.args.only_dx = true;
  run_penalty(Checks("penalty_elementwise_backward"), call, {x}, lam, listed(weights), law, shape,
              true, nullptr, &scale);
  return call.gradients[0];
}

Tensor penalty_list(Tensors tensors, const Tensor& lam, Tensors weights, std::string law,
                    double shape) {
  PenaltyCall call;
  run_penalty(Checks("penalty_list"), call, tensors, lam, weights, law, shape, false, nullptr,
              nullptr);
  return call.sums;
}

Tensors penalty_list_backward(const Tensor& scale, Tensors tensors, const Tensor& lam,
                              Tensors weights, std::string law, double shape) {
  PenaltyCall call;
  call.args.only_dx = true;
  run_penalty(Checks("penalty_list_backward"), call, tensors, lam, weights, law, shape, true,
              nullptr, &scale);
  return call.gradients;
}

std::tuple<Tensor, Tensors> penalty_list_gradients(Tensors tensors, const Tensor& lam,
                                                   Tensors weights, std::string law, double shape) {
  PenaltyCall call;
  run_penalty(Checks("penalty_list_gradients"), call, tensors, lam, weights, law, shape, true,
              nullptr, nullptr);
  return {call.sums, call.gradients};
}

Tensor penalty_list_add_(Tensors tensors, Tensors grads, const Tensor& scale, const Tensor& lam,
                         Tensors weights, std::string law, double shape) {
  PenaltyCall call;
  run_penalty(Checks("penalty_list_add_"), call, tensors, lam, weights, law, shape, false, &grads,
              &scale);
  return call.sums;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "prox_elementwise(Tensor x, Tensor t, Tensor lam, Tensor? weights, Tensor? shapes, str law, "
      "float shape, float low, float high) -> Tensor");
  m.def(
      "prox_elementwise_backward(Tensor g, Tensor x, Tensor t, Tensor lam, Tensor? weights, "
      "Tensor? shapes, str law, float shape, float low, float high, bool weights_gradient) -> "
      "(Tensor, "
      "Tensor, Tensor)");
  m.def(
      "prox_elementwise_(Tensor(a!)[] tensors, Tensor t, Tensor lam, Tensor[] weights, "
      "Tensor[] shapes, str law, float shape, float low, float high) -> Tensor");
  m.def("prox_complex(Tensor pairs, Tensor t, Tensor lam, str law, float shape) -> Tensor");
  m.def(
      "prox_complex_backward(Tensor g, Tensor pairs, Tensor t, Tensor lam, str law, float shape) "
      "-> (Tensor, Tensor)");
  m.def("prox_complex_(Tensor(a!)[] pairs, Tensor t, Tensor lam, str law, float shape) -> Tensor");
  m.def(
      "penalty_elementwise(Tensor x, Tensor lam, Tensor? weights, str law, float shape=0.0) -> "
      "Tensor");
  m.def(
      "penalty_elementwise_backward(Tensor scale, Tensor x, Tensor lam, Tensor? weights, str law, "
      "float shape=0.0) -> Tensor");
  m.def(
      "penalty_list(Tensor[] tensors, Tensor lam, Tensor[] weights, str law, float shape) -> "
      "Tensor");
  m.def(
      "penalty_list_backward(Tensor scale, Tensor[] tensors, Tensor lam, Tensor[] weights, "
      "str law, float shape) -> Tensor[]");
  m.def(
      "penalty_list_gradients(Tensor[] tensors, Tensor lam, Tensor[] weights, str law, "
      "float shape) -> (Tensor, Tensor[])");
  m.def(
      "penalty_list_add_(Tensor[] tensors, Tensor(a!)[] grads, Tensor scale, Tensor lam, "
      "Tensor[] weights, str law, float shape) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("prox_elementwise", TORCH_BOX(&prox_elementwise));
  m.impl("prox_elementwise_backward", TORCH_BOX(&prox_elementwise_backward));
  m.impl("prox_elementwise_", TORCH_BOX(&prox_elementwise_));
  m.impl("prox_complex", TORCH_BOX(&prox_complex));
  m.impl("prox_complex_backward", TORCH_BOX(&prox_complex_backward));
  m.impl("prox_complex_", TORCH_BOX(&prox_complex_));
  m.impl("penalty_elementwise", TORCH_BOX(&penalty_elementwise));
  m.impl("penalty_elementwise_backward", TORCH_BOX(&penalty_elementwise_backward));
  m.impl("penalty_list", TORCH_BOX(&penalty_list));
  m.impl("penalty_list_backward", TORCH_BOX(&penalty_list_backward));
  m.impl("penalty_list_gradients", TORCH_BOX(&penalty_list_gradients));
  m.impl("penalty_list_add_", TORCH_BOX(&penalty_list_add_));
}

}  // namespace regkern::proximal
