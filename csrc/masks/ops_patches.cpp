#include <algorithm>

#include "core/op.h"
#include "masks/pair_ranking.h"
#include "masks/patch_gather.h"
#include "masks/patch_mask.h"

namespace regkern::masks {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 30;
constexpr int kMostBoxes = 256;

// The parts of `batch` rows and of n tokens, with outputs still to be named.
PatchPartsArgs parts_args(const Checks& check, const Tensor& seed, int64_t batch, int64_t n) {
  check.seed(seed, seed);
  check.that(batch >= 0, "`batch` to be at least 0", std::to_string(batch));
  check.that(n >= 0 && n <= kMostTokens, "`n` in [0, 2^30]", std::to_string(n));
  PatchPartsArgs args{};
  args.rows = batch;
  args.n = n;
  args.seed = const_data<int64_t>(seed);
  return args;
}

void run_parts(PatchPartsArgs args, const Tensor& seed) {
  // Priorities stay in the cache of a CPU, a row at a time.
  Tensor keys =
      new_tensor(seed, {kValuesReadable ? 0 : args.rows * padded_tokens(args.n)}, ScalarType::Int);
  args.keys = mutable_data<uint32_t>(keys);
  if (args.rows > 0) backend::patch_parts(args, OnDevice(seed));
}

std::tuple<Tensor, Tensor, Tensor> patch_mask(const Tensor& seed, int64_t batch, int64_t n,
                                              int64_t keep, MaybeTensor scores, double alpha,
                                              MaybeTensor alpha_tensor, std::vector<int64_t> grid,
                                              std::vector<double> box, int64_t boxes) {
  const Checks check("patch_mask");
  PatchPartsArgs args = parts_args(check, seed, batch, n);
  check.that(keep >= 0 && keep <= n, "`keep` in [0, " + std::to_string(n) + "]",
             std::to_string(keep));
  Tensor held;
  if (scores.has_value()) {
    check.same_device(*scores, "scores", seed);
    check.dtype(*scores, "scores", ScalarType::Float, "float32");
    check.shape(*scores, "scores", {batch, n});
    check.that(boxes == 0, "`scores` or `boxes`", "both");
    held = torch::stable::contiguous(*scores);
    args.scores = const_data<float>(held);
  }
  args.alpha = alpha;
  if (alpha_tensor.has_value()) {
    check.same_device(*alpha_tensor, "alpha_tensor", seed);
    check.dtype(*alpha_tensor, "alpha_tensor", ScalarType::Double, "float64");
    check.that(alpha_tensor->numel() == 1, "`alpha_tensor` of one element",
               sizes_name(*alpha_tensor));
    args.alpha_at = const_data<double>(*alpha_tensor);
  }
  check.that(boxes >= 0 && boxes <= kMostBoxes, "`boxes` in [0, 256]", std::to_string(boxes));
  if (boxes > 0) {
    bool fits = grid.size() == 3 && box.size() == 4;
    int64_t cells = 1;
    for (int64_t side : grid) {
      fits = fits && side >= 0;
      cells *= side;
    }
    check.that(fits && cells == n, "`grid` of 3 sides, together `n`, and `box` of 4 numbers",
               "others");
    args.depth = grid[0];
    args.height = grid[1];
    args.width = grid[2];
    args.min_area = box[0];
    args.max_area = box[1];
    args.log_min_ratio = box[2];
    args.log_max_ratio = box[3];
    args.boxes = n > 0 ? static_cast<int>(boxes) : 0;
  }
  args.ranges = 1;
  args.apart = true;
  args.least[0] = args.most[0] = static_cast<int32_t>(keep);
  args.first_plane = 1;
  args.planes = 1;
  args.listed = 1;
  args.id_width = keep;
  Tensor mask = new_tensor(seed, {batch, n}, ScalarType::Bool);
  Tensor ids = new_tensor(seed, {batch, keep}, ScalarType::Long);
  Tensor restore = new_tensor(seed, {batch, n}, ScalarType::Long);
  args.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  args.ids = mutable_data<int64_t>(ids);
  args.restore = mutable_data<int64_t>(restore);
  run_parts(args, seed);
  return {mask, ids, restore};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> patch_subsets(const Tensor& seed, int64_t batch,
                                                         int64_t n, std::vector<int64_t> least,
                                                         std::vector<int64_t> most, bool disjoint) {
  const Checks check("patch_subsets");
  PatchPartsArgs args = parts_args(check, seed, batch, n);
  const auto subsets = static_cast<int64_t>(least.size());
  check.that(subsets > 0 && subsets < kMostParts && most.size() == least.size(),
             "`least` and `most` of 1 to 63 numbers each",
             std::to_string(subsets) + " and " + std::to_string(most.size()));
  int64_t sum = 0, width = 0;
  for (size_t s = 0; s < least.size(); ++s) {
    check.that(0 <= least[s] && least[s] <= most[s] && most[s] <= n,
               "0 <= `least` <= `most` <= " + std::to_string(n),
               std::to_string(least[s]) + " and " + std::to_string(most[s]));
    args.least[s] = static_cast<int32_t>(least[s]);
    args.most[s] = static_cast<int32_t>(most[s]);
    sum += most[s];
    width = std::max(width, most[s]);
  }
  check.that(!disjoint || sum <= n, "`most` of disjoint subsets to be no more than `n` together",
             std::to_string(sum));
  Tensor mask = new_tensor(seed, {batch, subsets, n}, ScalarType::Bool);
  Tensor ids = new_tensor(seed, {batch, subsets, width}, ScalarType::Long);
  Tensor sizes = new_tensor(seed, {batch, subsets}, ScalarType::Long);
  Tensor restore = new_tensor(seed, {disjoint ? batch : 0, n}, ScalarType::Long);
  args.ranges = static_cast<int>(subsets);
  args.apart = disjoint;
  if (!disjoint) args.rows = batch * subsets;
  args.planes = disjoint ? static_cast<int>(subsets) : 1;
  args.listed = disjoint ? subsets : 1;
  args.id_width = width;
  args.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  args.ids = mutable_data<int64_t>(ids);
  args.sizes = mutable_data<int64_t>(sizes);
  args.restore = disjoint ? mutable_data<int64_t>(restore) : nullptr;
  run_parts(args, seed);
  return {mask, ids, sizes, restore};
}

void check_ids(const Checks& check, const Tensor& ids, const Tensor& like) {
  check.same_device(ids, "ids", like);
  check.dtype(ids, "ids", ScalarType::Long, "int64");
  check.that(ids.dim() == 2, "`ids` of rank 2", std::to_string(ids.dim()));
}

void check_range(const Checks& check, const Tensor& ids, int64_t end) {
  if (!kValuesReadable) return;
  const int64_t* const id = const_data<int64_t>(ids);
  for (int64_t i = 0; i < ids.numel(); ++i)
    if (id[i] < -1 || id[i] >= end)
      check.that(false, "every one of `ids` in [-1, " + std::to_string(end) + ")",
                 std::to_string(id[i]));
}

Tensor patch_gather(const Tensor& x, const Tensor& given, MaybeTensor fill) {
  const Checks check("patch_gather");
  check.floating(x, "x");
  check.that(x.dim() >= 2, "`x` of rank 2 at least", std::to_string(x.dim()));
  check_ids(check, given, x);
  check.that(given.size(0) == x.size(0), "`ids` with the samples of `x` " + sizes_name(x),
             sizes_name(given));
  const Tensor ids = torch::stable::contiguous(given);
  const int64_t count = x.size(1), rows = ids.size(1);
  check_range(check, ids, fill.has_value() ? std::max(count, rows) : count);
  // Samples and tokens may be anywhere; what a token has is in a piece.
  bool dense = true;
  int64_t columns = 1;
  std::vector<int64_t> sizes = sizes_of(x);
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    dense = dense && (x.size(d) == 1 || x.stride(d) == columns);
    columns *= x.size(d);
  }
  const Tensor in = dense ? x : torch::stable::contiguous(x);
  sizes[1] = rows;
  Tensor y = new_tensor(x, sizes, x.scalar_type());
  Tensor filled;
  PatchCopyArgs args{};
  const int64_t bytes = x.element_size();
  if (fill.has_value()) {
    check.same_device(*fill, "fill", x);
    check.dtype(*fill, "fill", x.scalar_type(), "that of `x`");
    check.that(fill->numel() == columns, "`fill` of " + std::to_string(columns) + " elements",
               sizes_name(*fill));
    filled = torch::stable::contiguous(*fill);
    args.fill = filled.const_data_ptr();
  }
  args.x = in.const_data_ptr();
  args.x_sample = in.stride(0) * bytes;
  args.x_row = in.stride(1) * bytes;
  args.batch = x.size(0);
  args.count = count;
  args.rows = rows;
  args.bytes = columns * bytes;
  args.ids = const_data<int64_t>(ids);
  args.y = y.mutable_data_ptr();
  if (y.numel() > 0) backend::patch_copy(args, OnDevice(x));
  return y;
}

Tensor patch_inverse(const Tensor& given, int64_t count) {
  const Checks check("patch_inverse");
  check_ids(check, given, given);
  check.that(count >= 0, "`count` to be at least 0", std::to_string(count));
  const Tensor ids = torch::stable::contiguous(given);
  const int64_t batch = ids.size(0), rows = ids.size(1);
  Tensor inverse = new_tensor(ids, {batch, count}, ScalarType::Long);
  PatchInverseArgs args{const_data<int64_t>(ids), batch, rows, count,
                        mutable_data<int64_t>(inverse)};
  if (inverse.numel() > 0) backend::patch_inverse(args, OnDevice(ids));
  if (kValuesReadable && count > 0) {
    for (int64_t j = 0; j < ids.numel(); ++j) {
      const int64_t id = args.ids[j], b = j / rows;
      if (id >= 0 && id < count && args.inverse[b * count + id] != j % rows)
        check.that(false, "no `ids` twice in a sample where gradients are wanted",
                   std::to_string(id));
    }
  }
  return inverse;
}

Tensor patch_fill_sum(const Tensor& given, const Tensor& given_ids, int64_t count) {
  const Checks check("patch_fill_sum");
  const Dtype dtype = check.floating(given, "g");
  check.that(given.dim() >= 2, "`g` of rank 2 at least", std::to_string(given.dim()));
  check_ids(check, given_ids, given);
  check.shape(given_ids, "ids", {given.size(0), given.size(1)});
  const Tensor g = torch::stable::contiguous(given), ids = torch::stable::contiguous(given_ids);
  std::vector<int64_t> sizes = sizes_of(g);
  sizes.erase(sizes.begin(), sizes.begin() + 2);
  PatchFillSumArgs args{};
  args.dtype = dtype;
  args.rows = ids.numel();
  args.columns = 1;
  for (int64_t n : sizes) args.columns *= n;
  Tensor sum = new_tensor(g, sizes, g.scalar_type());
  Tensor chunks =
      new_tensor(g, {(args.rows + kFillRows - 1) / kFillRows, args.columns}, ScalarType::Double);
  args.g = g.const_data_ptr();
  args.ids = const_data<int64_t>(ids);
  args.count = count;
  args.chunks = mutable_data<double>(chunks);
  args.sum = sum.mutable_data_ptr();
  if (args.columns > 0) backend::patch_fill_sum(args, OnDevice(g));
  return sum;
}

// Checked and contiguous: what both passes read.
struct Ranking {
  Tensor predicted, target, mask;
  PairRankingArgs args{};

