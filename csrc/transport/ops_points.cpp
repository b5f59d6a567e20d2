#include <string>
#include <tuple>

#include "core/op.h"
#include "transport/partial_solve.h"
#include "transport/points.h"
#include "transport/points_full.h"
#include "transport/solve.h"

// Transport between clouds of points, one side at a time.

namespace regkern::transport {
namespace {

Tensor plain(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// Clouds x and y, or a side of the plan with x as rows and y as panels, and what keeps it alive.
struct HeldPairs {
  PointPairs pairs{};
  Tensor rows, panels, bias;
  MaybeTensor row_terms, column_terms;
};

Tensor check_numbers(const Checks& check, const Tensor& t, const char* name, const Tensor& like,
                     std::initializer_list<int64_t> sizes) {
  check.same_device(t, name, like);
  check.dtype(t, name, ScalarType::Double, "float64");
  check.shape(t, name, sizes);
  return plain(t);
}

// rows (B, n, d) against m columns in panels.
HeldPairs pairs_of(const Checks& check, const Tensor& rows, const Tensor& panels, int64_t m,
                   const MaybeTensor& row_terms, const MaybeTensor& column_terms,
                   const std::string& kernel, double factor, bool squares = false) {
  HeldPairs held;
  PointPairs& p = held.pairs;
  const Dtype dtype = check.floating(rows, "rows");
  check.that(dtype == Dtype::float32 || dtype == Dtype::float64,
             "`rows` of dtype float32 or float64", "another");
  check.that(rows.dim() == 3, "`rows` of three dimensions", sizes_name(rows));
  p.wide = dtype == Dtype::float64;
  p.kernel = static_cast<PointKernel>(
      squares ? check.one_of(kernel, "kernel", {"product", "distance", "square"})
              : check.one_of(kernel, "kernel", {"product", "distance"}));
  p.factor = factor;
  p.batch = rows.size(0);
  p.n = rows.size(1);
  p.d = rows.size(2);
  p.m = m;
  check.same_device(panels, "panels", rows);
  check.dtype(panels, "panels", rows.scalar_type(), "of `rows`");
  check.shape(panels, "panels", {p.batch, point_panels(p.m), p.d, kPointPanel});
  held.panels = plain(panels);
  check.that(reinterpret_cast<std::uintptr_t>(held.panels.const_data_ptr()) % 16 == 0,
             "`panels` aligned to 16 bytes", "a view that is not");
  if (row_terms.has_value())
    held.row_terms = check_numbers(check, *row_terms, "row_terms", rows, {p.batch, p.n});
  if (column_terms.has_value())
    held.column_terms = check_numbers(check, *column_terms, "column_terms", rows, {p.batch, p.m});
  held.rows = plain(rows);
  held.bias = new_tensor(rows, {p.batch, point_panels(p.m) * kPointPanel}, rows.scalar_type());
  p.rows = held.rows.const_data_ptr();
  p.panels = held.panels.const_data_ptr();
  p.row_terms = data_or_null<double>(held.row_terms);
  p.column_terms = data_or_null<double>(held.column_terms);
  p.bias = held.bias.mutable_data_ptr();
  return held;
}

// The same with weights and potential of the columns.
struct HeldSide {
  HeldPairs held;
  Tensor weights, potential, eps;
};

HeldSide side_of(const Checks& check, const Tensor& rows, const Tensor& panels,
                 const MaybeTensor& row_terms, const MaybeTensor& column_terms,
                 const Tensor& weights, const Tensor& potential, const Tensor& eps,
                 const std::string& kernel, double factor) {
  check.that(potential.dim() == 2, "`potential` of two dimensions", sizes_name(potential));
  HeldSide side;
  side.held =
      pairs_of(check, rows, panels, potential.size(1), row_terms, column_terms, kernel, factor);
  PointPairs& p = side.held.pairs;
  side.weights = check_numbers(check, weights, "weights", rows, {p.batch, p.m});
  side.potential = check_numbers(check, potential, "potential", rows, {p.batch, p.m});
  side.eps = check_numbers(check, eps, "eps", rows, {p.batch});
  p.weights = const_data<double>(side.weights);
  p.potential = const_data<double>(side.potential);
  p.eps = const_data<double>(side.eps);
  return side;
}

Tensor points_softmin(const Tensor& rows, const Tensor& panels, const MaybeTensor& row_terms,
                      const MaybeTensor& column_terms, const Tensor& weights,
                      const Tensor& potential, const Tensor& eps, const std::string& kernel,
                      double factor) {
  const Checks check("transport_points_softmin");
  const HeldSide side = side_of(check, rows, panels, row_terms, column_terms, weights, potential,
                                eps, kernel, factor);
  const PointPairs& p = side.held.pairs;
  const Tensor out = new_tensor(rows, {p.batch, p.n}, ScalarType::Double);
  backend::transport_points_softmin(
      PointSoftminArgs{p, nullptr, nullptr, mutable_data<double>(out)}, OnDevice(rows));
  return out;
}

Tensor points_argmax(const Tensor& rows, const Tensor& panels, const MaybeTensor& column_terms,
                     const Tensor& weights, const Tensor& potential, const Tensor& eps,
                     const std::string& kernel, double factor) {
  const Checks check("transport_points_argmax");
  const HeldSide side = side_of(check, rows, panels, std::nullopt, column_terms, weights, potential,
                                eps, kernel, factor);
  const PointPairs& p = side.held.pairs;
  check.that(p.m > 0 && p.m < (int64_t{1} << 31), "1 to 2147483647 columns", std::to_string(p.m));
  const Tensor place = new_tensor(rows, {p.batch, p.n}, ScalarType::Long);
  backend::transport_points_argmax(PointArgmaxArgs{p, mutable_data<int64_t>(place)},
                                   OnDevice(rows));
  return place;
}

std::tuple<Tensor, Tensor> points_apply(const Tensor& rows, const Tensor& panels,
                                        const MaybeTensor& row_terms,
                                        const MaybeTensor& column_terms, const Tensor& weights,
                                        const Tensor& potential, const Tensor& eps,
                                        const std::string& kernel, double factor,
                                        const Tensor& row_weights, const Tensor& row_potential,
                                        const Tensor& values, int64_t power) {
  const Checks check("transport_points_apply");
  const HeldSide side = side_of(check, rows, panels, row_terms, column_terms, weights, potential,
                                eps, kernel, factor);
  PointApplyArgs args{};
  args.pairs = side.held.pairs;
  const PointPairs& p = args.pairs;
  const Tensor masses = check_numbers(check, row_weights, "row_weights", rows, {p.batch, p.n});
  const Tensor own = check_numbers(check, row_potential, "row_potential", rows, {p.batch, p.n});
  check.same_device(values, "values", rows);
  check.dtype(values, "values", rows.scalar_type(), "of `rows`");
  check.that(values.dim() == 4, "`values` of four dimensions", sizes_name(values));
  args.width = values.size(2);
  check.shape(values, "values", {p.batch, point_panels(p.m), args.width, kPointPanel});
  check.that(power >= -1 && power <= 1, "`power` of -1, 0 or 1", std::to_string(power));
  check.that(power == 0 || p.kernel == PointKernel::distance, "`power` of 0 with products",
             std::to_string(power));
  const Tensor given = plain(values);
  const Tensor sums = new_tensor(rows, {p.batch, p.n}, ScalarType::Double);
  const Tensor out = new_tensor(rows, {p.batch, p.n, args.width}, rows.scalar_type());
  args.row_weights = const_data<double>(masses);
  args.row_potential = const_data<double>(own);
  args.values = given.const_data_ptr();
  args.power = static_cast<int>(power);
  args.sums = mutable_data<double>(sums);
  args.out = out.mutable_data_ptr();
  backend::transport_points_apply(args, OnDevice(rows));
  return {sums, out};
}

class PointTransform : public Transform {
 public:
  PointTransform(const HeldPairs& rows, const HeldPairs& columns, const Tensor& a, const Tensor& b,
                 Context context)
      : Transform(rows.pairs.batch, rows.pairs.n, rows.pairs.m, context),
        rows_(rows),
        columns_(columns) {
    rows_.pairs.weights = const_data<double>(b);
    columns_.pairs.weights = const_data<double>(a);
    const Tensor& like = rows.rows;
    const auto scratch = [&](int64_t size) {
      return new_tensor(like, {batch * size}, like.scalar_type());
    };
    const int64_t padded = point_panels(m) * kPointPanel;
    scratch_ = {scratch(n), scratch(n), scratch(padded), scratch(padded),
                scratch(point_chunks(n) * padded)};
    again_ = new_tensor(like, {batch * (n > m ? n : m)}, ScalarType::Byte);
  }

  void softmin(Side side, const Sweep& sweep) override {
    PointSoftminArgs args{(side == Side::rows ? rows_ : columns_).pairs, sweep.done, nullptr,
                          sweep.to};
    args.pairs.potential = sweep.from;
    args.pairs.eps = sweep.eps;
    backend::transport_points_softmin(args, context);
  }

  void full(const Iteration& it) override {
    PointFullArgs args{};
    args.rows = rows_.pairs;
    args.columns = columns_.pairs;
    args.rows.potential = it.g;
    args.columns.potential = it.f_next;
    args.rows.eps = args.columns.eps = it.eps;
    args.done = it.done;
    args.f = it.f;
    args.rho_a = it.rho_a;
    args.omega = it.omega;
    args.f_raw = it.f_raw;
    args.f_next = it.f_next;
    args.g_raw = it.g_raw;
    args.row_shift = scratch_[0].mutable_data_ptr();
    args.row_weight = scratch_[1].mutable_data_ptr();
    args.column_shift = scratch_[2].mutable_data_ptr();
    args.column_weight = scratch_[3].mutable_data_ptr();
    args.partials = scratch_[4].mutable_data_ptr();
    args.again = mutable_data<uint8_t>(again_);
    backend::transport_points_full(args, context);
  }

 private:
  HeldPairs rows_, columns_;
  std::vector<Tensor> scratch_;
  Tensor again_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> points_solve(
    const Tensor& x, const Tensor& y, const Tensor& x_panels, const Tensor& y_panels,
    const MaybeTensor& x_terms, const MaybeTensor& y_terms, const std::string& kernel,
    double factor, const Tensor& a, const Tensor& b, const Tensor& eps, const Tensor& rho,
    MaybeTensor eps_start, MaybeTensor f, MaybeTensor g, std::optional<double> tol,
    int64_t max_iter, int64_t check_every, std::string acceleration, double omega, double scaling) {
  const Checks check("transport_points_solve");
  check.that(x.dim() == 3 && y.dim() == 3, "`x` and `y` of three dimensions", sizes_name(x));
  const int64_t n = x.size(1), m = y.size(1);
  const HeldPairs rows = pairs_of(check, x, y_panels, m, x_terms, y_terms, kernel, factor, true);
  const HeldPairs columns = pairs_of(check, y, x_panels, n, y_terms, x_terms, kernel, factor, true);
  const Problem problem{x, a, b, rho, eps, eps_start, f, g};
  check_problem(check, problem, x.size(0), n, m);
  const Settings settings{
      tol,
      max_iter,
      check_every,
      static_cast<Acceleration>(
          check.one_of(acceleration, "acceleration", {"none", "relaxed", "adaptive", "anderson"})),
      omega,
      scaling};
  check_settings(check, settings);
  PointTransform engine(rows, columns, a, b, OnDevice(x));
  const Solution found = solve(engine, problem, settings);
  return {found.f, found.g, found.error, found.iterations, found.status};
}

PartialSolution points_partial(const Tensor& x, const Tensor& y, const Tensor& x_panels,
                               const Tensor& y_panels, const MaybeTensor& x_terms,
                               const MaybeTensor& y_terms, const std::string& kernel, double factor,
                               const Tensor& a, const Tensor& b, const Tensor& cap_a,
                               const Tensor& cap_b, const Tensor& mass, const Tensor& eps,
                               const MaybeTensor& start, std::optional<double> tol,
                               int64_t max_iter, int64_t check_every) {
  const Checks check("transport_points_partial");
  check.that(x.dim() == 3 && y.dim() == 3, "`x` and `y` of three dimensions", sizes_name(x));
  const int64_t n = x.size(1), m = y.size(1);
  const HeldPairs rows = pairs_of(check, x, y_panels, m, x_terms, y_terms, kernel, factor);
  const HeldPairs columns = pairs_of(check, y, x_panels, n, y_terms, x_terms, kernel, factor);
  const PartialProblem problem{x, a, b, cap_a, cap_b, mass, eps, start, tol, max_iter, check_every};
  check_partial(check, problem, x.size(0), n, m);
  PointTransform engine(rows, columns, a, b, OnDevice(x));
  return solve_partial(engine, problem);
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "transport_points_softmin(Tensor rows, Tensor panels, Tensor? row_terms, Tensor? "
      "column_terms, Tensor weights, Tensor potential, Tensor eps, str kernel, float factor) -> "
      "Tensor");
  m.def(
      "transport_points_argmax(Tensor rows, Tensor panels, Tensor? column_terms, Tensor weights, "
      "Tensor potential, Tensor eps, str kernel, float factor) -> Tensor");
  m.def(
      "transport_points_apply(Tensor rows, Tensor panels, Tensor? row_terms, Tensor? "
      "column_terms, Tensor weights, Tensor potential, Tensor eps, str kernel, float factor, "
      "Tensor row_weights, Tensor row_potential, Tensor values, int power) -> (Tensor sums, Tensor "
      "out)");
  m.def(
      "transport_points_solve(Tensor x, Tensor y, Tensor x_panels, Tensor y_panels, Tensor? "
      "x_terms, Tensor? y_terms, str kernel, float factor, Tensor a, Tensor b, Tensor eps, Tensor "
      "rho, Tensor? eps_start, Tensor? f, Tensor? g, float? tol, int max_iter, int check_every, "
      "str acceleration, float omega, float scaling) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "transport_points_partial(Tensor x, Tensor y, Tensor x_panels, Tensor y_panels, Tensor? "
      "x_terms, Tensor? y_terms, str kernel, float factor, Tensor a, Tensor b, Tensor cap_a, "
      "Tensor cap_b, Tensor mass, Tensor eps, Tensor? start, float? tol, int max_iter, int "
      "check_every) -> (Tensor f, Tensor g, Tensor level, Tensor error, Tensor iterations, Tensor "
      "status)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("transport_points_softmin", TORCH_BOX(&points_softmin));
  m.impl("transport_points_argmax", TORCH_BOX(&points_argmax));
  m.impl("transport_points_apply", TORCH_BOX(&points_apply));
  m.impl("transport_points_partial", TORCH_BOX(&points_partial));
  m.impl("transport_points_solve", TORCH_BOX(&points_solve));
}

}  // namespace regkern::transport
