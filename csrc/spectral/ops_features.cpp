#include <string>
#include <tuple>

#include "core/op_list.h"
#include "spectral/columns.h"

namespace regkern::spectral {
namespace {

Tensor row_major(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

Dtype check_matrix(const Checks& check, const Tensor& x, const char* name) {
  const Dtype dtype = check.floating(x, name);
  check.that(x.dim() == 2, std::string("`") + name + "` of two dimensions", sizes_name(x));
  return dtype;
}

void check_same(const Checks& check, const Tensor& t, const char* name, const Tensor& like) {
  check.same_device(t, name, like);
  check.dtype(t, name, like.scalar_type(), "the first tensor's");
  check.shape(t, name, {like.size(0), like.size(1)});
}

std::tuple<Tensor, Tensor, Tensor> standardize_columns(const Tensor& x, bool standardize,
                                                       int64_t correction, double eps) {
  const Checks check("standardize_columns");
  StandardizeColumnsArgs args{};
  args.dtype = check_matrix(check, x, "x");
  check.that(correction >= 0, "`correction` to be at least 0", std::to_string(correction));
  check.that(eps >= 0.0, "`eps` to be at least 0", std::to_string(eps));
  args.rows = x.size(0);
  args.columns = x.size(1);
  args.standardize = standardize;
  args.correction = correction;
  args.eps = eps;
  const Tensor xs = row_major(x), y = new_tensor(x, sizes_of(x), x.scalar_type());
  const Tensor mean = new_tensor(x, {args.columns}, compute_type(args.dtype));
  const Tensor variance = new_tensor(x, {args.columns}, compute_type(args.dtype));
  // The CPU keeps its sums for itself.
  const int64_t room = kValuesReadable ? 0 : (row_pieces(args.rows) + 2) * args.columns;
  const Tensor space = new_tensor(x, {room}, ScalarType::Double);
  args.x = xs.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.mean = mean.mutable_data_ptr();
  args.variance = variance.mutable_data_ptr();
  args.space = mutable_data<double>(space);
  backend::standardize_columns(args, OnDevice(x));
  return {y, mean, variance};
}

Tensor column_products(const Tensor& a, const Tensor& b) {
  const Checks check("column_products");
  ColumnProductsArgs args{};
  args.dtype = check_matrix(check, a, "a");
  check_same(check, b, "b", a);
  args.rows = a.size(0);
  args.columns = a.size(1);
  const Tensor as = row_major(a), bs = row_major(b);
  const Tensor sums = new_tensor(a, {2, args.columns}, compute_type(args.dtype));
  const int64_t room = kValuesReadable ? 0 : 2 * row_pieces(args.rows) * args.columns;
  const Tensor space = new_tensor(a, {room}, ScalarType::Double);
  args.a = as.const_data_ptr();
  args.b = bs.const_data_ptr();
  args.sums = sums.mutable_data_ptr();
  args.space = mutable_data<double>(space);
  backend::column_products(args, OnDevice(a));
  return sums;
}

Tensor column_combine(const Tensor& a, const Tensor& b, const Tensor& numbers) {
  const Checks check("column_combine");
  ColumnCombineArgs args{};
  args.dtype = check_matrix(check, a, "a");
  check_same(check, b, "b", a);
  args.rows = a.size(0);
  args.columns = a.size(1);
  check.same_device(numbers, "numbers", a);
  check.dtype(numbers, "numbers", compute_type(args.dtype), "the compute type");
  check.shape(numbers, "numbers", {3, args.columns});
  const Tensor as = row_major(a), bs = row_major(b), ns = row_major(numbers);
  const Tensor y = new_tensor(a, sizes_of(a), a.scalar_type());
  args.a = as.const_data_ptr();
  args.b = bs.const_data_ptr();
  args.numbers = ns.const_data_ptr();
  args.y = y.mutable_data_ptr();
  backend::column_combine(args, OnDevice(a));
  return y;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "standardize_columns(Tensor x, bool standardize, int correction, float eps) -> (Tensor y, "
      "Tensor mean, Tensor variance)");
  m.def("column_products(Tensor a, Tensor b) -> Tensor");
  m.def("column_combine(Tensor a, Tensor b, Tensor numbers) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("standardize_columns", TORCH_BOX(&standardize_columns));
  m.impl("column_products", TORCH_BOX(&column_products));
  m.impl("column_combine", TORCH_BOX(&column_combine));
}

}  // namespace regkern::spectral
