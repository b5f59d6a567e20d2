#include <string>
#include <tuple>

#include "core/op.h"
#include "transport/sliced.h"

namespace regkern::transport {
namespace {

// What both ops are given, in row-major memory that lives as long as this.
struct Lines {
  SlicedArgs args{};
  Tensor x, y;
  MaybeTensor a, b;
};

MaybeTensor row_major(const MaybeTensor& t) {
  if (!t.has_value()) return t;
  return torch::stable::contiguous(*t);
}

Lines lines_of(const Checks& check, const Tensor& x, const Tensor& y, const MaybeTensor& a,
               const MaybeTensor& b, double power) {
  SlicedArgs args{};
  args.dtype = check.floating(x, "x");
  check.that(args.dtype == Dtype::float32 || args.dtype == Dtype::float64,
             "`x` of dtype float32 or float64", "another");
  check.that(x.dim() == 2, "`x` of shape (slices, n)", sizes_name(x));
  check.that(y.dim() == 2 && y.size(0) == x.size(0),
             "`y` of shape (" + std::to_string(x.size(0)) + ", m)", sizes_name(y));
  check.same_device(y, "y", x);
  check.dtype(y, "y", x.scalar_type(), "x's");
  check.that(x.size(1) > 0 && y.size(1) > 0, "at least one number in `x` and `y`",
             sizes_name(x) + " and " + sizes_name(y));
  check.that(power >= 1.0, "`power` to be at least 1", std::to_string(power));
  check.that(a.has_value() == b.has_value(), "`a` and `b` or neither", "one of them");
  for (const auto& [t, name, like] :
       {std::tuple{&a, "a", &x}, std::tuple{&b, "b", &y}}) {
    if (!t->has_value()) continue;
    check.same_device(**t, name, x);
    check.dtype(**t, name, ScalarType::Double, "float64");
    check.shape(**t, name, {like->size(0), like->size(1)});
  }
  Lines lines{args, torch::stable::contiguous(x), torch::stable::contiguous(y), row_major(a),
              row_major(b)};
  lines.args.slices = x.size(0);
  lines.args.rows = x.size(1);
  lines.args.columns = y.size(1);
  lines.args.power = power;
  lines.args.x = lines.x.const_data_ptr();
  lines.args.y = lines.y.const_data_ptr();
  lines.args.a = data_or_null<double>(lines.a);
  lines.args.b = data_or_null<double>(lines.b);
  return lines;
}

// x and y are the numbers that `sorted_x` and `sorted_y` are sorted of: gradients are theirs, and
// their values are not looked at.
Tensor sliced_cost(const Tensor& x, const Tensor& y, const Tensor& sorted_x, const Tensor& sorted_y,
                   const Tensor& order_x, const Tensor& order_y, MaybeTensor a, MaybeTensor b,
                   double power) {
  const Checks check("sliced_cost");
  Lines lines = lines_of(check, sorted_x, sorted_y, a, b, power);
  check.shape(x, "x", {sorted_x.size(0), sorted_x.size(1)});
  check.shape(y, "y", {sorted_y.size(0), sorted_y.size(1)});
  check.shape(order_x, "order_x", {sorted_x.size(0), sorted_x.size(1)});
  check.shape(order_y, "order_y", {sorted_y.size(0), sorted_y.size(1)});
  const Tensor cost = new_tensor(sorted_x, {lines.args.slices}, sorted_x.scalar_type());
  lines.args.cost = cost.mutable_data_ptr();
  backend::sliced_cost(lines.args, OnDevice(sorted_x));
  return cost;
}

std::tuple<Tensor, Tensor> sliced_slopes(const Tensor& g, const Tensor& sorted_x,
                                         const Tensor& sorted_y, const Tensor& order_x,
                                         const Tensor& order_y, MaybeTensor a, MaybeTensor b,
                                         double power) {
  const Checks check("sliced_slopes");
  const Lines lines = lines_of(check, sorted_x, sorted_y, a, b, power);
  check.same_device(g, "g", sorted_x);
  check.dtype(g, "g", sorted_x.scalar_type(), "x's");
  check.shape(g, "g", {lines.args.slices});
  for (const auto& [t, name, like] : {std::tuple{&order_x, "order_x", &sorted_x},
                                      std::tuple{&order_y, "order_y", &sorted_y}}) {
    check.same_device(*t, name, sorted_x);
    check.dtype(*t, name, ScalarType::Long, "int64");
    check.shape(*t, name, {like->size(0), like->size(1)});
  }
  const Tensor gs = torch::stable::contiguous(g);
  const Tensor xs = torch::stable::contiguous(order_x), ys = torch::stable::contiguous(order_y);
  if (kValuesReadable)
    for (const auto& [t, count] :
         {std::pair{&xs, lines.args.rows}, std::pair{&ys, lines.args.columns}})
      for (int64_t i = 0; i < t->numel(); ++i) {
        const int64_t place = const_data<int64_t>(*t)[i];
        if (place < 0 || place >= count)
          check.that(false, "places from 0 to " + std::to_string(count - 1),
                     std::to_string(place));
      }
  const Tensor dx = new_tensor(sorted_x, sizes_of(sorted_x), sorted_x.scalar_type());
  const Tensor dy = new_tensor(sorted_y, sizes_of(sorted_y), sorted_y.scalar_type());
  SlicedSlopesArgs args{};
  args.lines = lines.args;
  args.g = gs.const_data_ptr();
  args.order_x = const_data<int64_t>(xs);
  args.order_y = const_data<int64_t>(ys);
  args.dx = dx.mutable_data_ptr();
  args.dy = dy.mutable_data_ptr();
  backend::sliced_slopes(args, OnDevice(sorted_x));
  return {dx, dy};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "sliced_cost(Tensor x, Tensor y, Tensor sorted_x, Tensor sorted_y, Tensor order_x, Tensor "
      "order_y, Tensor? a, Tensor? b, float power) -> Tensor");
  m.def(
      "sliced_slopes(Tensor g, Tensor sorted_x, Tensor sorted_y, Tensor order_x, Tensor order_y, "
      "Tensor? a, Tensor? b, float power) -> (Tensor dx, Tensor dy)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("sliced_cost", TORCH_BOX(&sliced_cost));
  m.impl("sliced_slopes", TORCH_BOX(&sliced_slopes));
}

}  // namespace regkern::transport
