#include <cstdint>
#include <string>
#include <tuple>

#include "core/op.h"
#include "transport/normalize.h"

namespace regkern::transport {
namespace {

Tensor row_major(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// What a call keeps alive while the kernel reads it.
struct NormalizeInputs {
  NormalizeArgs args;
  Tensor x;
  MaybeTensor a, b, slack, scale;
  Tensor redo, space;
};

MaybeTensor weights(const Checks& check, const MaybeTensor& t, const char* name, const Tensor& x,
                    Dtype dtype, int64_t count, int64_t n, int64_t* stride) {
  *stride = -1;
  if (!t.has_value()) return std::nullopt;
  check.same_device(*t, name, x);
  check.dtype(*t, name, compute_type(dtype), "the compute type");
  *stride = t->dim() == 1 ? 0 : n;
  if (t->dim() == 1)
    check.shape(*t, name, {n});
  else
    check.shape(*t, name, {count, n});
  return row_major(*t);
}

MaybeTensor numbers(const Checks& check, const MaybeTensor& t, const char* name, const Tensor& x,
                    Dtype dtype, int64_t count, int64_t* stride) {
  if (!t.has_value()) return std::nullopt;
  check.same_device(*t, name, x);
  check.dtype(*t, name, compute_type(dtype), "the compute type");
  *stride = t->dim() == 0 ? 0 : 1;
  if (t->dim() == 0)
    check.shape(*t, name, {});
  else
    check.shape(*t, name, {count});
  return row_major(*t);
}

const void* pointer(const MaybeTensor& t) { return t.has_value() ? t->const_data_ptr() : nullptr; }

NormalizeInputs inputs_of(const Checks& check, const Tensor& x, const MaybeTensor& a,
                          const MaybeTensor& b, const MaybeTensor& slack, const MaybeTensor& scale,
                          int64_t n_iter, double eps, const std::string& order, bool logits,
                          bool log_output, bool backward) {
  NormalizeArgs args{};
  args.dtype = check.floating(x, "x");
  check.that(x.dim() == 3, "`x` of three dimensions", sizes_name(x));
  constexpr int64_t kMost = int64_t{1} << 15;
  check.that(x.size(1) < kMost && x.size(2) < kMost, "less than 32768 rows and columns",
             sizes_name(x));
  check.that(n_iter >= 1 && n_iter <= 1000000, "`n_iter` from 1 to 1000000",
             std::to_string(n_iter));
  check.that(eps >= 0.0, "`eps` of at least 0", std::to_string(eps));
  args.count = x.size(0);
  args.rows = static_cast<int32_t>(x.size(1));
  args.columns = static_cast<int32_t>(x.size(2));
  args.n_iter = static_cast<int32_t>(n_iter);
  args.eps = eps;
  args.columns_first = check.one_of(order, "order", {"row_first", "column_first"}) == 1;
  args.logits = logits;
  args.log_output = log_output;
  args.has_slack = slack.has_value();
  const NormalizeShape shape = normalize_shape(args);
  const bool swapped = args.columns_first;
  NormalizeInputs in{args, row_major(x), {}, {}, {}, {}, x, x};
  in.a = weights(check, swapped ? b : a, swapped ? "b" : "a", x, args.dtype, args.count, shape.n,
                 &in.args.a_stride);
  in.b = weights(check, swapped ? a : b, swapped ? "a" : "b", x, args.dtype, args.count, shape.m,
                 &in.args.b_stride);
  in.slack = numbers(check, slack, "slack", x, args.dtype, args.count, &in.args.slack_stride);
  in.scale = numbers(check, scale, "scale", x, args.dtype, args.count, &in.args.scale_stride);
  in.redo = new_tensor(x, {args.count}, ScalarType::Byte);
  in.args.redo = mutable_data<uint8_t>(in.redo);
  const int64_t room = kValuesReadable ? 0 : normalize_space(in.args, shape, backward);
  in.space = new_tensor(x, {room}, compute_type(args.dtype));
  in.args.space = in.space.mutable_data_ptr();
  in.args.x = in.x.const_data_ptr();
  in.args.a = pointer(in.a);
  in.args.b = pointer(in.b);
  in.args.slack = pointer(in.slack);
  in.args.scale = pointer(in.scale);
  return in;
}

bool is_empty(const NormalizeArgs& args) {
  const NormalizeShape shape = normalize_shape(args);
  return args.count == 0 || shape.n == 0 || shape.m == 0;
}

Tensor sinkhorn_normalize(const Tensor& x, const MaybeTensor& a, const MaybeTensor& b,
                          const MaybeTensor& slack, const MaybeTensor& scale, int64_t n_iter,
                          double eps, std::string order, bool logits, bool log_output) {
  const Checks check("sinkhorn_normalize");
  NormalizeInputs in =
      inputs_of(check, x, a, b, slack, scale, n_iter, eps, order, logits, log_output, false);
  const int64_t s = in.args.has_slack ? 1 : 0;
  const Tensor y = new_tensor(x, {x.size(0), x.size(1) + s, x.size(2) + s}, x.scalar_type());
  if (is_empty(in.args)) return y;
  in.args.y = y.mutable_data_ptr();
  backend::sinkhorn_normalize(in.args, OnDevice(x));
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sinkhorn_normalize_backward(
    const Tensor& g, const Tensor& x, const MaybeTensor& a, const MaybeTensor& b,
    const MaybeTensor& slack, const MaybeTensor& scale, int64_t n_iter, double eps,
    std::string order, bool logits, bool log_output) {
  const Checks check("sinkhorn_normalize_backward");
  NormalizeInputs in =
      inputs_of(check, x, a, b, slack, scale, n_iter, eps, order, logits, log_output, true);
  const NormalizeArgs& args = in.args;
  const int64_t s = args.has_slack ? 1 : 0;
  check.same_device(g, "g", x);
  check.dtype(g, "g", x.scalar_type(), "x's");
  check.shape(g, "g", {x.size(0), x.size(1) + s, x.size(2) + s});
  const ScalarType type = compute_type(args.dtype);
  const Tensor gs = row_major(g), dx = new_tensor(x, sizes_of(x), x.scalar_type());
  const auto room = [&](const MaybeTensor& t, int64_t n) {
    return new_tensor(x, {t.has_value() ? args.count : 0, n}, type);
  };
  const Tensor da = room(a, args.rows + s), db = room(b, args.columns + s);
  const Tensor dslack = new_tensor(x, {args.has_slack ? args.count : 0}, type);
  if (is_empty(args)) return {dx, da, db, dslack};
  NormalizeBackwardArgs all{};
  all.forward = args;
  all.g = gs.const_data_ptr();
  all.dx = dx.mutable_data_ptr();
  void* const first = a.has_value() ? da.mutable_data_ptr() : nullptr;
  void* const second = b.has_value() ? db.mutable_data_ptr() : nullptr;
  all.da = args.columns_first ? second : first;
  all.db = args.columns_first ? first : second;
  all.dslack = dslack.mutable_data_ptr();
  backend::sinkhorn_normalize_backward(all, OnDevice(x));
  return {dx, da, db, dslack};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "sinkhorn_normalize(Tensor x, Tensor? a, Tensor? b, Tensor? slack, Tensor? scale, int "
      "n_iter, "
      "float eps, str order, bool logits, bool log_output) -> Tensor");
  m.def(
      "sinkhorn_normalize_backward(Tensor g, Tensor x, Tensor? a, Tensor? b, Tensor? slack, "
      "Tensor? "
      "scale, int n_iter, float eps, str order, bool logits, bool log_output) -> (Tensor dx, "
      "Tensor "
      "da, Tensor db, Tensor dslack)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("sinkhorn_normalize", TORCH_BOX(&sinkhorn_normalize));
  m.impl("sinkhorn_normalize_backward", TORCH_BOX(&sinkhorn_normalize_backward));
}

}  // namespace regkern::transport
