#include "quantize/histogram.h"
#include "quantize/moments.h"
#include "quantize/op.h"
#include "quantize/range.h"

// Ranges, moments and histograms.

namespace regkern::quantize {
namespace {

// ---- block_range ----

std::tuple<Tensor, Tensor> block_range(const Tensor& x, std::vector<int64_t> blocks) {
  const Checks check("block_range");
  const Dtype dtype = check.floating(x, "x");
  const Blocks b = parse_blocks(check, blocks, x.numel());
  const Dense in = dense(x);
  const int64_t count = block_count(b);
  Tensor minimum = new_tensor(x, {count}, compute_type(dtype));
  Tensor maximum = new_tensor(x, {count}, compute_type(dtype));
  if (count > 0)
    backend::block_range(BlockRangeArgs{dtype, in.tensor.const_data_ptr(), b,
                                        minimum.mutable_data_ptr(), maximum.mutable_data_ptr()},
                         OnDevice(x));
  return {minimum, maximum};
}

// ---- moments ----

// The axis from 0 on, or -1 for all of the tensor.
int64_t parse_axis(const Checks& check, const Tensor& x, std::optional<int64_t> axis) {
  if (!axis.has_value()) return -1;
  check.that(*axis >= -x.dim() && *axis < x.dim(),
             "`axis` in [" + std::to_string(-x.dim()) + ", " + std::to_string(x.dim()) + ")",
             std::to_string(*axis));
  return *axis < 0 ? *axis + x.dim() : *axis;
}

// Dense memory as (outer, channels, inner).
MomentsItem item_of(const Dense& d, int64_t axis) {
  const Tensor& t = d.tensor;
  MomentsItem m{t.const_data_ptr(), nullptr, 1, 1, 1, 0};
  if (axis < 0) {
    m.inner = t.numel();
    return m;
  }
  // Where the axes lie in memory.
  const auto place = [&](int64_t i) {
    return !d.channels_last || i == 0 ? i : i == 1 ? t.dim() - 1 : i - 1;
  };
  m.channels = t.size(axis);
  for (int64_t i = 0; i < t.dim(); ++i) {
    if (place(i) < place(axis)) m.outer *= t.size(i);
    if (place(i) > place(axis)) m.inner *= t.size(i);
  }
  return m;
}

// Memory in which a channel's elements have their row-major order: the sums depend on it.
Dense ordered(const Tensor& x, int64_t axis) {
  const Dense d = dense(x);
  if (!d.channels_last || axis == 1) return d;
  return {torch::stable::contiguous(x), false};
}

struct Moments {
  Tensor range, moments;
};

// The moments of items, tensor by tensor of one dtype.
Moments new_moments(const Tensor& like, int64_t channels) {
  return {new_tensor(like, {3, channels}, ScalarType::Double),
          new_tensor(like, {4, channels}, ScalarType::Double)};
}

void run_moments(Dtype dtype, const std::vector<MomentsItem>& items, const Moments& out,
                 Context context) {
  const auto count = static_cast<int64_t>(items.size());
  if (count == 0 || out.range.size(1) == 0) return;
  // The CPU keeps its partial results for itself.
  const int64_t partials = kValuesReadable ? 0 : moments_partials(dtype, items.data(), count);
  Tensor space = new_tensor(
      out.range, {partials * static_cast<int64_t>(sizeof(MomentsPartial) / sizeof(double))},
      ScalarType::Double);
  backend::moments(MomentsArgs{dtype, items.data(), count, mutable_data<double>(out.range),
                               mutable_data<double>(out.moments), out.range.size(1),
                               mutable_data<MomentsPartial>(space)},
                   context);
}

std::tuple<Tensor, Tensor> moments(const Tensor& x, std::optional<int64_t> axis) {
  const Checks check("moments");
  const Dtype dtype = check.floating(x, "x");
  const int64_t channel_axis = parse_axis(check, x, axis);
  const Dense in = ordered(x, channel_axis);
  const MomentsItem item = item_of(in, channel_axis);
  const Moments out = new_moments(x, item.channels);
  run_moments(dtype, {item}, out, OnDevice(x));
  return {out.range, out.moments};
}

void check_rows(const Checks& check, const Tensor& t, const char* name, const Tensor& like,
                int64_t channels) {
  check.same_device(t, name, like);
  check.dtype(t, name, ScalarType::Double, "float64");
  check.shape(t, name, {4, channels});
}

void run_backward(Dtype dtype, const std::vector<MomentsItem>& items, const Tensor& moments,
                  const Tensor& grad, Context context) {
  if (items.empty()) return;
  int64_t channels = kValuesReadable ? 0 : moments.size(1);
  Tensor space = new_tensor(
      moments, {channels * static_cast<int64_t>(sizeof(MomentsCubicAs<double>) / sizeof(double))},
      ScalarType::Double);
  backend::moments_backward(
      MomentsBackwardArgs{dtype, items.data(), static_cast<int64_t>(items.size()),
                          const_data<double>(moments), const_data<double>(grad), moments.size(1),
                          space.mutable_data_ptr()},
      context);
}

Tensor moments_backward(const Tensor& x, const Tensor& moments, const Tensor& grad,
                        std::optional<int64_t> axis) {
  const Checks check("moments_backward");
  const Dtype dtype = check.floating(x, "x");
  const int64_t channel_axis = parse_axis(check, x, axis);
  const Dense in = dense(x);
  MomentsItem item = item_of(in, channel_axis);
  check_rows(check, moments, "moments", x, item.channels);
  check_rows(check, grad, "grad", x, item.channels);
  Tensor dx = torch::stable::empty_like(in.tensor);
  item.dx = dx.mutable_data_ptr();
  if (x.numel() > 0)
    run_backward(dtype, {item}, torch::stable::contiguous(moments), torch::stable::contiguous(grad),
                 OnDevice(x));
  return dx;
}

// ---- moments of a list of tensors: one channel each ----

// At least one tensor: the dispatcher knows no device of none.
void check_list(const Checks& check, const std::vector<Tensor>& xs) {
  for (const Tensor& x : xs) {
    check.floating(x, "xs");
    check.same_device(x, "xs", xs[0]);
  }
}

constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float64, Dtype::bfloat16, Dtype::float16};

std::tuple<Tensor, Tensor> moments_list(std::vector<Tensor> xs) {
  const Checks check("moments_list");
  check_list(check, xs);
  const Moments out = new_moments(xs[0], static_cast<int64_t>(xs.size()));
  const OnDevice context(xs[0]);
  std::vector<Tensor> kept;
  for (const Dtype dtype : kDtypes) {
    std::vector<MomentsItem> items;
    for (size_t i = 0; i < xs.size(); ++i) {
      if (check.floating(xs[i], "xs") != dtype) continue;
      kept.push_back(ordered(xs[i], -1).tensor);
      items.push_back(item_of({kept.back(), false}, -1));
      items.back().first = static_cast<int64_t>(i);
    }
    run_moments(dtype, items, out, context);
  }
  return {out.range, out.moments};
}

std::vector<Tensor> moments_list_backward(std::vector<Tensor> xs, const Tensor& moments,
                                          const Tensor& grad) {
  const Checks check("moments_list_backward");
  check_list(check, xs);
  check_rows(check, moments, "moments", xs[0], static_cast<int64_t>(xs.size()));
  check_rows(check, grad, "grad", xs[0], static_cast<int64_t>(xs.size()));
  const OnDevice context(xs[0]);
  const Tensor m = torch::stable::contiguous(moments), g = torch::stable::contiguous(grad);
  std::vector<Dense> kept;
  std::vector<Tensor> dxs;
  for (const Tensor& x : xs) {
    kept.push_back(dense(x));
    dxs.push_back(torch::stable::empty_like(kept.back().tensor));
  }
  for (const Dtype dtype : kDtypes) {
    std::vector<MomentsItem> items;
    for (size_t i = 0; i < xs.size(); ++i) {
      if (check.floating(xs[i], "xs") != dtype || xs[i].numel() == 0) continue;
      items.push_back(item_of(kept[i], -1));
      items.back().first = static_cast<int64_t>(i);
      items.back().dx = dxs[i].mutable_data_ptr();
    }
    run_backward(dtype, items, m, g, context);
  }
  return dxs;
}

// ---- histogram ----

std::tuple<Tensor, Tensor> histogram(const Tensor& x, const Tensor& low, const Tensor& high,
                                     int64_t bins, bool clip, bool magnitude) {
  const Checks check("histogram");
  const Dtype dtype = check.floating(x, "x");
  constexpr int64_t kMostBins = int64_t{1} << 24;
  check.that(bins >= 1 && bins <= kMostBins, "`bins` in [1, 2^24]", std::to_string(bins));
  const auto bound = [&](const Tensor& t, const char* name) {
    check.same_device(t, name, x);
    check.dtype(t, name, ScalarType::Double, "float64");
    check.that(t.numel() == 1, std::string("`") + name + "` of one element", sizes_name(t));
  };
  bound(low, "low");
  bound(high, "high");
  const Dense in = dense(x);
  Tensor counts = new_tensor(x, {bins}, ScalarType::Long);
  Tensor outside = new_tensor(x, {kOutside}, ScalarType::Long);
  backend::histogram(
      HistogramArgs{dtype, in.tensor.const_data_ptr(), x.numel(), const_data<double>(low),
                    const_data<double>(high), bins, magnitude, clip, mutable_data<int64_t>(counts),
                    mutable_data<int64_t>(outside)},
      OnDevice(x));
  return {counts, outside};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def("block_range(Tensor x, int[] blocks) -> (Tensor minimum, Tensor maximum)");
  m.def("moments(Tensor x, int? axis=None) -> (Tensor range, Tensor moments)");
  m.def("moments_backward(Tensor x, Tensor moments, Tensor grad, int? axis=None) -> Tensor");
  m.def("moments_list(Tensor[] xs) -> (Tensor range, Tensor moments)");
  m.def("moments_list_backward(Tensor[] xs, Tensor moments, Tensor grad) -> Tensor[]");
  m.def(
      "histogram(Tensor x, Tensor low, Tensor high, int bins, bool clip=False, "
      "bool magnitude=False) -> (Tensor counts, Tensor outside)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("block_range", TORCH_BOX(&block_range));
  m.impl("moments", TORCH_BOX(&moments));
  m.impl("moments_backward", TORCH_BOX(&moments_backward));
  m.impl("moments_list", TORCH_BOX(&moments_list));
  m.impl("moments_list_backward", TORCH_BOX(&moments_list_backward));
  m.impl("histogram", TORCH_BOX(&histogram));
}

}  // namespace regkern::quantize
