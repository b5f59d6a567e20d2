#include "core/op.h"
#include "proximal/pairwise.h"

// The prox of the distance between the rows of pairs.

namespace regkern::proximal {
namespace {

void set_threshold(const Checks& check, const Tensor& threshold, const Tensor& x, int64_t pairs,
                   Tensor* kept, PairArgs* args) {
  check.same_device(threshold, "threshold", x);
  const bool wide = args->dtype == Dtype::float64;
  check.dtype(threshold, "threshold", compute_type(args->dtype), wide ? "float64" : "float32");
  check.that(threshold.numel() == 1 || threshold.numel() == pairs,
             "`threshold` of 1 or " + std::to_string(pairs) + " elements", sizes_name(threshold));
  *kept = torch::stable::contiguous(threshold);
  args->threshold = kept->const_data_ptr();
  args->threshold_per_pair = threshold.numel() != 1;
}

std::tuple<Tensor, Tensor, Tensor> pair_prox(const Tensor& x, const Tensor& y,
                                             const Tensor& threshold) {
  const Checks check("pair_prox");
  PairArgs args{};
  args.dtype = check.floating(x, "x");
  check.same_device(y, "y", x);
  check.that(y.scalar_type() == x.scalar_type() && sizes_of(y) == sizes_of(x),
             "`y` of the shape and dtype of `x`, " + sizes_name(x), sizes_name(y));
  check.that(x.dim() >= 1, "`x` of at least one dimension", sizes_name(x));
  args.n = x.size(x.dim() - 1);
  args.count = args.rows = args.n > 0 ? x.numel() / args.n : 0;
  std::vector<int64_t> batch = sizes_of(x);
  batch.pop_back();
  const Tensor rows_x = torch::stable::contiguous(x), rows_y = torch::stable::contiguous(y);
  const Tensor x_out = new_tensor(x, sizes_of(x), x.scalar_type());
  const Tensor y_out = new_tensor(x, sizes_of(x), x.scalar_type());
  const Tensor shares = new_tensor(x, batch, compute_type(args.dtype));
  Tensor kept;
  set_threshold(check, threshold, x, shares.numel(), &kept, &args);
  if (args.count > 0) {
    args.x = rows_x.const_data_ptr();
    args.y = rows_y.const_data_ptr();
    args.x_out = x_out.mutable_data_ptr();
    args.y_out = y_out.mutable_data_ptr();
    args.shares = shares.mutable_data_ptr();
    backend::pair_prox(args, OnDevice(x));
  }
  return {x_out, y_out, shares};
}

void pair_prox_(const Tensor& q, const Tensor& pairs, std::vector<int64_t> rounds,
                const Tensor& threshold) {
  const Checks check("pair_prox_");
  PairArgs args{};
  args.dtype = check.floating(q, "q");
  check.that(q.dim() == 2, "`q` of two dimensions", sizes_name(q));
  check.same_device(pairs, "pairs", q);
  check.dtype(pairs, "pairs", ScalarType::Long, "int64");
  const int64_t all = pairs.numel() / 2;
  check.shape(pairs, "pairs", {all, 2});
  int64_t before = 0;
  for (const int64_t end : rounds) {
    check.that(end >= before && end <= all,
               "`rounds` that do not fall and end by " + std::to_string(all), std::to_string(end));
    before = end;
  }
  Tensor kept;
  set_threshold(check, threshold, q, all, &kept, &args);
  args.rows = q.size(0);
  args.n = q.size(1);
  if (q.numel() == 0) return;
  const Tensor rows = torch::stable::contiguous(q);
  const Tensor list = torch::stable::contiguous(pairs);
  args.x = args.y = args.x_out = args.y_out = rows.mutable_data_ptr();
  const OnDevice device(q);
  const int64_t size = args.dtype == Dtype::float64 ? 8 : 4;
  const auto* thresholds = static_cast<const char*>(args.threshold);
  before = 0;
  for (const int64_t end : rounds) {
    args.pairs = const_data<int64_t>(list) + 2 * before;
    args.count = end - before;
    args.threshold = thresholds + (args.threshold_per_pair ? before * size : 0);
    if (args.count > 0) backend::pair_prox(args, device);
    before = end;
  }
  Tensor target = q;
  if (!q.is_contiguous()) torch::stable::copy_(target, rows);
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def("pair_prox(Tensor x, Tensor y, Tensor threshold) -> (Tensor x, Tensor y, Tensor share)");
  m.def("pair_prox_(Tensor(a!) q, Tensor pairs, int[] rounds, Tensor threshold) -> ()");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("pair_prox", TORCH_BOX(&pair_prox));
  m.impl("pair_prox_", TORCH_BOX(&pair_prox_));
}

}  // namespace regkern::proximal
