#include <string>
#include <tuple>

#include "transport/small.h"
#include "transport/solve.h"

// Sinkhorn's iteration on many small dense costs.

namespace regkern::transport {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> small_solve(
    const Tensor& cost, const Tensor& a, const Tensor& b, const Tensor& eps, const Tensor& rho,
    MaybeTensor eps_start, MaybeTensor f, MaybeTensor g, std::optional<double> tol,
    int64_t max_iter, int64_t check_every, std::string acceleration, double omega, double scaling) {
  const Checks check("transport_small_solve");
  SmallArgs args{};
  args.dtype = check.floating(cost, "cost");
  check.that(cost.dim() == 3, "`cost` of three dimensions", sizes_name(cost));
  check.that(cost.is_contiguous(), "contiguous `cost`", "a strided one");
  const int64_t batch = cost.size(0), n = cost.size(1), m = cost.size(2);
  check.that(n > 0 && m > 0 && n <= kSmallSide && m <= kSmallSide,
             "`cost` of 1 to " + std::to_string(kSmallSide) + " points on either side",
             sizes_name(cost));
  check_problem(check, Problem{cost, a, b, rho, eps, eps_start, f, g}, batch, n, m);
  const auto accelerated =
      static_cast<Acceleration>(check.one_of(acceleration, "acceleration", {"none", "relaxed"}));
  check_settings(check, Settings{tol, max_iter, check_every, accelerated, omega, scaling});
  check.that(!eps_start.has_value(), "no `eps_start`", "one");
  args.relaxed = accelerated == Acceleration::relaxed;
  args.omega = omega;
  args.batch = batch;
  args.n = static_cast<int32_t>(n);
  args.m = static_cast<int32_t>(m);
  args.max_iter = max_iter;
  args.check_every = check_every;
  args.stops = tol.has_value();
  args.tol = tol.value_or(0.0);
  const Solution found{new_tensor(cost, {batch, n}, ScalarType::Double),
                       new_tensor(cost, {batch, m}, ScalarType::Double),
                       new_tensor(cost, {batch}, ScalarType::Double),
                       new_tensor(cost, {batch}, ScalarType::Int),
                       new_tensor(cost, {batch}, ScalarType::Char)};
  if (batch > 0) {
    const int64_t room = kValuesReadable ? 0 : small_space(args);
    const Tensor space = new_tensor(cost, {room}, ScalarType::Double);
    args.cost = cost.const_data_ptr();
    args.a = const_data<double>(a);
    args.b = const_data<double>(b);
    args.eps = const_data<double>(eps);
    args.rho = const_data<double>(rho);
    args.f_from = f.has_value() ? const_data<double>(*f) : nullptr;
    args.g_from = g.has_value() ? const_data<double>(*g) : nullptr;
    args.f = mutable_data<double>(found.f);
    args.g = mutable_data<double>(found.g);
    args.error = mutable_data<double>(found.error);
    args.iterations = mutable_data<int32_t>(found.iterations);
    args.status = mutable_data<int8_t>(found.status);
    args.space = space.mutable_data_ptr();
    backend::transport_small(args, OnDevice(cost));
  }
  return {found.f, found.g, found.error, found.iterations, found.status};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "transport_small_solve(Tensor cost, Tensor a, Tensor b, Tensor eps, Tensor rho, "
      "Tensor? eps_start, Tensor? f, Tensor? g, float? tol, int max_iter, int check_every, "
      "str acceleration, float omega, float scaling) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("transport_small_solve", TORCH_BOX(&small_solve));
}

}  // namespace regkern::transport
