#include <algorithm>
#include <string>
#include <tuple>

#include "core/op.h"
#include "transport/sparse_transport.h"

// Transport with few entries a column.

namespace regkern::transport {
namespace {

Tensor weights(const Checks& check, const Tensor& t, const char* name, const Tensor& cost,
               std::initializer_list<int64_t> shape) {
  check.same_device(t, name, cost);
  check.dtype(t, name, ScalarType::Double, "float64");
  check.shape(t, name, shape);
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

const int32_t* places(const Checks& check, const Tensor& t, const char* name, const Tensor& cost,
                      int64_t size) {
  check.same_device(t, name, cost);
  check.dtype(t, name, ScalarType::Int, "int32");
  check.shape(t, name, {size});
  check.that(t.is_contiguous(), std::string("contiguous `") + name + "`", "a strided one");
  return const_data<int32_t>(t);
}

// Of all lists together, where not even one block's need more: 192 MiB.
constexpr int64_t kListWords = int64_t{1} << 24;

using Solved = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Solved sparse_transport(const Tensor& cost, const Tensor& a, const Tensor& b, const Tensor& gamma,
                        const Tensor& alpha, const Tensor& beta, int64_t k,
                        const std::string& method, double tol, int64_t max_iter,
                        const MaybeTensor& mu, const MaybeTensor& group_rows,
                        const MaybeTensor& group_starts) {
  const Checks check("sparse_transport");
  SparseTransportArgs args{};
  args.dtype = check.floating(cost, "cost");
  check.that(cost.dim() == 3, "`cost` of three dimensions", sizes_name(cost));
  check.that(a.dim() == 2, "`a` of two dimensions", sizes_name(a));
  const int64_t batch = a.size(0), n = cost.size(1), m = cost.size(2);
  check.that(cost.size(0) == 1 || cost.size(0) == batch,
             "`cost` of 1 or " + std::to_string(batch) + " matrices", sizes_name(cost));
  check.that(n < (int64_t{1} << 22), "`cost` of less than 2^22 rows", std::to_string(n));
  const Tensor as = weights(check, a, "a", cost, {batch, n});
  const Tensor bs = weights(check, b, "b", cost, {batch, m});
  const Tensor gammas = weights(check, gamma, "gamma", cost, {batch});
  const Tensor from_a = weights(check, alpha, "alpha", cost, {batch, n});
  const Tensor from_b = weights(check, beta, "beta", cost, {batch, m});
  check.that(k >= 0 && k < (int64_t{1} << 22), "`k` from 0 to below 2^22", std::to_string(k));
  check.that(max_iter >= 0, "`max_iter` to be at least 0", std::to_string(max_iter));
  const int dual = check.one_of(method, "method", {"semi_dual", "dual"});
  const bool grouped = mu.has_value();
  check.that(group_rows.has_value() == grouped && group_starts.has_value() == grouped,
             "`mu`, `group_rows` and `group_starts` together", "some of them");
  if (grouped) {
    check.that(dual == 1 && k == 0, "`mu` with method dual and k 0",
               method + " and " + std::to_string(k));
    weights(check, *mu, "mu", cost, {batch});
    check.that(mu->is_contiguous(), "contiguous `mu`", "a strided one");
    args.mu = const_data<double>(*mu);
    args.group_rows = places(check, *group_rows, "group_rows", cost, n);
    args.group_starts = places(check, *group_starts, "group_starts", cost, n + 1);
  }
  const auto real = [&](std::vector<int64_t> sizes) {
    return new_tensor(cost, sizes, ScalarType::Double);
  };
  const Tensor f = torch::stable::clone(from_a), g = torch::stable::clone(from_b);
  const Tensor value = real({batch}), error = real({batch}), entries = real({batch, m, k});
  const Tensor index = new_tensor(cost, {batch, m, k}, ScalarType::Int);
  const Tensor iterations = new_tensor(cost, {batch}, ScalarType::Int);
  const Tensor status = new_tensor(cost, {batch}, ScalarType::Char);
  if (batch > 0) {
    check.that(n > 0 && m > 0, "`cost` of at least one row and one column", sizes_name(cost));
    args.method = dual == 1 ? SparseMethod::dual : SparseMethod::semi_dual;
    args.batch = batch;
    args.rows = n;
    args.columns = m;
    args.cost_stride = cost.size(0) == 1 ? 0 : n * m;
    args.k = k;
    args.max_evaluations = max_iter;
    args.tol = tol;
    const Tensor costs = cost.is_contiguous() ? cost : torch::stable::contiguous(cost);
    args.cost = costs.const_data_ptr();
    args.a = const_data<double>(as);
    args.b = const_data<double>(bs);
    args.gamma = const_data<double>(gammas);
    const int64_t state_words = static_cast<int64_t>(sizeof(SparseState) / sizeof(double));
    static_assert(sizeof(SparseState) % sizeof(double) == 0);
    const Tensor state = real({batch, state_words});
    const Tensor vectors = real({batch, kVectors, variables_of(args)});
    const Tensor row_sums = new_tensor(cost, {batch, n}, ScalarType::Long);
    const Tensor column_value = real({batch, m}), column_sum = real({batch, m});
    args.state = static_cast<SparseState*>(state.mutable_data_ptr());
    args.vectors = mutable_data<double>(vectors);
    args.row_sums = mutable_data<int64_t>(row_sums);
    args.column_value = mutable_data<double>(column_value);
    args.column_sum = mutable_data<double>(column_sum);
    args.alpha = mutable_data<double>(f);
    args.beta = mutable_data<double>(g);
    args.value = mutable_data<double>(value);
    args.error = mutable_data<double>(error);
    args.iterations = mutable_data<int32_t>(iterations);
    args.status = mutable_data<int8_t>(status);
    args.index = mutable_data<int32_t>(index);
    args.entries = mutable_data<double>(entries);
    // The lists of as many blocks as have something to do, or fit.
    const bool on_gpu = !kValuesReadable, listed = on_gpu && k > kSortedEntries;
    const int64_t words = listed ? list_words(args) : 0;
    const int64_t tasks = batch * ((m + kBlockColumns - 1) / kBlockColumns);
    args.list_blocks = listed ? std::clamp(kListWords / words, int64_t{1}, tasks) : 0;
    const Tensor list_values = real({args.list_blocks * words});
    const Tensor list_index = new_tensor(cost, {args.list_blocks * words}, ScalarType::Int);
    args.list_values = mutable_data<double>(list_values);
    args.list_index = mutable_data<int32_t>(list_index);
    backend::sparse_transport(args, OnDevice(cost));
  }
  return {f, g, value, index, entries, error, iterations, status};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "sparse_transport(Tensor cost, Tensor a, Tensor b, Tensor gamma, Tensor alpha, Tensor beta, "
      "int k, str method, float tol, int max_iter, Tensor? mu, Tensor? group_rows, Tensor? "
      "group_starts) -> (Tensor alpha_out, Tensor beta_out, Tensor "
      "value, Tensor index, Tensor entries, Tensor error, Tensor iterations, Tensor status)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("sparse_transport", TORCH_BOX(&sparse_transport));
}

}  // namespace regkern::transport
