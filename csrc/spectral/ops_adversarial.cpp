#include <string>
#include <tuple>
#include <vector>

#include "core/op_list.h"
#include "spectral/normalize_samples.h"
#include "spectral/random_directions.h"
#include "spectral/sample_combine.h"
#include "spectral/sample_sums.h"
#include "spectral/softmax_kl.h"

namespace regkern::spectral {
namespace {

Tensor row_major(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

void check_same(const Checks& check, const Tensor& t, const char* name, const Tensor& like) {
  check.same_device(t, name, like);
  check.dtype(t, name, like.scalar_type(), "the first tensor's");
  if (!of_same_shape(t, like))
    check.that(false, std::string("`") + name + "` of shape " + sizes_name(like), sizes_name(t));
}

// Numbers for each sample, in the compute type.
void check_numbers(const Checks& check, const Tensor& t, const char* name, const Tensor& like,
                   Dtype dtype, std::initializer_list<int64_t> sizes) {
  check.same_device(t, name, like);
  check.dtype(t, name, compute_type(dtype), dtype == Dtype::float64 ? "float64" : "float32");
  check.shape(t, name, sizes);
}

// The first dimension counts the samples; `lengths` is kept by the caller.
Samples samples_of(const Checks& check, const Tensor& x, const MaybeTensor& lengths) {
  check.that(x.dim() >= 1, "`x` of at least one dimension", sizes_name(x));
  const int64_t count = x.size(0);
  int64_t size = 1;
  for (int64_t d = 1; d < x.dim(); ++d) size *= x.size(d);
  if (lengths.has_value()) {
    check.same_device(*lengths, "lengths", x);
    check.dtype(*lengths, "lengths", ScalarType::Long, "int64");
    check.shape(*lengths, "lengths", {count});
    check.that(lengths->is_contiguous(), "contiguous `lengths`", "a strided one");
  }
  return {count, size, data_or_null<int64_t>(lengths)};
}

Tensor sample_sums(const Tensor& a, const Tensor& b, MaybeTensor lengths, std::string kind) {
  const Checks check("sample_sums");
  SampleSumsArgs args{};
  args.dtype = check.floating(a, "a");
  check_same(check, b, "b", a);
  args.samples = samples_of(check, a, lengths);
  args.kind =
      static_cast<SampleSum>(check.one_of(kind, "kind", {"squares", "difference", "products"}));
  const Tensor as = row_major(a), bs = row_major(b);
  const Tensor partial =
      new_tensor(a, {partial_count(args.kind, args.samples)}, ScalarType::Double);
  const Tensor out =
      new_tensor(a, {sum_count(args.kind), args.samples.count}, compute_type(args.dtype));
  args.a = as.const_data_ptr();
  args.b = bs.const_data_ptr();
  args.partial = mutable_data<double>(partial);
  args.out = out.mutable_data_ptr();
  backend::sample_sums(args, OnDevice(a));
  return out;
}

Tensor sample_combine(const Tensor& a, const Tensor& b, const Tensor& p, const Tensor& q,
                      MaybeTensor lengths) {
  const Checks check("sample_combine");
  SampleCombineArgs args{};
  args.dtype = check.floating(a, "a");
  check_same(check, b, "b", a);
  args.samples = samples_of(check, a, lengths);
  check_numbers(check, p, "p", a, args.dtype, {args.samples.count});
  check_numbers(check, q, "q", a, args.dtype, {args.samples.count});
  const Tensor as = row_major(a), bs = row_major(b), ps = row_major(p), qs = row_major(q);
  const Tensor y = new_tensor(a, sizes_of(a), a.scalar_type());
  args.a = as.const_data_ptr();
  args.b = bs.const_data_ptr();
  args.p = ps.const_data_ptr();
  args.q = qs.const_data_ptr();
  args.y = y.mutable_data_ptr();
  backend::sample_combine(args, OnDevice(a));
  return laid_out(y, a);
}

std::tuple<Tensor, Tensor> normalize_samples(const Tensor& x, const Tensor& scale,
                                             MaybeTensor lengths) {
  const Checks check("normalize_samples");
  NormalizeSamplesArgs args{};
  args.dtype = check.floating(x, "x");
  args.samples = samples_of(check, x, lengths);
  const int64_t count = args.samples.count;
  check.same_device(scale, "scale", x);
  check.dtype(scale, "scale", compute_type(args.dtype), "the compute type");
  check.that(scale.dim() == 1 && (scale.numel() == 1 || scale.numel() == count),
             "`scale` of one number, or of one for each sample", sizes_name(scale));
  const Tensor xs = row_major(x), scales = row_major(scale);
  const Tensor y = new_tensor(x, sizes_of(x), x.scalar_type());
  const Tensor norm = new_tensor(x, {count}, compute_type(args.dtype));
  // The CPU keeps its sums for itself.
  const int64_t room = kValuesReadable ? 0 : count * (piece_count(args.samples.size) + 1);
  const Tensor partial = new_tensor(x, {room}, ScalarType::Double);
  args.x = xs.const_data_ptr();
  args.scale = scales.const_data_ptr();
  args.scale_stride = scale.numel() == 1 ? 0 : 1;
  args.y = y.mutable_data_ptr();
  args.norm = norm.mutable_data_ptr();
  args.partial = mutable_data<double>(partial);
  backend::normalize_samples(args, OnDevice(x));
  return {laid_out(y, x), norm};
}

// ---- divergences of logits ----

std::tuple<Tensor, Tensor> softmax_kl(const Tensor& p, const Tensor& q) {
  const Checks check("softmax_kl");
  SoftmaxKLArgs args{};
  args.dtype = check.floating(p, "p");
  check_same(check, q, "q", p);
  check.that(p.dim() == 2, "`p` of two dimensions", sizes_name(p));
  args.rows = p.size(0);
  args.size = p.size(1);
  const Tensor ps = row_major(p), qs = row_major(q);
  const Tensor value = new_tensor(p, {args.rows}, compute_type(args.dtype));
  const Tensor stats = new_tensor(p, {kRowStats, args.rows}, compute_type(args.dtype));
  args.p = ps.const_data_ptr();
  args.q = qs.const_data_ptr();
  args.value = value.mutable_data_ptr();
  args.stats = stats.mutable_data_ptr();
  backend::softmax_kl(args, OnDevice(p));
  return {value, stats};
}

std::tuple<Tensor, Tensor> softmax_kl_backward(const Tensor& g, const Tensor& p, const Tensor& q,
                                               const Tensor& value, const Tensor& stats,
                                               bool both) {
  const Checks check("softmax_kl_backward");
  SoftmaxKLBackwardArgs args{};
  args.dtype = check.floating(p, "p");
  check_same(check, q, "q", p);
  check.that(p.dim() == 2, "`p` of two dimensions", sizes_name(p));
  args.rows = p.size(0);
  args.size = p.size(1);
  check_numbers(check, g, "g", p, args.dtype, {args.rows});
  check_numbers(check, value, "value", p, args.dtype, {args.rows});
  check_numbers(check, stats, "stats", p, args.dtype, {kRowStats, args.rows});
  const Tensor ps = row_major(p), qs = row_major(q), gs = row_major(g);
  const Tensor values = row_major(value), all = row_major(stats);
  const Tensor dp = new_tensor(p, {both ? args.rows : 0, args.size}, p.scalar_type());
  const Tensor dq = new_tensor(p, {args.rows, args.size}, p.scalar_type());
  args.g = gs.const_data_ptr();
  args.p = ps.const_data_ptr();
  args.q = qs.const_data_ptr();
  args.value = values.const_data_ptr();
  args.stats = all.const_data_ptr();
  args.dp = both ? dp.mutable_data_ptr() : nullptr;
  args.dq = dq.mutable_data_ptr();
  backend::softmax_kl_backward(args, OnDevice(p));
  return {dp, dq};
}

// ---- random directions ----

constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float64, Dtype::bfloat16, Dtype::float16};

// What a list and a tensor alone have in common.
Tensors directions(const Checks& check, const Tensors& xs, const Tensor& seed, const Tensor& scale,
                   const std::string& kind, bool add) {
  if (xs.empty()) check.that(false, "a tensor in `xs`", "none");
  check.seed(seed, xs[0]);
  check.same_device(scale, "scale", xs[0]);
  check.dtype(scale, "scale", ScalarType::Double, "float64");
  check.that(scale.numel() == 1, "`scale` of one element", sizes_name(scale));
  RandomDirectionsArgs args{};
  args.kind = static_cast<Distribution>(check.one_of(kind, "kind", {"normal", "rademacher"}));
  args.scale = const_data<double>(scale);
  args.seed = const_data<int64_t>(seed);
  const OnDevice context(xs[0]);
  Read read;
  Tensors ys;
  std::vector<int64_t> firsts;
  int64_t first = 0;
  for (const Tensor& x : xs) {
    check.same_device(x, "xs", xs[0]);
    ys.push_back(new_tensor(x, sizes_of(x), x.scalar_type()));
    firsts.push_back(first);
    first += list_span(x.numel());
  }
  for (const Dtype dtype : kDtypes) {
    // Rows of one dtype may have gaps between them, where the others are.
    std::vector<DirectionRow> rows;
    for (size_t i = 0; i < xs.size(); ++i) {
      if (check.floating(xs[i], "xs") != dtype || xs[i].numel() == 0) continue;
      rows.push_back({add ? read.row_major(xs[i]) : nullptr, ys[i].mutable_data_ptr(),
                      xs[i].numel(), firsts[i]});
    }
    if (rows.empty()) continue;
    args.dtype = dtype;
    args.rows = rows.data();
    args.count = static_cast<int64_t>(rows.size());
    backend::random_directions(args, context);
  }
  return ys;
}

Tensors random_directions(Tensors xs, const Tensor& seed, const Tensor& scale, std::string kind) {
  return directions(Checks("random_directions"), xs, seed, scale, kind, false);
}

Tensor add_noise(const Tensor& x, const Tensor& seed, const Tensor& scale, std::string kind) {
  return laid_out(directions(Checks("add_noise"), {x}, seed, scale, kind, true)[0], x);
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def("sample_sums(Tensor a, Tensor b, Tensor? lengths, str kind) -> Tensor");
  m.def("sample_combine(Tensor a, Tensor b, Tensor p, Tensor q, Tensor? lengths) -> Tensor");
  m.def("normalize_samples(Tensor x, Tensor scale, Tensor? lengths) -> (Tensor y, Tensor norm)");
  m.def("softmax_kl(Tensor p, Tensor q) -> (Tensor value, Tensor stats)");
  m.def(
      "softmax_kl_backward(Tensor g, Tensor p, Tensor q, Tensor value, Tensor stats, bool both) "
      "-> (Tensor dp, Tensor dq)");
  m.def("random_directions(Tensor[] xs, Tensor seed, Tensor scale, str kind) -> Tensor[]");
  m.def("add_noise(Tensor x, Tensor seed, Tensor scale, str kind) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("sample_sums", TORCH_BOX(&sample_sums));
  m.impl("sample_combine", TORCH_BOX(&sample_combine));
  m.impl("normalize_samples", TORCH_BOX(&normalize_samples));
  m.impl("softmax_kl", TORCH_BOX(&softmax_kl));
  m.impl("softmax_kl_backward", TORCH_BOX(&softmax_kl_backward));
  m.impl("random_directions", TORCH_BOX(&random_directions));
  m.impl("add_noise", TORCH_BOX(&add_noise));
}

}  // namespace regkern::spectral