  Ranking(const Checks& check, const Tensor& p, const Tensor& t, const MaybeTensor& there)
      : predicted(torch::stable::contiguous(p)), target(torch::stable::contiguous(t)) {
    const bool wide = p.scalar_type() == ScalarType::Double;
    check.that(wide || p.scalar_type() == ScalarType::Float,
               "`predicted` of dtype float32 or float64", "another");
    check.that(p.dim() == 2, "`predicted` of rank 2", std::to_string(p.dim()));
    check.same_device(t, "target", p);
    check.dtype(t, "target", p.scalar_type(), "that of `predicted`");
    check.shape(t, "target", {p.size(0), p.size(1)});
    if (there.has_value()) {
      check.same_device(*there, "mask", p);
      check.dtype(*there, "mask", ScalarType::Bool, "bool");
      check.shape(*there, "mask", {p.size(0), p.size(1)});
      mask = torch::stable::contiguous(*there);
      args.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
    }
    args.dtype = wide ? Dtype::float64 : Dtype::float32;
    args.predicted = predicted.const_data_ptr();
    args.target = target.const_data_ptr();
    args.batch = p.size(0);
    args.n = p.size(1);
  }
};

std::tuple<Tensor, Tensor, Tensor> pair_ranking(const Tensor& predicted, const Tensor& target,
                                                MaybeTensor mask) {
  Ranking r(Checks("pair_ranking"), predicted, target, mask);
  const int64_t batch = r.args.batch, n = r.args.n;
  Tensor losses = new_tensor(predicted, {batch}, ScalarType::Double);
  Tensor pairs = new_tensor(predicted, {batch}, ScalarType::Long);
  Tensor slopes = new_tensor(predicted, {batch, n}, predicted.scalar_type());
  Tensor rows = new_tensor(predicted, {kValuesReadable ? 0 : batch, n}, ScalarType::Double);
  r.args.losses = mutable_data<double>(losses);
  r.args.pairs = mutable_data<int64_t>(pairs);
  r.args.row_losses = mutable_data<double>(rows);
  r.args.out = slopes.mutable_data_ptr();
  if (batch > 0) backend::pair_ranking(r.args, OnDevice(predicted));
  return {losses, pairs, slopes};
}

Tensor pair_ranking_curve(const Tensor& direction, const Tensor& predicted, const Tensor& target,
                          MaybeTensor mask) {
  const Checks check("pair_ranking_curve");
  Ranking r(check, predicted, target, mask);
  check.same_device(direction, "direction", predicted);
  check.dtype(direction, "direction", predicted.scalar_type(), "that of `predicted`");
  check.shape(direction, "direction", {r.args.batch, r.args.n});
  const Tensor v = torch::stable::contiguous(direction);
  Tensor out = new_tensor(predicted, {r.args.batch, r.args.n}, predicted.scalar_type());
  r.args.direction = v.const_data_ptr();
  r.args.out = out.mutable_data_ptr();
  if (out.numel() > 0) backend::pair_ranking(r.args, OnDevice(predicted));
  return out;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "patch_mask(Tensor seed, SymInt batch, SymInt n, SymInt keep, Tensor? scores=None, "
      "float alpha=1.0, Tensor? alpha_tensor=None, SymInt[] grid=[], float[] box=[], int boxes=0) "
      "-> (Tensor mask, Tensor ids_keep, Tensor ids_restore)");
  m.def(
      "patch_subsets(Tensor seed, SymInt batch, SymInt n, SymInt[] least, SymInt[] most, "
      "bool disjoint=True) -> (Tensor mask, Tensor ids, Tensor sizes, Tensor ids_restore)");
  m.def("patch_gather(Tensor x, Tensor ids, Tensor? fill=None) -> Tensor");
  m.def("patch_inverse(Tensor ids, SymInt count) -> Tensor");
  m.def("patch_fill_sum(Tensor g, Tensor ids, SymInt count) -> Tensor");
  m.def(
      "pair_ranking(Tensor predicted, Tensor target, Tensor? mask=None) -> (Tensor losses, "
      "Tensor pairs, Tensor slopes)");
  m.def(
      "pair_ranking_curve(Tensor direction, Tensor predicted, Tensor target, Tensor? mask=None) "
      "-> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("patch_mask", TORCH_BOX(&patch_mask));
  m.impl("patch_subsets", TORCH_BOX(&patch_subsets));
  m.impl("patch_gather", TORCH_BOX(&patch_gather));
  m.impl("patch_inverse", TORCH_BOX(&patch_inverse));
  m.impl("patch_fill_sum", TORCH_BOX(&patch_fill_sum));
  m.impl("pair_ranking", TORCH_BOX(&pair_ranking));
  m.impl("pair_ranking_curve", TORCH_BOX(&pair_ranking_curve));
}

}  // namespace regkern::masks
