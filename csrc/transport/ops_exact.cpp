#include <string>
#include <tuple>

#include "core/op.h"
#include "transport/assignment.h"
#include "transport/quantile_cost.h"

// Exact transport: assignments, and the line.

namespace regkern::transport {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> assignment(const Tensor& cost) {
  const Checks check("assignment");
  AssignmentArgs args{};
  args.dtype = check.floating(cost, "cost");
  check.that(cost.dim() == 3, "`cost` of three dimensions", sizes_name(cost));
  args.batch = cost.size(0);
  args.rows = cost.size(1);
  args.columns = cost.size(2);
  check.that(args.rows <= args.columns, "`cost` of at least as many columns as rows",
             sizes_name(cost));
  check.that(args.columns < (int64_t{1} << 31), "`cost` of less than 2^31 columns",
             std::to_string(args.columns));
  const Tensor costs = cost.is_contiguous() ? cost : torch::stable::contiguous(cost);
  const std::vector<int64_t> rows{args.batch, args.rows}, columns{args.batch, args.columns};
  const auto make = [&](const std::vector<int64_t>& sizes, ScalarType type) {
    return new_tensor(cost, sizes, type);
  };
  const Tensor column = make(rows, ScalarType::Int), u = make(rows, ScalarType::Double);
  const Tensor v = make(columns, ScalarType::Double),
               value = make({args.batch}, ScalarType::Double);
  const Tensor status = make({args.batch}, ScalarType::Char);
  const Tensor distance = make(columns, ScalarType::Double);
  const Tensor places = make({3, args.batch, args.columns}, ScalarType::Int);
  args.cost = costs.const_data_ptr();
  args.column = mutable_data<int32_t>(column);
  args.u = mutable_data<double>(u);
  args.v = mutable_data<double>(v);
  args.value = mutable_data<double>(value);
  args.status = mutable_data<int8_t>(status);
  args.distance = mutable_data<double>(distance);
  args.before = mutable_data<int32_t>(places);
  args.row = args.before + args.batch * args.columns;
  args.settled = args.row + args.batch * args.columns;
  backend::assignment(args, OnDevice(cost));
  return {value, column, u, v, status};
}

Tensor row_major(const Checks& check, const Tensor& t, const char* name, const Tensor& like,
                 int64_t rows, int64_t size) {
  check.same_device(t, name, like);
  check.dtype(t, name, ScalarType::Double, "float64");
  check.shape(t, name, {rows, size});
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

std::tuple<Tensor, Tensor, Tensor> quantile_cost(const Tensor& x, const Tensor& y, const Tensor& a,
                                                 const Tensor& b, double p, bool after) {
  const Checks check("quantile_cost");
  check.that(x.dim() == 2 && y.dim() == 2, "`x` and `y` of two dimensions",
             sizes_name(x.dim() == 2 ? y : x));
  QuantileCostArgs args{};
  args.rows = x.size(0);
  args.n = x.size(1);
  args.m = y.size(1);
  check.that(args.m > 0, "`y` of at least one element", sizes_name(y));
  check.that(p >= 1.0, "`p` to be at least 1", std::to_string(p));
  const Tensor xs = row_major(check, x, "x", x, args.rows, args.n);
  const Tensor ys = row_major(check, y, "y", x, args.rows, args.m);
  const Tensor as = row_major(check, a, "a", x, args.rows, args.n);
  const Tensor bs = row_major(check, b, "b", x, args.rows, args.m);
  args.p = p;
  args.after = after;
  args.x = const_data<double>(xs);
  args.y = const_data<double>(ys);
  args.a = const_data<double>(as);
  args.b = const_data<double>(bs);
  const std::vector<int64_t> sizes{args.rows, args.n};
  const Tensor cost = new_tensor(x, sizes, ScalarType::Double);
  const Tensor slope = new_tensor(x, sizes, ScalarType::Double);
  const Tensor cut = new_tensor(x, sizes, ScalarType::Double);
  args.cost = mutable_data<double>(cost);
  args.slope = mutable_data<double>(slope);
  args.cut = mutable_data<double>(cut);
  backend::quantile_cost(args, OnDevice(x));
  return {cost, slope, cut};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "assignment(Tensor cost) -> (Tensor value, Tensor column, Tensor u, Tensor v, Tensor "
      "status)");
  m.def(
      "quantile_cost(Tensor x, Tensor y, Tensor a, Tensor b, float p, bool after) -> (Tensor cost, "
      "Tensor slope, Tensor cut)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("assignment", TORCH_BOX(&assignment));
  m.impl("quantile_cost", TORCH_BOX(&quantile_cost));
}

}  // namespace regkern::transport
