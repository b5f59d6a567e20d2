#include <string>
#include <tuple>

#include "transport/small.h"
#include "transport/small_slopes.h"
#include "transport/solve.h"

// Sinkhorn's iteration on many small dense costs, and what its value is differentiated by.

namespace regkern::transport {
namespace {

// Doubles of one problem each, dense; null where there are none.
class Doubles {
 public:
  Doubles(const Checks& check, const Tensor& like) : check_(check), like_(like) {}

  const double* of(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) const {
    check_.same_device(t, name, like_);
    check_.dtype(t, name, ScalarType::Double, "float64");
    check_.shape(t, name, sizes);
    check_.that(t.is_contiguous(), std::string("contiguous `") + name + "`", "a strided one");
    return const_data<double>(t);
  }
  const double* of(const MaybeTensor& t, const char* name,
                   std::initializer_list<int64_t> sizes) const {
    return t.has_value() ? of(*t, name, sizes) : nullptr;
  }

 private:
  const Checks& check_;
  const Tensor& like_;
};

Dtype check_small(const Checks& check, const Tensor& cost, int64_t most) {
  const Dtype dtype = check.floating(cost, "cost");
  check.that(cost.dim() == 3, "`cost` of three dimensions", sizes_name(cost));
  check.that(cost.is_contiguous(), "contiguous `cost`", "a strided one");
  check.that(cost.size(1) > 0 && cost.size(2) > 0 && cost.size(1) <= most && cost.size(2) <= most,
             "`cost` of 1 to " + std::to_string(most) + " points on either side", sizes_name(cost));
  return dtype;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> small_solve(
    const Tensor& cost, MaybeTensor a, MaybeTensor b, const Tensor& eps, MaybeTensor rho,
    MaybeTensor f, MaybeTensor g, std::optional<double> tol, int64_t max_iter, int64_t check_every,
    std::string acceleration, double omega) {
  const Checks check("transport_small_solve");
  SmallArgs args{};
  args.dtype = check_small(check, cost, kSmallSide);
  const int64_t batch = cost.size(0), n = cost.size(1), m = cost.size(2);
  const Doubles doubles(check, cost);
  args.a = doubles.of(a, "a", {batch, n});
  args.b = doubles.of(b, "b", {batch, m});
  args.eps = doubles.of(eps, "eps", {batch});
  args.rho = doubles.of(rho, "rho", {2, batch});
  args.f_from = doubles.of(f, "f", {batch, n});
  args.g_from = doubles.of(g, "g", {batch, m});
  const auto accelerated =
      static_cast<Acceleration>(check.one_of(acceleration, "acceleration", {"none", "relaxed"}));
  check_settings(check, Settings{tol, max_iter, check_every, accelerated, omega, 1.0});
  args.relaxed = accelerated == Acceleration::relaxed;
  args.omega = omega;
  args.batch = batch;
  args.n = static_cast<int32_t>(n);
  args.m = static_cast<int32_t>(m);
  args.max_iter = max_iter;
  args.check_every = check_every;
  args.stops = tol.has_value();
  args.tol = tol.value_or(0.0);
  const auto made = [&](std::vector<int64_t> sizes, ScalarType type = ScalarType::Double) {
    return new_tensor(cost, std::move(sizes), type);
  };
  const Solution found{made({batch, n}), made({batch, m}), made({batch}),
                       made({batch}, ScalarType::Int), made({batch}, ScalarType::Char)};
  const Tensor value = made({batch});
  if (batch > 0) {
    const Tensor space = made({kValuesReadable ? 0 : small_space(args)});
    args.cost = cost.const_data_ptr();
    args.f = mutable_data<double>(found.f);
    args.g = mutable_data<double>(found.g);
    args.value = mutable_data<double>(value);
    args.error = mutable_data<double>(found.error);
    args.iterations = mutable_data<int32_t>(found.iterations);
    args.status = mutable_data<int8_t>(found.status);
    args.space = space.mutable_data_ptr();
    backend::transport_small(args, OnDevice(cost));
  }
  return {found.f, found.g, value, found.error, found.iterations, found.status};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> small_slopes(const Tensor& cost, MaybeTensor a,
                                                        MaybeTensor b, const Tensor& f,
                                                        const Tensor& g, const Tensor& eps,
                                                        MaybeTensor scale, bool sums) {
  const Checks check("transport_small_slopes");
  SmallSlopesArgs args{};
  args.dtype = check_small(check, cost, kNormalizeSide);
  const int64_t batch = cost.size(0), n = cost.size(1), m = cost.size(2);
  const Doubles doubles(check, cost);
  args.a = doubles.of(a, "a", {batch, n});
  args.b = doubles.of(b, "b", {batch, m});
  args.f = doubles.of(f, "f", {batch, n});
  args.g = doubles.of(g, "g", {batch, m});
  args.eps = doubles.of(eps, "eps", {batch});
  args.scale = doubles.of(scale, "scale", {batch});
  args.batch = batch;
  args.n = static_cast<int32_t>(n);
  args.m = static_cast<int32_t>(m);
  args.cost = cost.const_data_ptr();
  const int64_t some = sums ? batch : 0;
  const Tensor slope = new_tensor(cost, sizes_of(cost), cost.scalar_type());
  const Tensor rows = new_tensor(cost, {some, n}, ScalarType::Double);
  const Tensor columns = new_tensor(cost, {some, m}, ScalarType::Double);
  const Tensor exponents = new_tensor(cost, {some}, ScalarType::Double);
  args.slope = slope.mutable_data_ptr();
  if (sums) {
    args.rows = mutable_data<double>(rows);
    args.columns = mutable_data<double>(columns);
    args.exponents = mutable_data<double>(exponents);
  }
  if (batch > 0) backend::transport_small_slopes(args, OnDevice(cost));
  return {slope, rows, columns, exponents};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "transport_small_solve(Tensor cost, Tensor? a, Tensor? b, Tensor eps, Tensor? rho, "
      "Tensor? f, Tensor? g, float? tol, int max_iter, int check_every, str acceleration, "
      "float omega) -> (Tensor f, Tensor g, Tensor value, Tensor error, Tensor iterations, "
      "Tensor status)");
  m.def(
      "transport_small_slopes(Tensor cost, Tensor? a, Tensor? b, Tensor f, Tensor g, Tensor eps, "
      "Tensor? scale, bool sums) -> (Tensor slope, Tensor rows, Tensor columns, Tensor exponents)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("transport_small_solve", TORCH_BOX(&small_solve));
  m.impl("transport_small_slopes", TORCH_BOX(&small_slopes));
}

}  // namespace regkern::transport
