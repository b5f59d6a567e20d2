#include <string>
#include <vector>

#include "core/op_list.h"
#include "masks/blend.h"
#include "masks/prefix.h"

// Events of elements, mixtures of weights, prefixes.

namespace regkern::masks {
namespace {

// p, or the element that it is in.
const double* check_p(const Checks& check, double p, const MaybeTensor& p_tensor, const Tensor& x) {
  const double* at = nullptr;
  if (p_tensor.has_value()) {
    check.same_device(*p_tensor, "p_tensor", x);
    check.dtype(*p_tensor, "p_tensor", ScalarType::Double, "float64");
    check.that(p_tensor->numel() == 1, "`p_tensor` of one element", sizes_name(*p_tensor));
    at = const_data<double>(*p_tensor);
    if (!kValuesReadable) return at;
    p = *at;
  }
  check.that(p >= 0.0 && p <= 1.0, "`p` in [0, 1]", std::to_string(p));
  return at;
}

Tensor check_twin(const Checks& check, const Tensor& t, const char* name, const Tensor& x) {
  check.same_device(t, name, x);
  check.that(of_same_shape(t, x), std::string("`") + name + "` of shape " + sizes_name(x),
             sizes_name(t));
  return torch::stable::contiguous(t);
}

Tensor bernoulli_blend(const Tensor& x, MaybeTensor other, const Tensor& seed, double p,
                       MaybeTensor p_tensor, MaybeTensor each, MaybeTensor given, std::string blend,
                       bool draw, bool scaled) {
  const Checks check("bernoulli_blend");
  BlendArgs args{};
  args.dtype = check.floating(x, "x");
  check.seed(seed, x);
  args.blend = static_cast<Blend>(
      check.one_of(blend, "blend", {"mix", "product", "select", "other", "sample"}));
  args.seed = const_data<int64_t>(seed);
  args.p = p;
  args.p_at = check_p(check, p, p_tensor, x);
  args.draw = draw;
  args.scaled = scaled;
  const bool sample = args.blend == Blend::sample;
  check.that(!scaled || !(draw || each.has_value() || sample),
             "`scaled` without `draw` and probabilities of elements", "both");
  const Tensor a = torch::stable::contiguous(x);
  Tensor b, own, mask;
  BlendRow row{a.const_data_ptr(), nullptr, nullptr, a.numel(), 0};
  if (other.has_value()) {
    b = check_twin(check, *other, "other", x);
    check.that(b.scalar_type() == x.scalar_type(), "`other` of the dtype of `x`", "another");
    row.b = b.const_data_ptr();
  }
  if (each.has_value()) {
    check.that(!sample, "no `each` beside the probabilities of a sample, which are `x`", "one");
    own = check_twin(check, *each, "each", x);
    if (own.scalar_type() == ScalarType::Float) {
      args.each = const_data<float>(own);
    } else {
      check.that(own.scalar_type() == x.scalar_type(), "`each` of dtype float32 or that of `x`",
                 "another");
      args.own = own.const_data_ptr();
    }
  }
  if (given.has_value()) {
    check.dtype(*given, "given", ScalarType::Bool, "bool");
    mask = check_twin(check, *given, "given", x);
    args.given = static_cast<const uint8_t*>(mask.const_data_ptr());
  }
  Tensor y = new_tensor(x, sizes_of(x), x.scalar_type());
  row.y = y.mutable_data_ptr();
  args.rows = &row;
  args.count = 1;
  if (row.numel > 0) backend::blend(args, OnDevice(x));
  return laid_out(y, x);
}

void mixout_(Tensors weights, Tensors pretrained, const Tensor& seed, double p,
             MaybeTensor p_tensor, bool scaled) {
  const Checks check("mixout_");
  if (weights.empty()) return;
  check_like(check, weights, "weights", weights, "weights");
  if (!pretrained.empty()) check_like(check, pretrained, "pretrained", weights, "weights");
  check.seed(seed, weights[0]);
  BlendArgs args{};
  args.blend = pretrained.empty() ? Blend::product : Blend::mix;
  args.seed = const_data<int64_t>(seed);
  args.p = p;
  args.p_at = check_p(check, p, p_tensor, weights[0]);
  args.scaled = scaled;

  constexpr int kDtypes = 4;
  std::vector<BlendRow> rows[kDtypes];
  Written written;
  Read read;
  int64_t first = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Dtype dtype = check.floating(weights[i], "weights");
    if (!pretrained.empty() && pretrained[i].scalar_type() != weights[i].scalar_type())
      check.that(false, item_name("pretrained", i) + " of the dtype of " + item_name("weights", i),
                 "another");
    const int64_t numel = weights[i].numel();
    if (numel > 0) {
      void* const w = written.row_major(weights[i], true);
      rows[static_cast<int>(dtype)].push_back(
          {w, pretrained.empty() ? nullptr : read.row_major(pretrained[i]), w, numel, first});
    }
    first += list_span(numel);
  }
  const OnDevice device(weights[0]);
  for (int dtype = 0; dtype < kDtypes; ++dtype) {
    if (rows[dtype].empty()) continue;
    args.dtype = static_cast<Dtype>(dtype);
    args.rows = rows[dtype].data();
    args.count = static_cast<int64_t>(rows[dtype].size());
    backend::blend(args, device);
  }
  written.copy_back();
}

Tensor prefix_mask(const Tensor& x, const Tensor& k, int64_t dim) {
  const Checks check("prefix_mask");
  PrefixArgs args{};
  args.dtype = check.floating(x, "x");
  check.that(dim >= 0 && dim < x.dim(), "`dim` in [0, " + std::to_string(x.dim()) + ")",
             std::to_string(dim));
  check.same_device(k, "k", x);
  check.dtype(k, "k", ScalarType::Long, "int64");
  args.outer = args.inner = 1;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (d < dim) args.outer *= x.size(d);
    if (d > dim) args.inner *= x.size(d);
  }
  args.size = x.size(dim);
  const bool samples = k.dim() == 1 && dim > 0 && k.size(0) == x.size(0);
  check.that(samples || k.numel() == 1,
             "`k` of one element, or of those of the first dimension of `x` where `dim` is another",
             sizes_name(k));
  const Tensor lengths = torch::stable::contiguous(k);
  args.k = const_data<int64_t>(lengths);
  const Tensor in = torch::stable::contiguous(x);
  Tensor y = new_tensor(x, sizes_of(x), x.scalar_type());
  args.x = in.const_data_ptr();
  args.y = y.mutable_data_ptr();
  if (in.numel() > 0) {
    args.per = args.outer / k.numel();
    backend::prefix(args, OnDevice(x));
  }
  return laid_out(y, x);
}

