#include "proximal/isotonic.h"
#include "proximal/segment_mean.h"
#include "proximal/slices_op.h"
#include "proximal/total_variation.h"

// Total variation and isotonic regression along a dimension, and the means of their segments.

namespace regkern::proximal {
namespace {

Slices parse_lines(const Checks& check, const std::vector<int64_t>& slices, int64_t numel) {
  check.that(slices.size() == 4 && slices[3] == 1,
             "`slices` of 4 numbers along a dimension (batch, outer, count, 1)",
             std::to_string(slices.size()));
  return parse_slices(check, slices, numel);
}

Tensor new_jump(const Tensor& x) { return new_tensor(x, sizes_of(x), ScalarType::Char); }

std::tuple<Tensor, Tensor> total_variation(const Tensor& x, const Tensor& lam,
                                           std::vector<int64_t> slices) {
  const Checks check("total_variation");
  const Dtype dtype = check.floating(x, "x");
  const Slices layout = parse_lines(check, slices, x.numel());
  const int64_t stride = check_per_slice(check, lam, "lam", layout, x);
  const Tensor in = torch::stable::contiguous(x);
  Tensor y = new_tensor(x, sizes_of(x), x.scalar_type()), jump = new_jump(x);
  if (x.numel() > 0)
    backend::total_variation(
        TotalVariationArgs{dtype, in.const_data_ptr(), const_data<double>(lam), stride, layout,
                           y.mutable_data_ptr(), mutable_data<int8_t>(jump)},
        OnDevice(x));
  return {y, jump};
}

// Memory of weights that are as x, or nothing.
MaybeTensor check_weights(const Checks& check, const MaybeTensor& weights, const Tensor& x) {
  if (!weights.has_value()) return weights;
  check_same(check, *weights, "weights", x);
  return torch::stable::contiguous(*weights);
}

Tensor segment_mean(const Tensor& x, const Tensor& jump, std::vector<int64_t> slices) {
  const Checks check("segment_mean");
  const Dtype dtype = check.floating(x, "x");
  const Slices layout = parse_lines(check, slices, x.numel());
  check.same_device(jump, "jump", x);
  check.dtype(jump, "jump", ScalarType::Char, "int8");
  check.that(jump.numel() == x.numel(), "`jump` of the shape of `x`", sizes_name(jump));
  const Tensor in = torch::stable::contiguous(x), jumps = torch::stable::contiguous(jump);
  Tensor y = new_tensor(x, sizes_of(x), x.scalar_type());
  if (x.numel() > 0)
    backend::segment_mean(SegmentMeanArgs{dtype, in.const_data_ptr(), const_data<int8_t>(jumps),
                                          layout, y.mutable_data_ptr()},
                          OnDevice(x));
  return y;
}

std::tuple<Tensor, Tensor> isotonic(const Tensor& x, std::vector<int64_t> slices,
                                    const MaybeTensor& weights, bool increasing, bool entropic) {
  const Checks check("isotonic");
  const Dtype dtype = check.floating(x, "x");
  const Slices layout = parse_lines(check, slices, x.numel());
  const MaybeTensor w = check_weights(check, weights, x);
  const Tensor in = torch::stable::contiguous(x);
  Tensor y = new_tensor(x, sizes_of(x), x.scalar_type()), jump = new_jump(x);
  // The CPU keeps its pools for itself.
  Tensor scratch = new_tensor(x, {kValuesReadable ? 0 : 3 * x.numel()}, ScalarType::Double);
  if (x.numel() > 0)
    backend::isotonic(
        IsotonicArgs{dtype, in.const_data_ptr(), w.has_value() ? w->const_data_ptr() : nullptr,
                     increasing, entropic, layout, y.mutable_data_ptr(), mutable_data<int8_t>(jump),
                     mutable_data<double>(scratch)},
        OnDevice(x));
  return {y, jump};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def("total_variation(Tensor x, Tensor lam, int[] slices) -> (Tensor y, Tensor jump)");
  m.def("segment_mean(Tensor x, Tensor jump, int[] slices) -> Tensor");
  m.def(
      "isotonic(Tensor x, int[] slices, Tensor? weights=None, bool increasing=True, "
      "bool entropic=False) -> (Tensor y, Tensor jump)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("total_variation", TORCH_BOX(&total_variation));
  m.impl("segment_mean", TORCH_BOX(&segment_mean));
  m.impl("isotonic", TORCH_BOX(&isotonic));
}

}  // namespace regkern::proximal
