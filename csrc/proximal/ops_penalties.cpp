#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "core/op_list.h"
#include "proximal/column_pool.h"
#include "proximal/network_sums.h"

// Penalties that look at a whole network, or at the columns of activations.

namespace regkern::proximal {
namespace {

// ---- column_pool ----

Pool pool_of(const Checks& check, const std::string& kind) {
  return static_cast<Pool>(check.one_of(kind, "kind", {"magnitude", "sum", "max"}));
}

const uint8_t* keep_of(const Checks& check, const MaybeTensor& keep, const Tensor& x,
                       Tensor* held) {
  if (!keep.has_value()) return nullptr;
  check.same_device(*keep, "keep", x);
  check.dtype(*keep, "keep", ScalarType::Bool, "bool");
  check.shape(*keep, "keep", {x.size(0), x.size(1)});
  *held = torch::stable::contiguous(*keep);
  return static_cast<const uint8_t*>(held->const_data_ptr());
}

std::tuple<Tensor, Tensor> column_pool(const Tensor& x, MaybeTensor keep, std::string kind) {
  const Checks check("column_pool");
  ColumnPoolArgs a{};
  a.dtype = check.floating(x, "x");
  a.pool = pool_of(check, kind);
  check.that(x.dim() == 3, "`x` of shape (batch, length, columns)", sizes_name(x));
  check.that(x.size(1) < (int64_t{1} << 31), "a length below 2^31", std::to_string(x.size(1)));
  Tensor held;
  a.keep = keep_of(check, keep, x, &held);
  const Tensor in = torch::stable::contiguous(x);
  a.batch = x.size(0);
  a.length = x.size(1);
  a.columns = x.size(2);
  a.x = in.const_data_ptr();
  Tensor y = new_tensor(x, {a.batch, a.columns}, x.scalar_type());
  const bool max = a.pool == Pool::max;
  Tensor place = new_tensor(x, {max ? a.batch : 0, a.columns}, ScalarType::Int);
  a.y = y.mutable_data_ptr();
  a.place = mutable_data<int32_t>(place);
  if (y.numel() > 0) backend::column_pool(a, OnDevice(x));
  return {y, place};
}

Tensor column_pool_backward(const Tensor& g, const Tensor& x, MaybeTensor keep, const Tensor& place,
                            std::string kind) {
  const Checks check("column_pool_backward");
  ColumnPoolBackwardArgs a{};
  a.dtype = check.floating(x, "x");
  a.pool = pool_of(check, kind);
  check.that(x.dim() == 3, "`x` of shape (batch, length, columns)", sizes_name(x));
  check.same_device(g, "g", x);
  check.that(g.scalar_type() == x.scalar_type(), "`g` of the dtype of `x`", "another");
  check.shape(g, "g", {x.size(0), x.size(2)});
  Tensor held;
  a.keep = keep_of(check, keep, x, &held);
  if (a.pool == Pool::max) {
    check.same_device(place, "place", x);
    check.dtype(place, "place", ScalarType::Int, "int32");
    check.shape(place, "place", {x.size(0), x.size(2)});
  }
  const Tensor in = torch::stable::contiguous(x), grad = torch::stable::contiguous(g);
  const Tensor at = torch::stable::contiguous(place);
  a.batch = x.size(0);
  a.length = x.size(1);
  a.columns = x.size(2);
  a.x = in.const_data_ptr();
  a.g = grad.const_data_ptr();
  a.place = const_data<int32_t>(at);
  Tensor dx = new_tensor(x, sizes_of(x), x.scalar_type());
  a.dx = dx.mutable_data_ptr();
  if (dx.numel() > 0) backend::column_pool_backward(a, OnDevice(x));
  return dx;
}

// ---- network_sums ----

NetworkForm form_of(const Checks& check, const std::string& form) {
  return static_cast<NetworkForm>(check.one_of(form, "form", {"centred", "saturated"}));
}

const double* numbers_of(const Checks& check, const Tensor& t, const char* name, int64_t count,
                         const Tensor& like) {
  check.same_device(t, name, like);
  check.dtype(t, name, ScalarType::Double, "float64");
  check.that(t.numel() == count && t.is_contiguous(),
             std::string("`") + name + "` of " + std::to_string(count) + " numbers", sizes_name(t));
  return const_data<double>(t);
}

Tensor network_sums(Tensors tensors, const Tensor& centre, std::string form) {
  const Checks check("network_sums");
  NetworkSumsArgs a{};
  a.dtype = check_list(check, tensors, "tensors");
  a.form = form_of(check, form);
  a.centre = numbers_of(check, centre, "centre", 1, tensors[0]);
  Read read;
  std::vector<NetworkRow> rows;
  for (const Tensor& t : tensors) {
    if (t.numel() == 0) continue;
    rows.push_back({read.row_major(t), nullptr, t.numel(), 0, a.all_spans});
    a.all_spans += span_count(t.numel());
  }
  a.rows = rows.data();
  a.count = static_cast<int64_t>(rows.size());
  Tensor scratch = new_tensor(tensors[0], {a.all_spans, kNetworkSums}, ScalarType::Double);
  Tensor out = new_tensor(tensors[0], {kNetworkSums}, ScalarType::Double);
  a.spans = mutable_data<double>(scratch);
  a.out = mutable_data<double>(out);
  backend::network_sums(a, OnDevice(tensors[0]));
  return out;
}

Tensors network_gradients(Tensors tensors, const Tensor& numbers, std::string form) {
  const Checks check("network_gradients");
  NetworkGradientArgs a{};
  a.dtype = check_list(check, tensors, "tensors");
  a.form = form_of(check, form);
  a.numbers = numbers_of(check, numbers, "numbers", 4, tensors[0]);
  Read read;
  Tensors out;
  std::vector<NetworkRow> rows;
  int64_t first = 0;
  for (const Tensor& t : tensors) {
    out.push_back(new_tensor(t, sizes_of(t), t.scalar_type()));
    if (t.numel() == 0) continue;
    rows.push_back({read.row_major(t), out.back().mutable_data_ptr(), t.numel(), first, 0});
    first += list_span(t.numel());
  }
  a.rows = rows.data();
  a.count = static_cast<int64_t>(rows.size());
  backend::network_gradients(a, OnDevice(tensors[0]));
  for (size_t i = 0; i < out.size(); ++i) out[i] = laid_out(out[i], tensors[i]);
  return out;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def("column_pool(Tensor x, Tensor? keep, str kind) -> (Tensor, Tensor)");
  m.def("column_pool_backward(Tensor g, Tensor x, Tensor? keep, Tensor place, str kind) -> Tensor");
  m.def("network_sums(Tensor[] tensors, Tensor centre, str form) -> Tensor");
  m.def("network_gradients(Tensor[] tensors, Tensor numbers, str form) -> Tensor[]");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("column_pool", TORCH_BOX(&column_pool));
  m.impl("column_pool_backward", TORCH_BOX(&column_pool_backward));
  m.impl("network_sums", TORCH_BOX(&network_sums));
  m.impl("network_gradients", TORCH_BOX(&network_gradients));
}

}  // namespace regkern::proximal
