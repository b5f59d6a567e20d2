#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "spectral/op.h"
#include "spectral/power_iteration.h"

// The power iteration over lists.

namespace regkern::spectral {
namespace {

using Results = std::tuple<Tensor, Tensor, Tensor>;

Results run(const Checks& check, const Tensors& weights, const Tensors& u, const Tensors& v,
            const Dims& dims, int64_t n_iter, double tolerance, double eps, bool frobenius,
            bool in_place) {
  PowerArgs a{};
  a.dtype = check_list(check, weights, "weights");
  check_dims(check, dims, weights, "weights");
  check_vectors(check, u, "u", weights, "weights");
  check_vectors(check, v, "v", weights, "weights");
  check.that(n_iter >= 0, "`n_iter` of at least 0", std::to_string(n_iter));
  check.that(eps >= 0.0, "`eps` of at least 0", std::to_string(eps));
  const ScalarType type = compute_type(a.dtype);
  const Tensor& like = weights[0];
  Read read;
  Tensors held;
  std::vector<PowerRow> rows;
  int64_t chunks = 0, partials = 0, all_u = 0, all_v = 0;
  // Blocks of the GPU have a chunk each, threads of the CPU a span.
  const auto pieces = [](const Matrix& m) {
    return kValuesReadable ? span_count_of(m) : chunk_count(m);
  };
  struct Buffer {
    Tensor target, source;
  };
  std::vector<Buffer> back;
  for (size_t i = 0; i < weights.size(); ++i) {
    PowerRow row{};
    row.w = matrix_of(check, weights[i], dims[i], &read);
    const int64_t n = columns_of(row.w);
    check_length(check, u[i], "u", i, row.w.rows);
    check_length(check, v[i], "v", i, n);
    const Tensor from_u = computed(u[i], a.dtype, &held), from_v = computed(v[i], a.dtype, &held);
    row.u = from_u.const_data_ptr();
    row.v = from_v.const_data_ptr();
    if (in_place) {
      const auto target = [&](const Tensor& t, const Tensor& source) {
        if (t.scalar_type() == type && t.is_contiguous()) return t.mutable_data_ptr();
        back.push_back({t, source});
        return source.mutable_data_ptr();
      };
      row.u_too = target(u[i], from_u);
      row.v_too = target(v[i], from_v);
    }
    row.partial = partials;
    row.chunk = chunks;
    partials += pieces(row.w) * n;
    chunks += pieces(row.w);
    all_u += row.w.rows;
    all_v += n;
    rows.push_back(row);
  }
  Tensor u_out = new_tensor(like, {all_u}, type), v_out = new_tensor(like, {all_v}, type);
  const int64_t bytes = type == ScalarType::Double ? 8 : 4;
  auto* at_u = static_cast<char*>(u_out.mutable_data_ptr());
  auto* at_v = static_cast<char*>(v_out.mutable_data_ptr());
  for (PowerRow& row : rows) {
    row.u_out = at_u;
    row.v_out = at_v;
    at_u += row.w.rows * bytes;
    at_v += columns_of(row.w) * bytes;
  }
  a.rows = rows.data();
  a.count = static_cast<int64_t>(rows.size());
  a.iterations = n_iter;
  a.frobenius = frobenius;
  a.tolerance = tolerance;
  a.eps = eps;
  Tensor numbers = new_tensor(like, {kDone, a.count}, type);
  Tensor stats = new_tensor(like, {a.count, kStats}, ScalarType::Double);
  a.numbers = numbers.mutable_data_ptr();
  Tensor partial = new_tensor(like, {n_iter > 0 ? partials : 0}, type);
  Tensor exponents = new_tensor(like, {chunks + a.count}, ScalarType::Int);
  Tensor squares = new_tensor(like, {frobenius ? chunks : 0}, ScalarType::Double);
  a.stats = mutable_data<double>(stats);
  a.partials = partial.mutable_data_ptr();
  a.exponents = mutable_data<int32_t>(exponents);
  a.totals = a.exponents + chunks;
  a.squares = mutable_data<double>(squares);
  backend::power_iteration(a, OnDevice(like));
  for (auto& [target, source] : back) {
    Tensor to = target;
    torch::stable::copy_(to, source);
  }
  return {numbers, u_out, v_out};
}

Results power_iteration(Tensors weights, Tensors u, Tensors v, Dims dims, int64_t n_iter,
                        double tolerance, double eps, bool frobenius) {
  return run(Checks("power_iteration"), weights, u, v, dims, n_iter, tolerance, eps, frobenius,
             false);
}

Results power_iteration_(Tensors weights, Tensors u, Tensors v, Dims dims, int64_t n_iter,
                         double tolerance, double eps, bool frobenius) {
  return run(Checks("power_iteration_"), weights, u, v, dims, n_iter, tolerance, eps, frobenius,
             true);
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "power_iteration(Tensor[] weights, Tensor[] u, Tensor[] v, int[] dims, int n_iter, "
      "float tolerance, float eps, bool frobenius) -> (Tensor, Tensor, Tensor)");
  m.def(
      "power_iteration_(Tensor[] weights, Tensor(a!)[] u, Tensor(b!)[] v, int[] dims, int n_iter, "
      "float tolerance, float eps, bool frobenius) -> (Tensor, Tensor, Tensor)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("power_iteration", TORCH_BOX(&power_iteration));
  m.impl("power_iteration_", TORCH_BOX(&power_iteration_));
}

}  // namespace regkern::spectral
