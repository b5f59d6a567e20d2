#include <string>
#include <tuple>

#include "transport/dense.h"
#include "transport/partial_solve.h"
#include "transport/solve.h"

// Sinkhorn's iteration on dense costs.

namespace regkern::transport {
namespace {

class DenseTransform : public Transform {
 public:
  DenseTransform(Dtype dtype, const Tensor& cost, const Tensor& a, const Tensor& b, Context context,
                 bool keeps_kernel = false)
      : Transform(cost.size(0), cost.size(1), cost.size(2), context), cost_(cost) {
    const ScalarType type = compute_type(dtype);
    column_shift_ = new_tensor(cost, {batch * m}, type);
    column_weight_ = new_tensor(cost, {batch * m}, type);
    row_shift_ = new_tensor(cost, {batch * n}, type);
    row_weight_ = new_tensor(cost, {batch * n}, type);
    partials_ = new_tensor(cost, {batch * chunk_count(n) * m}, type);
    again_ = new_tensor(cost, {batch * ((m + kPanel - 1) / kPanel)}, ScalarType::Int);
    args_.dtype = dtype;
    args_.batch = batch;
    args_.n = n;
    args_.m = m;
    args_.cost = cost.const_data_ptr();
    args_.a = const_data<double>(a);
    args_.b = const_data<double>(b);
    args_.row_shift = row_shift_.mutable_data_ptr();
    args_.row_weight = row_weight_.mutable_data_ptr();
    args_.column_shift = column_shift_.mutable_data_ptr();
    args_.column_weight = column_weight_.mutable_data_ptr();
    args_.partials = partials_.mutable_data_ptr();
    args_.again = mutable_data<int32_t>(again_);
    if (!keeps_kernel) return;
    kernel_ = new_tensor(cost, {batch, n, kernel_stride(m)}, type);
    kernel_eps_ = filled(cost, {batch}, ScalarType::Double, 0.0);
    fresh_ = new_tensor(cost, {batch}, ScalarType::Int);
  }

  void softmin(Side side, const Sweep& sweep) override {
    DenseArgs args = args_;
    args.eps = sweep.eps;
    args.done = sweep.done;
    if (side == Side::rows) {
      args.f = sweep.near;
      args.g = sweep.from;
      args.f_raw = sweep.to;
    } else {
      // Read alone: without f_raw the rows are left as they are.
      args.f_next = const_cast<double*>(sweep.from);
      args.g = sweep.near;
      args.g_raw = sweep.to;
    }
    run(args);
  }

  void full(const Iteration& it) override {
    DenseArgs args = args_;
    args.eps = it.eps;
    args.done = it.done;
    args.rho_a = it.rho_a;
    args.omega = it.omega;
    args.f = it.f;
    args.g = it.g;
    args.f_raw = it.f_raw;
    args.f_next = it.f_next;
    args.g_raw = it.g_raw;
    if (kernel_.has_value()) {
      args.kernel = kernel_->mutable_data_ptr();
      args.kernel_eps = mutable_data<double>(*kernel_eps_);
      args.fresh = mutable_data<int32_t>(*fresh_);
    }
    run(args);
  }

 private:
  void run(const DenseArgs& args) const {
    if (batch * n * m > 0) backend::transport_dense(args, context);
  }

