#include <cstdint>
#include <string>
#include <vector>

#include "spectral/inner.h"
#include "spectral/op.h"
#include "spectral/rank_one.h"

// Division by spectral norms, its gradient, and rank-1 updates, over lists.

namespace regkern::spectral {
namespace {

// `numbers` of the compute type, one for each tensor.
const void* check_numbers(const Checks& check, const Tensor& numbers, const char* name,
                          const Tensors& list, Dtype dtype) {
  check.same_device(numbers, name, list[0]);
  check.dtype(numbers, name, compute_type(dtype), dtype == Dtype::float64 ? "float64" : "float32");
  check.shape(numbers, name, {static_cast<int64_t>(list.size())});
  check.that(numbers.is_contiguous(), std::string("contiguous `") + name + "`", "a strided one");
  return numbers.const_data_ptr();
}

struct Rows {
  std::vector<RankOneRow> rows;
  int64_t first = 0;

  void add(const void* x, void* out, const void* u, const void* v, int64_t numel, int64_t n_rows,
           int64_t n1) {
    rows.push_back(
        {x, out, u, v, numel, first, static_cast<int32_t>(n_rows), static_cast<int32_t>(n1)});
    first += list_span(numel);
  }
  void launch(RankOneArgs args, const Tensor& like) const {
    args.rows = rows.data();
    args.count = static_cast<int64_t>(rows.size());
    if (first > 0) backend::rank_one(args, OnDevice(like));
  }
};

double check_cap(const Checks& check, double cap) {
  check.that(cap >= 0.0, "`cap` of at least 0", std::to_string(cap));
  return cap;
}

// ---- w / max(1, σ / cap) ----

Tensors spectral_divide(Tensors weights, const Tensor& sigma, double cap) {
  const Checks check("spectral_divide");
  RankOneArgs a{};
  a.dtype = check_list(check, weights, "weights");
  a.factors = Factors::divide;
  a.numbers = check_numbers(check, sigma, "sigma", weights, a.dtype);
  a.cap = check_cap(check, cap);
  Tensors out, held;
  Rows rows;
  for (const Tensor& w : weights) {
    const Dense in = dense(w);
    held.push_back(in.tensor);
    Tensor y = torch::stable::empty_like(in.tensor);
    rows.add(in.tensor.const_data_ptr(), y.mutable_data_ptr(), nullptr, nullptr, w.numel(), 1, 1);
    out.push_back(y);
  }
  rows.launch(a, weights[0]);
  return out;
}

void spectral_divide_(Tensors weights, const Tensor& sigma, double cap) {
  const Checks check("spectral_divide_");
  RankOneArgs a{};
  a.dtype = check_list(check, weights, "weights");
  a.factors = Factors::divide;
  a.numbers = check_numbers(check, sigma, "sigma", weights, a.dtype);
  a.cap = check_cap(check, cap);
  Written written;
  Rows rows;
  for (const Tensor& w : weights) {
    void* const data = is_channels_last(w) ? w.mutable_data_ptr() : written.row_major(w, true);
    rows.add(data, data, nullptr, nullptr, w.numel(), 1, 1);
  }
  rows.launch(a, weights[0]);
  written.copy_back();
}

// u and v of matrix i, in the compute type.
struct Vectors {
  const void *u, *v;
};
Vectors vectors_of(const Checks& check, const Tensors& u, const Tensors& v, size_t i,
                   const Matrix& m, Dtype dtype, Tensors* held) {
  check_length(check, u[i], "u", i, m.rows);
  check_length(check, v[i], "v", i, columns_of(m));
  return {computed(u[i], dtype, held).const_data_ptr(),
          computed(v[i], dtype, held).const_data_ptr()};
}

// (g − ⟨g, w/σ⟩ u vᵀ) / σ where σ divided, g elsewhere.
Tensors spectral_divide_backward(Tensors grads, Tensors weights, const Tensor& sigma, Tensors u,
                                 Tensors v, Dims dims, double cap) {
  const Checks check("spectral_divide_backward");
  RankOneArgs a{};
  a.dtype = check_list(check, weights, "weights");
  check_like(check, grads, "grads", weights, "weights");
  check.that(check_list(check, grads, "grads") == a.dtype, "`grads` of the dtype of `weights`",
             "another");
  check_dims(check, dims, weights, "weights");
  check_vectors(check, u, "u", weights, "weights");
  check_vectors(check, v, "v", weights, "weights");
  a.factors = Factors::gradient;
  a.numbers = check_numbers(check, sigma, "sigma", weights, a.dtype);
  a.cap = check_cap(check, cap);
  Read read;
  Tensors out, held;
  Rows rows;
  std::vector<InnerRow> pairs;
  int64_t segments = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Matrix m = row_major_matrix(check, weights[i], dims[i]);
    const Vectors pair = vectors_of(check, u, v, i, m, a.dtype, &held);
    const int64_t numel = weights[i].numel();
    const void* const g = read.row_major(grads[i]);
    pairs.push_back({g, read.row_major(weights[i]), numel, segments});
    segments += segment_count(numel);
    out.push_back(new_tensor(weights[i], sizes_of(weights[i]), weights[i].scalar_type()));
    rows.add(g, out.back().mutable_data_ptr(), pair.u, pair.v, numel, m.rows, m.n1);
  }
  Tensor scratch = new_tensor(weights[0], {segments}, ScalarType::Double);
  Tensor products =
      new_tensor(weights[0], {static_cast<int64_t>(pairs.size())}, ScalarType::Double);
  a.products = const_data<double>(products);
  backend::inner(InnerArgs{a.dtype, pairs.data(), static_cast<int64_t>(pairs.size()),
                           mutable_data<double>(scratch), mutable_data<double>(products)},
                 OnDevice(weights[0]));
  rows.launch(a, weights[0]);
  for (size_t i = 0; i < out.size(); ++i) out[i] = laid_out(out[i], weights[i]);
  return out;
}

// ---- scale u vᵀ ----

RankOneArgs outer_args(const Checks& check, const Tensors& list, const Tensors& u, const Tensors& v,
                       const Tensor& scale, const Dims& dims) {
  RankOneArgs a{};
  a.dtype = check_list(check, list, "tensors");
  check_dims(check, dims, list, "tensors");
  check_vectors(check, u, "u", list, "tensors");
  check_vectors(check, v, "v", list, "tensors");
  a.factors = Factors::given;
  a.numbers = check_numbers(check, scale, "scale", list, a.dtype);
  return a;
}

Tensors outer(Tensors tensors, Tensors u, Tensors v, const Tensor& scale, Dims dims) {
  const Checks check("outer");
  const RankOneArgs a = outer_args(check, tensors, u, v, scale, dims);
  Tensors out, held;
  Rows rows;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Matrix m = row_major_matrix(check, tensors[i], dims[i]);
    const Vectors pair = vectors_of(check, u, v, i, m, a.dtype, &held);
    out.push_back(new_tensor(tensors[i], sizes_of(tensors[i]), tensors[i].scalar_type()));
    rows.add(nullptr, out.back().mutable_data_ptr(), pair.u, pair.v, tensors[i].numel(), m.rows,
             m.n1);
  }
  rows.launch(a, tensors[0]);
  for (size_t i = 0; i < out.size(); ++i) out[i] = laid_out(out[i], tensors[i]);
  return out;
}

