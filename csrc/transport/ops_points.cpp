#include <string>
#include <tuple>

#include "core/op.h"
#include "transport/points.h"

// Transport between clouds of points, one side at a time.

namespace regkern::transport {
namespace {

Tensor plain(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// The arguments of a side, checked, and what keeps them alive.
struct HeldPairs {
  PointPairs pairs{};
  Tensor rows, panels, log_weights, potential, eps, bias;
  MaybeTensor row_terms, column_terms;
};

MaybeTensor check_terms(const Checks& check, const MaybeTensor& t, const char* name,
                        const Tensor& like, int64_t batch, int64_t n) {
  if (!t.has_value()) return t;
  check.same_device(*t, name, like);
  check.dtype(*t, name, like.scalar_type(), "of `rows`");
  check.shape(*t, name, {batch, n});
  return plain(*t);
}

HeldPairs pairs_of(const Checks& check, const Tensor& rows, const Tensor& panels,
                   const MaybeTensor& row_terms, const MaybeTensor& column_terms,
                   const Tensor& log_weights, const Tensor& potential, const Tensor& eps,
                   const std::string& kernel, double factor) {
  HeldPairs held;
  PointPairs& p = held.pairs;
  const Dtype dtype = check.floating(rows, "rows");
  check.that(dtype == Dtype::float32 || dtype == Dtype::float64,
             "`rows` of dtype float32 or float64", "another");
  check.that(rows.dim() == 3, "`rows` of three dimensions", sizes_name(rows));
  check.that(potential.dim() == 2, "`potential` of two dimensions", sizes_name(potential));
  p.wide = dtype == Dtype::float64;
  p.kernel = static_cast<Kernel>(check.one_of(kernel, "kernel", {"product", "distance"}));
  p.factor = factor;
  p.batch = rows.size(0);
  p.n = rows.size(1);
  p.d = rows.size(2);
  p.m = potential.size(1);
  check.same_device(panels, "panels", rows);
  check.dtype(panels, "panels", rows.scalar_type(), "of `rows`");
  check.shape(panels, "panels", {p.batch, panel_count(p.m), p.d, kPanel});
  held.log_weights = *check_terms(check, log_weights, "log_weights", rows, p.batch, p.m);
  held.potential = *check_terms(check, potential, "potential", rows, p.batch, p.m);
  held.row_terms = check_terms(check, row_terms, "row_terms", rows, p.batch, p.n);
  held.column_terms = check_terms(check, column_terms, "column_terms", rows, p.batch, p.m);
  check.same_device(eps, "eps", rows);
  check.dtype(eps, "eps", rows.scalar_type(), "of `rows`");
  check.shape(eps, "eps", {p.batch});
  held.rows = plain(rows);
  held.panels = plain(panels);
  held.eps = plain(eps);
  held.bias = new_tensor(rows, {p.batch, panel_count(p.m) * kPanel}, rows.scalar_type());
  p.rows = held.rows.const_data_ptr();
  p.panels = held.panels.const_data_ptr();
  p.row_terms = data_or_null<void>(held.row_terms);
  p.column_terms = data_or_null<void>(held.column_terms);
  p.log_weights = held.log_weights.const_data_ptr();
  p.potential = held.potential.const_data_ptr();
  p.eps = held.eps.const_data_ptr();
  p.bias = held.bias.mutable_data_ptr();
  return held;
}

Tensor points_softmin(const Tensor& rows, const Tensor& panels, const MaybeTensor& row_terms,
                      const MaybeTensor& column_terms, const Tensor& log_weights,
                      const Tensor& potential, const Tensor& eps, const std::string& kernel,
                      double factor, const MaybeTensor& done, const MaybeTensor& before) {
  const Checks check("points_softmin");
  const HeldPairs held = pairs_of(check, rows, panels, row_terms, column_terms, log_weights,
                                  potential, eps, kernel, factor);
  PointSoftminArgs args{held.pairs, nullptr, nullptr, nullptr};
  const int64_t batch = args.pairs.batch, n = args.pairs.n;
  check.that(done.has_value() == before.has_value(), "`done` and `before` or neither", "one");
  MaybeTensor finished, kept;
  if (done.has_value()) {
    check.same_device(*done, "done", rows);
    check.dtype(*done, "done", ScalarType::Byte, "uint8");
    check.shape(*done, "done", {batch});
    finished = plain(*done);
    kept = check_terms(check, before, "before", rows, batch, n);
    args.done = data_or_null<uint8_t>(finished);
    args.before = data_or_null<void>(kept);
  }
  const Tensor out = new_tensor(rows, {batch, n}, rows.scalar_type());
  args.out = out.mutable_data_ptr();
  backend::points_softmin(args, OnDevice(rows));
  return out;
}

Tensor points_argmax(const Tensor& rows, const Tensor& panels, const MaybeTensor& column_terms,
                     const Tensor& log_weights, const Tensor& potential, const Tensor& eps,
                     const std::string& kernel, double factor) {
  const Checks check("points_argmax");
  const HeldPairs held = pairs_of(check, rows, panels, std::nullopt, column_terms, log_weights,
                                  potential, eps, kernel, factor);
  check.that(held.pairs.m > 0 && held.pairs.m < (int64_t{1} << 31),
             "1 to 2147483647 columns", std::to_string(held.pairs.m));
  const Tensor place = new_tensor(rows, {held.pairs.batch, held.pairs.n}, ScalarType::Long);
  backend::points_argmax(PointArgmaxArgs{held.pairs, mutable_data<int64_t>(place)},
                         OnDevice(rows));
  return place;
}

std::tuple<Tensor, Tensor> points_apply(const Tensor& rows, const Tensor& panels,
                                        const MaybeTensor& row_terms,
                                        const MaybeTensor& column_terms, const Tensor& log_weights,
                                        const Tensor& potential, const Tensor& eps,
                                        const std::string& kernel, double factor,
                                        const Tensor& row_log_weights, const Tensor& row_potential,
                                        const Tensor& values, int64_t power) {
  const Checks check("points_apply");
  const HeldPairs held = pairs_of(check, rows, panels, row_terms, column_terms, log_weights,
                                  potential, eps, kernel, factor);
  PointApplyArgs args{};
  args.pairs = held.pairs;
  const PointPairs& p = args.pairs;
  const Tensor weights =
      *check_terms(check, row_log_weights, "row_log_weights", rows, p.batch, p.n);
  const Tensor potentials =
      *check_terms(check, row_potential, "row_potential", rows, p.batch, p.n);
  check.same_device(values, "values", rows);
  check.dtype(values, "values", rows.scalar_type(), "of `rows`");
  check.that(values.dim() == 4, "`values` of four dimensions", sizes_name(values));
  args.width = values.size(2);
  check.shape(values, "values", {p.batch, panel_count(p.m), args.width, kPanel});
  check.that(power >= -1 && power <= 1, "`power` of -1, 0 or 1", std::to_string(power));
  check.that(power == 0 || p.kernel == Kernel::distance, "`power` of 0 with products",
             std::to_string(power));
  const Tensor given = plain(values);
  const Tensor sums = new_tensor(rows, {p.batch, p.n}, rows.scalar_type());
  const Tensor out = new_tensor(rows, {p.batch, p.n, args.width}, rows.scalar_type());
  args.row_log_weights = weights.const_data_ptr();
  args.row_potential = potentials.const_data_ptr();
  args.values = given.const_data_ptr();
  args.power = static_cast<int>(power);
  args.sums = sums.mutable_data_ptr();
  args.out = out.mutable_data_ptr();
  backend::points_apply(args, OnDevice(rows));
  return {sums, out};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "points_softmin(Tensor rows, Tensor panels, Tensor? row_terms, Tensor? column_terms, Tensor "
      "log_weights, Tensor potential, Tensor eps, str kernel, float factor, Tensor? done, Tensor? "
      "before) -> Tensor");
  m.def(
      "points_argmax(Tensor rows, Tensor panels, Tensor? column_terms, Tensor log_weights, Tensor "
      "potential, Tensor eps, str kernel, float factor) -> Tensor");
  m.def(
      "points_apply(Tensor rows, Tensor panels, Tensor? row_terms, Tensor? column_terms, Tensor "
      "log_weights, Tensor potential, Tensor eps, str kernel, float factor, Tensor "
      "row_log_weights, Tensor row_potential, Tensor values, int power) -> (Tensor sums, Tensor "
      "out)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("points_softmin", TORCH_BOX(&points_softmin));
  m.impl("points_argmax", TORCH_BOX(&points_argmax));
  m.impl("points_apply", TORCH_BOX(&points_apply));
}

}  // namespace regkern::transport
