#include "proximal/row_gradient.h"
#include "proximal/row_threshold.h"
#include "proximal/slices_op.h"

// Projections and proximal operators that are one threshold per slice, and the losses of sparse
// simplex maps.

namespace regkern::proximal {
namespace {

RowLaw parse_law(const Checks& check, const std::string& law) {
  return static_cast<RowLaw>(
      check.one_of(law, "law", {"simplex", "l1_ball", "linf", "exclusive", "capped", "entmax15"}));
}

const void* check_weights(const Checks& check, const MaybeTensor& weights, RowLaw law,
                          const Slices& slices, const Tensor& x, Dtype dtype) {
  if (!weights.has_value()) return nullptr;
  check.that(law == RowLaw::l1_ball || law == RowLaw::exclusive, "no `weights` with this law",
             "some");
  check.same_device(*weights, "weights", x);
  check.that(weights->scalar_type() == compute_type(dtype) && weights->is_contiguous() &&
                 weights->numel() == slice_size(slices),
             "contiguous `weights` in the compute type, " + std::to_string(slice_size(slices)) +
                 " of them",
             sizes_name(*weights));
  return weights->const_data_ptr();
}

std::tuple<Tensor, Tensor> row_threshold(const Tensor& x, const Tensor& t,
                                         std::vector<int64_t> slices, const std::string& law,
                                         const MaybeTensor& weights, double cap) {
  const Checks check("row_threshold");
  const Dtype dtype = check.floating(x, "x");
  const Slices layout = parse_slices(check, slices, x.numel());
  const RowLaw kind = parse_law(check, law);
  const int64_t stride = check_per_slice(check, t, "t", layout, x);
  const void* w = check_weights(check, weights, kind, layout, x, dtype);
  const Tensor in = torch::stable::contiguous(x);
  Tensor y = new_tensor(x, sizes_of(x), x.scalar_type());
  Tensor theta = new_tensor(x, {slice_count(layout)}, compute_type(dtype));
  if (x.numel() == 0) return {y, torch::stable::fill_(theta, 0.0)};
  const RowThresholdItem item{in.const_data_ptr(),
                              y.mutable_data_ptr(),
                              const_data<double>(t),
                              stride,
                              theta.mutable_data_ptr(),
                              layout,
                              0};
  backend::row_threshold(
      RowThresholdArgs{dtype, kind, &item, 1, w, cap, nullptr, nullptr, nullptr, nullptr, 0},
      OnDevice(x));
  return {y, theta};
}

std::tuple<Tensor, Tensor> row_threshold_backward(const Tensor& g, const Tensor& reference,
                                                  const Tensor& theta, const Tensor& t,
                                                  std::vector<int64_t> slices,
                                                  const std::string& law,
                                                  const MaybeTensor& weights, double cap,
                                                  const MaybeTensor& gt) {
  const Checks check("row_threshold_backward");
  const Dtype dtype = check.floating(reference, "reference");
  check_same(check, g, "g", reference);
  const Slices layout = parse_slices(check, slices, reference.numel());
  const RowLaw kind = parse_law(check, law);
  const int64_t stride = check_per_slice(check, t, "t", layout, reference);
  const void* w = check_weights(check, weights, kind, layout, reference, dtype);
  check.same_device(theta, "theta", reference);
  check.that(theta.scalar_type() == compute_type(dtype) && theta.is_contiguous() &&
                 theta.numel() == slice_count(layout),
             "contiguous `theta` in the compute type, one per slice", sizes_name(theta));
  if (gt.has_value()) {
    check_per_slice(check, *gt, "gt", layout, reference);
    check.that(gt->numel() == slice_count(layout), "`gt` with one element per slice",
               sizes_name(*gt));
  }
  const Tensor upstream = torch::stable::contiguous(g);
  const Tensor ref = torch::stable::contiguous(reference);
  Tensor dx = new_tensor(g, sizes_of(g), g.scalar_type());
  Tensor dt = new_tensor(g, {slice_count(layout)}, ScalarType::Double);
  if (g.numel() == 0) return {dx, torch::stable::fill_(dt, 0.0)};
  backend::row_gradient(
      RowGradientArgs{dtype, kind, upstream.const_data_ptr(), ref.const_data_ptr(),
                      theta.const_data_ptr(), const_data<double>(t), stride, w, cap,
                      data_or_null<double>(gt), layout, dx.mutable_data_ptr(),
                      mutable_data<double>(dt)},
      OnDevice(g));
  return {dx, dt};
}

constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float64, Dtype::bfloat16, Dtype::float16};

// The thresholds are written as well: an op that writes returns no list under torch.compile.
Tensor row_threshold_(std::vector<Tensor> xs, std::vector<Tensor> thetas, std::vector<Tensor> ts,
                      std::vector<int64_t> slices, const std::string& law) {
  const Checks check("row_threshold_");
  const RowLaw kind = parse_law(check, law);
  check.that(!xs.empty(), "at least one tensor in `xs`", "none");
  check.that(ts.size() == 1 || ts.size() == xs.size(),
             "`ts` of 1 or " + std::to_string(xs.size()) + " tensors", std::to_string(ts.size()));
  check.that(slices.size() == 4 * xs.size(), "`slices` of 4 numbers per tensor",
             std::to_string(slices.size()));
  check.that(thetas.size() == xs.size(), "as many `thetas` as `xs`, " + std::to_string(xs.size()),
             std::to_string(thetas.size()));
  std::vector<Tensor> kept;
  std::vector<RowThresholdItem> items;
  std::vector<Dtype> dtypes;
  for (size_t i = 0; i < xs.size(); ++i) {
    const Tensor &x = xs[i], &t = ts[ts.size() == 1 ? 0 : i];
    dtypes.push_back(check.floating(x, "xs"));
    check.same_device(x, "xs", xs[0]);
    const Slices layout = parse_slices(check, slices, x.numel(), 4 * i);
    const int64_t stride = check_per_slice(check, t, "ts", layout, x);
    kept.push_back(torch::stable::contiguous(x));
    check.same_device(thetas[i], "thetas", x);
    check.that(thetas[i].scalar_type() == compute_type(dtypes.back()) &&
                   thetas[i].is_contiguous() && thetas[i].numel() == slice_count(layout),
               "contiguous `thetas` in the compute type, one per slice", sizes_name(thetas[i]));
    if (x.numel() == 0) torch::stable::fill_(thetas[i], 0.0);
    items.push_back({kept[i].const_data_ptr(), kept[i].mutable_data_ptr(), const_data<double>(t),
                     stride, thetas[i].mutable_data_ptr(), layout, 0});
  }
  Tensor zeros = new_tensor(xs[0], {}, ScalarType::Long);
  torch::stable::fill_(zeros, 0.0);
  const OnDevice context(xs[0]);
  for (const Dtype dtype : kDtypes) {
    std::vector<RowThresholdItem> some;
    int64_t first = 0;
    for (size_t i = 0; i < xs.size(); ++i) {
      if (dtypes[i] != dtype || xs[i].numel() == 0) continue;
      some.push_back(items[i]);
      some.back().first = first;
      first += slice_count(items[i].slices);
    }
    if (some.empty()) continue;
    backend::row_threshold(
        RowThresholdArgs{dtype, kind, some.data(), static_cast<int64_t>(some.size()), nullptr, 0.0,
                         mutable_data<int64_t>(zeros), nullptr, nullptr, nullptr, 0},
        context);
  }
  for (size_t i = 0; i < xs.size(); ++i)
    if (!xs[i].is_contiguous()) torch::stable::copy_(xs[i], kept[i]);
  return zeros;
}

std::tuple<Tensor, Tensor> fenchel_young_loss(const Tensor& x, std::vector<int64_t> slices,
                                              const std::string& law, const MaybeTensor& label,
                                              const MaybeTensor& target, int64_t ignore) {
  const Checks check("fenchel_young_loss");
  const Dtype dtype = check.floating(x, "x");
  const Slices layout = parse_slices(check, slices, x.numel());
  const RowLaw kind = parse_law(check, law);
  check.that(kind == RowLaw::simplex || kind == RowLaw::entmax15, "`law` to be simplex or entmax15",
             law);
  check.that(label.has_value() != target.has_value(), "either `label` or `target`",
             label.has_value() ? "both" : "neither");
  Tensor q = x;
  if (label.has_value()) {
    check.same_device(*label, "label", x);
    check.dtype(*label, "label", ScalarType::Long, "int64");
    check.that(label->is_contiguous() && label->numel() == slice_count(layout),
               "contiguous `label` with one element per slice", sizes_name(*label));
  } else {
    check_same(check, *target, "target", x);
    q = torch::stable::contiguous(*target);
  }
  const Tensor in = torch::stable::contiguous(x);
  Tensor grad = new_tensor(x, sizes_of(x), x.scalar_type());
  Tensor theta = new_tensor(x, {slice_count(layout)}, compute_type(dtype));
  Tensor loss = new_tensor(x, {slice_count(layout)}, compute_type(dtype));
  Tensor one = new_tensor(x, {1}, ScalarType::Double);
  if (x.numel() == 0) return {torch::stable::fill_(loss, 0.0), grad};
  torch::stable::fill_(one, 1.0);
  const RowThresholdItem item{in.const_data_ptr(),
                              grad.mutable_data_ptr(),
                              const_data<double>(one),
                              0,
                              theta.mutable_data_ptr(),
                              layout,
                              0};
  backend::row_threshold(
      RowThresholdArgs{dtype, kind, &item, 1, nullptr, 0.0, nullptr, loss.mutable_data_ptr(),
                       data_or_null<int64_t>(label),
                       target.has_value() ? q.const_data_ptr() : nullptr, ignore},
      OnDevice(x));
  return {loss, grad};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "row_threshold(Tensor x, Tensor t, int[] slices, str law, Tensor? weights=None, "
      "float cap=0.0) -> (Tensor y, Tensor theta)");
  m.def(
      "row_threshold_backward(Tensor g, Tensor reference, Tensor theta, Tensor t, int[] slices, "
      "str law, Tensor? weights=None, float cap=0.0, Tensor? gt=None) -> (Tensor dx, Tensor dt)");
  m.def(
      "row_threshold_(Tensor(a!)[] xs, Tensor(b!)[] thetas, Tensor[] ts, int[] slices, str law) "
      "-> Tensor zeros");
  m.def(
      "fenchel_young_loss(Tensor x, int[] slices, str law, Tensor? label=None, "
      "Tensor? target=None, int ignore=-100) -> (Tensor loss, Tensor grad)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("row_threshold", TORCH_BOX(&row_threshold));
  m.impl("row_threshold_backward", TORCH_BOX(&row_threshold_backward));
  m.impl("row_threshold_", TORCH_BOX(&row_threshold_));
  m.impl("fenchel_young_loss", TORCH_BOX(&fenchel_young_loss));
}

}  // namespace regkern::proximal