Tensor uniform_draws(const Tensor& seed, int64_t count) {
  const Checks check("uniform_draws");
  check.seed(seed, seed);
  check.that(count >= 0, "`count` to be at least 0", std::to_string(count));
  Tensor u = new_tensor(seed, {count}, ScalarType::Double);
  if (count > 0)
    backend::uniform(UniformArgs{mutable_data<double>(u), count, const_data<int64_t>(seed)},
                     OnDevice(seed));
  return u;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "bernoulli_blend(Tensor x, Tensor? other, Tensor seed, float p, Tensor? p_tensor=None, "
      "Tensor? each=None, Tensor? given=None, str blend=\"mix\", bool draw=False, "
      "bool scaled=False) -> Tensor");
  m.def(
      "mixout_(Tensor(a!)[] weights, Tensor[] pretrained, Tensor seed, float p, "
      "Tensor? p_tensor=None, bool scaled=True) -> ()");
  m.def("prefix_mask(Tensor x, Tensor k, int dim) -> Tensor");
  m.def("uniform_draws(Tensor seed, int count) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("bernoulli_blend", TORCH_BOX(&bernoulli_blend));
  m.impl("mixout_", TORCH_BOX(&mixout_));
  m.impl("prefix_mask", TORCH_BOX(&prefix_mask));
  m.impl("uniform_draws", TORCH_BOX(&uniform_draws));
}

}  // namespace regkern::masks