void add_outer_(Tensors tensors, Tensors u, Tensors v, const Tensor& scale, Dims dims) {
  const Checks check("add_outer_");
  const RankOneArgs a = outer_args(check, tensors, u, v, scale, dims);
  Written written;
  Tensors held;
  Rows rows;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Matrix m = row_major_matrix(check, tensors[i], dims[i]);
    const Vectors pair = vectors_of(check, u, v, i, m, a.dtype, &held);
    void* const data = written.row_major(tensors[i], true);
    rows.add(data, data, pair.u, pair.v, tensors[i].numel(), m.rows, m.n1);
  }
  rows.launch(a, tensors[0]);
  written.copy_back();
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def("spectral_divide(Tensor[] weights, Tensor sigma, float cap) -> Tensor[]");
  m.def("spectral_divide_(Tensor(a!)[] weights, Tensor sigma, float cap) -> ()");
  m.def(
      "spectral_divide_backward(Tensor[] grads, Tensor[] weights, Tensor sigma, Tensor[] u, "
      "Tensor[] v, int[] dims, float cap) -> Tensor[]");
  m.def("outer(Tensor[] tensors, Tensor[] u, Tensor[] v, Tensor scale, int[] dims) -> Tensor[]");
  m.def("add_outer_(Tensor(a!)[] tensors, Tensor[] u, Tensor[] v, Tensor scale, int[] dims) -> ()");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("spectral_divide", TORCH_BOX(&spectral_divide));
  m.impl("spectral_divide_", TORCH_BOX(&spectral_divide_));
  m.impl("spectral_divide_backward", TORCH_BOX(&spectral_divide_backward));
  m.impl("outer", TORCH_BOX(&outer));
  m.impl("add_outer_", TORCH_BOX(&add_outer_));
}

}  // namespace regkern::spectral
