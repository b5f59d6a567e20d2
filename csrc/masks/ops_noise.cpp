#include "core/op.h"
#include "masks/noise_inject.h"

namespace regkern::masks {
namespace {

struct Injection {
  NoiseInjectArgs args{};
  Tensor held[kCoefficients];
};

using Given = const MaybeTensor*;

// `index` says which group of coefficients an element has: (width, repeat, run) of MaskIndex.
Injection injection(const Checks& check, const Tensor& x, const Tensor& seed,
                    const std::string& kind, const std::vector<int64_t>& index,
                    std::initializer_list<Given> coefficients) {
  Injection r;
  NoiseInjectArgs& args = r.args;
  args.dtype = check.floating(x, "x");
  check.seed(seed, x);
  args.seed = const_data<int64_t>(seed);
  args.normal = check.one_of(kind, "kind", {"gaussian", "uniform"}) == 0;
  args.numel = x.numel();
  check.that(index.size() == 3 && index[0] > 0 && index[1] > 0 && index[2] > 0,
             "`index` of three positive numbers", std::to_string(index.size()) + " numbers");
  args.index = {index[0], index[1], index[2]};
  const int64_t span = index[0] * index[1] * index[2];
  check.that(x.numel() % span == 0, "`index` whose product divides the elements of `x`",
             std::to_string(span) + " of " + std::to_string(x.numel()));
  const int64_t groups = x.numel() / (index[0] * index[1]);
  const char* names[] = {"factor", "factor_noise", "shift", "shift_noise", "shift_more"};
  int k = 0;
  for (Given given : coefficients) {
    if (given->has_value()) {
      const Tensor& t = **given;
      check.same_device(t, names[k], x);
      check.dtype(t, names[k], compute_type(args.dtype), "float64 with float64, else float32");
      check.that(t.numel() == groups || x.numel() == 0,
                 std::string("`") + names[k] + "` of " + std::to_string(groups) + " elements",
                 std::to_string(t.numel()));
      r.held[k] = torch::stable::contiguous(t);
      args.coefficients[k] = r.held[k].const_data_ptr();
    }
    ++k;
  }
  return r;
}

Tensor noise_inject(const Tensor& x, const Tensor& seed, std::string kind,
                    std::vector<int64_t> index, MaybeTensor factor, MaybeTensor factor_noise,
                    MaybeTensor shift, MaybeTensor shift_noise, MaybeTensor shift_more) {
  Injection r = injection(Checks("noise_inject"), x, seed, kind, index,
                          {&factor, &factor_noise, &shift, &shift_noise, &shift_more});
  const Tensor in = torch::stable::contiguous(x);
  Tensor y = new_tensor(x, sizes_of(x), x.scalar_type());
  r.args.x = in.const_data_ptr();
  r.args.y = y.mutable_data_ptr();
  if (x.numel() > 0) backend::noise_inject(r.args, OnDevice(x));
  return laid_out(y, x);
}

void noise_inject_(const Tensor& x, const Tensor& seed, std::string kind,
                   std::vector<int64_t> index, MaybeTensor factor_noise, MaybeTensor shift_noise) {
  const MaybeTensor none;
  Injection r = injection(Checks("noise_inject_"), x, seed, kind, index,
                          {&none, &factor_noise, &none, &shift_noise});
  const Tensor in = torch::stable::contiguous(x);
  r.args.x = in.const_data_ptr();
  r.args.y = in.mutable_data_ptr();
  if (x.numel() > 0) backend::noise_inject(r.args, OnDevice(x));
  if (in.const_data_ptr() != x.const_data_ptr()) {
    Tensor target = x;
    torch::stable::copy_(target, in);
  }
}

std::tuple<Tensor, Tensor> noise_perturb(const Tensor& x, const Tensor& seed, const Tensor& factor,
                                         const Tensor& shift_noise, MaybeTensor shift_more) {
  const Checks check("noise_perturb");
  check.that(x.dim() >= 1, "`x` of rank 1 or more", "0");
  const int64_t batch = x.size(0), size = batch > 0 ? x.numel() / batch : 0;
  const MaybeTensor none, c = factor, q = shift_noise;
  Injection r = injection(check, x, seed, "gaussian", {size > 0 ? size : 1, 1, 1},
                          {&c, &none, &none, &q, &shift_more});
  const Tensor in = torch::stable::contiguous(x);
  Tensor y = new_tensor(x, sizes_of(x), x.scalar_type());
  Tensor noise = new_tensor(x, sizes_of(x), x.scalar_type());
  r.args.x = in.const_data_ptr();
  r.args.y = y.mutable_data_ptr();
  r.args.noise = noise.mutable_data_ptr();
  if (x.numel() > 0) backend::noise_inject(r.args, OnDevice(x));
  return {laid_out(y, x), laid_out(noise, x)};
}

std::tuple<Tensor, Tensor> noise_triplet(const Tensor& x, const Tensor& seed, double eps) {
  const Checks check("noise_triplet");
  NoiseTripletArgs args{};
  args.dtype = check.floating(x, "x");
  check.seed(seed, x);
  check.that(x.dim() >= 1, "`x` of rank 1 or more", "0");
  std::vector<int64_t> sizes = sizes_of(x);
  args.batch = sizes[0];
  args.size = args.batch > 0 ? x.numel() / args.batch : 0;
  sizes[0] *= 3;
  const Tensor in = torch::stable::contiguous(x);
  Tensor y = new_tensor(x, sizes, x.scalar_type());
  Tensor alpha = new_tensor(x, {args.batch}, ScalarType::Double);
  args.x = in.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.seed = const_data<int64_t>(seed);
  args.eps = eps;
  args.alpha = mutable_data<double>(alpha);
  if (args.batch > 0) backend::noise_triplet(args, OnDevice(x));
  return {laid_out(y, x), alpha};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "noise_inject(Tensor x, Tensor seed, str kind, int[] index, Tensor? factor, "
      "Tensor? factor_noise, Tensor? shift, Tensor? shift_noise, Tensor? shift_more) -> Tensor");
  m.def(
      "noise_inject_(Tensor(a!) x, Tensor seed, str kind, int[] index, Tensor? factor_noise, "
      "Tensor? shift_noise) -> ()");
  m.def(
      "noise_perturb(Tensor x, Tensor seed, Tensor factor, Tensor shift_noise, "
      "Tensor? shift_more) -> (Tensor y, Tensor noise)");
  m.def("noise_triplet(Tensor x, Tensor seed, float eps) -> (Tensor y, Tensor alpha)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("noise_inject", TORCH_BOX(&noise_inject));
  m.impl("noise_inject_", TORCH_BOX(&noise_inject_));
  m.impl("noise_perturb", TORCH_BOX(&noise_perturb));
  m.impl("noise_triplet", TORCH_BOX(&noise_triplet));
}

}  // namespace regkern::masks