  DenseArgs args_{};
  Tensor cost_, row_shift_, row_weight_, column_shift_, column_weight_, partials_, again_;
  MaybeTensor kernel_, kernel_eps_, fresh_;
};

Dtype check_cost(const Checks& check, const Tensor& cost) {
  const Dtype dtype = check.floating(cost, "cost");
  check.that(cost.dim() == 3, "`cost` of three dimensions", sizes_name(cost));
  check.that(cost.is_contiguous(), "contiguous `cost`", "a strided one");
  check.that(cost.size(1) > 0 && cost.size(2) > 0, "`cost` of at least one point on either side",
             sizes_name(cost));
  return dtype;
}

const double* check_double(const Checks& check, const Tensor& t, const char* name,
                           const Tensor& like, std::initializer_list<int64_t> sizes) {
  check.same_device(t, name, like);
  check.dtype(t, name, ScalarType::Double, "float64");
  check.shape(t, name, sizes);
  check.that(t.is_contiguous(), std::string("contiguous `") + name + "`", "a strided one");
  return const_data<double>(t);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dense_solve(
    const Tensor& cost, const Tensor& a, const Tensor& b, const Tensor& eps, const Tensor& rho,
    MaybeTensor eps_start, MaybeTensor f, MaybeTensor g, std::optional<double> tol,
    int64_t max_iter, int64_t check_every, std::string acceleration, double omega, double scaling,
    bool keeps_kernel) {
  const Checks check("transport_dense_solve");
  const Dtype dtype = check_cost(check, cost);
  const Problem problem{cost, a, b, rho, eps, eps_start, f, g};
  check_problem(check, problem, cost.size(0), cost.size(1), cost.size(2));
  const Settings settings{
      tol,
      max_iter,
      check_every,
      static_cast<Acceleration>(
          check.one_of(acceleration, "acceleration", {"none", "relaxed", "adaptive", "anderson"})),
      omega,
      scaling};
  check_settings(check, settings);
  DenseTransform engine(dtype, cost, a, b, OnDevice(cost), keeps_kernel);
  const Solution found = solve(engine, problem, settings);
  return {found.f, found.g, found.error, found.iterations, found.status};
}

PartialSolution dense_partial(const Tensor& cost, const Tensor& a, const Tensor& b,
                              const Tensor& cap_a, const Tensor& cap_b, const Tensor& mass,
                              const Tensor& eps, MaybeTensor start, std::optional<double> tol,
                              int64_t max_iter, int64_t check_every) {
  const Checks check("transport_dense_partial");
  const Dtype dtype = check_cost(check, cost);
  const PartialProblem problem{cost, a,     b,   cap_a,    cap_b,      mass,
                               eps,  start, tol, max_iter, check_every};
  check_partial(check, problem, cost.size(0), cost.size(1), cost.size(2));
  DenseTransform engine(dtype, cost, a, b, OnDevice(cost));
  return solve_partial(engine, problem);
}

// The soft c-transform of g (onto the rows) or of f (onto the columns).
Tensor dense_softmin(const Tensor& cost, const Tensor& weight, const Tensor& from,
                     const Tensor& eps, bool columns) {
  const Checks check("transport_dense_softmin");
  const Dtype dtype = check_cost(check, cost);
  const int64_t batch = cost.size(0), n = cost.size(1), m = cost.size(2);
  check_double(check, weight, "weight", cost, {batch, columns ? n : m});
  check_double(check, from, "from", cost, {batch, columns ? n : m});
  check_double(check, eps, "eps", cost, {batch});
  Tensor to = filled(cost, {batch, columns ? m : n}, ScalarType::Double, 0.0);
  DenseTransform engine(dtype, cost, weight, weight, OnDevice(cost));
  double* const out = mutable_data<double>(to);
  engine.softmin(columns ? Side::columns : Side::rows,
                 {const_data<double>(eps), const_data<double>(from), out, out, nullptr});
  return to;
}

// a_i b_j e^((f_i + g_j − C_ij)/ε) (p_i + q_j)
Tensor dense_plan(const Tensor& cost, const Tensor& a, const Tensor& b, const Tensor& f,
                  const Tensor& g, const Tensor& eps, MaybeTensor p, MaybeTensor q) {
  const Checks check("transport_dense_plan");
  DensePlanArgs args{};
  args.dtype = check_cost(check, cost);
  args.batch = cost.size(0);
  args.n = cost.size(1);
  args.m = cost.size(2);
  args.cost = cost.const_data_ptr();
  args.a = check_double(check, a, "a", cost, {args.batch, args.n});
  args.b = check_double(check, b, "b", cost, {args.batch, args.m});
  args.f = check_double(check, f, "f", cost, {args.batch, args.n});
  args.g = check_double(check, g, "g", cost, {args.batch, args.m});
  args.eps = check_double(check, eps, "eps", cost, {args.batch});
  if (p.has_value()) args.p = check_double(check, *p, "p", cost, {args.batch, args.n});
  if (q.has_value()) args.q = check_double(check, *q, "q", cost, {args.batch, args.m});
  Tensor out = new_tensor(cost, sizes_of(cost), cost.scalar_type());
  args.out = out.mutable_data_ptr();
  if (args.batch > 0) backend::transport_dense_plan(args, OnDevice(cost));
  return out;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "transport_dense_solve(Tensor cost, Tensor a, Tensor b, Tensor eps, Tensor rho, "
      "Tensor? eps_start, Tensor? f, Tensor? g, float? tol, int max_iter, int check_every, "
      "str acceleration, float omega, float scaling, bool keeps_kernel) -> (Tensor, Tensor, "
      "Tensor, Tensor, Tensor)");
  m.def(
      "transport_dense_partial(Tensor cost, Tensor a, Tensor b, Tensor cap_a, Tensor cap_b, "
      "Tensor mass, Tensor eps, Tensor? start, float? tol, int max_iter, int check_every) -> "
      "(Tensor f, Tensor g, Tensor level, Tensor error, Tensor iterations, Tensor status)");
  m.def(
      "transport_dense_softmin(Tensor cost, Tensor weight, Tensor source, Tensor eps, "
      "bool columns) -> Tensor");
  m.def(
      "transport_dense_plan(Tensor cost, Tensor a, Tensor b, Tensor f, Tensor g, Tensor eps, "
      "Tensor? p, Tensor? q) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("transport_dense_solve", TORCH_BOX(&dense_solve));
  m.impl("transport_dense_partial", TORCH_BOX(&dense_partial));
  m.impl("transport_dense_softmin", TORCH_BOX(&dense_softmin));
  m.impl("transport_dense_plan", TORCH_BOX(&dense_plan));
}

}  // namespace regkern::transport
