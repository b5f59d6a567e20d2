#include <string>

#include "core/op.h"
#include "transport/kernel_sums.h"

namespace regkern::transport {
namespace {

// S, or F, of contiguous points of the compute type.
Tensor sums(const char* op, const Tensor& x, const Tensor& y, const Tensor& w, const Tensor& scale,
            const std::string& kernel, bool gradient, bool skip_diagonal) {
  const Checks check(op);
  KernelSumsArgs args{};
  args.dtype = check.floating(x, "x");
  check.that(args.dtype == Dtype::float32 || args.dtype == Dtype::float64,
             "`x` of dtype float32 or float64", "another");
  check.that(x.dim() == 3, "`x` of shape (batch, rows, size)", sizes_name(x));
  check.that(y.dim() == 3 && y.size(0) == x.size(0) && y.size(2) == x.size(2),
             "`y` of shape (" + std::to_string(x.size(0)) + ", columns, " +
                 std::to_string(x.size(2)) + ")",
             sizes_name(y));
  check.shape(w, "w", {y.size(0), y.size(1)});
  for (const auto& [t, name] : {std::pair{&y, "y"}, std::pair{&w, "w"}}) {
    check.same_device(*t, name, x);
    check.dtype(*t, name, x.scalar_type(), "x's");
  }
  check.same_device(scale, "scale", x);
  check.dtype(scale, "scale", ScalarType::Double, "float64");
  check.that(scale.dim() == 1 && scale.size(0) >= 1 && scale.size(0) <= kMostScales,
             "`scale` of one dimension and 1 to 32 elements", sizes_name(scale));
  args.kernel = static_cast<PointKernel>(check.one_of(
      kernel, "kernel", {"gaussian", "laplacian", "energy", "imq", "rational"}));
  args.gradient = gradient;
  args.skip_diagonal = skip_diagonal;
  args.batch = x.size(0);
  args.rows = x.size(1);
  args.columns = y.size(1);
  args.size = x.size(2);
  args.scales = scale.size(0);
  const Tensor xs = torch::stable::contiguous(x), ys = torch::stable::contiguous(y);
  const Tensor ws = torch::stable::contiguous(w), ss = torch::stable::contiguous(scale);
  const Tensor out = gradient ? new_tensor(x, {args.batch, args.rows, args.size}, x.scalar_type())
                              : new_tensor(x, {args.batch, args.rows}, x.scalar_type());
  // The CPU keeps its sums for itself.
  const int64_t places = kValuesReadable ? 0 : chunk_count(args.columns) * args.batch * args.rows;
  const Tensor space = gradient ? new_tensor(x, {places * args.size}, x.scalar_type())
                                : new_tensor(x, {places}, ScalarType::Double);
  args.x = xs.const_data_ptr();
  args.y = ys.const_data_ptr();
  args.w = ws.const_data_ptr();
  args.scale = const_data<double>(ss);
  args.out = out.mutable_data_ptr();
  args.space = space.mutable_data_ptr();
  backend::kernel_sums(args, OnDevice(x));
  return out;
}

Tensor kernel_sums(const Tensor& x, const Tensor& y, const Tensor& w, const Tensor& scale,
                   std::string kernel, bool skip_diagonal) {
  return sums("kernel_sums", x, y, w, scale, kernel, false, skip_diagonal);
}

Tensor kernel_forces(const Tensor& x, const Tensor& y, const Tensor& w, const Tensor& scale,
                     std::string kernel) {
  return sums("kernel_forces", x, y, w, scale, kernel, true, false);
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "kernel_sums(Tensor x, Tensor y, Tensor w, Tensor scale, str kernel, bool skip_diagonal) -> "
      "Tensor");
  m.def("kernel_forces(Tensor x, Tensor y, Tensor w, Tensor scale, str kernel) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("kernel_sums", TORCH_BOX(&kernel_sums));
  m.impl("kernel_forces", TORCH_BOX(&kernel_forces));
}

}  // namespace regkern::transport
