#include "core/op.h"
#include "quantize/select.h"
#include "quantize/weight_noise.h"

namespace regkern::quantize {
namespace {

// ---- what the ops share ----

// Blocks, elements and channels are numbered in row-major order: other layouts are converted.
Tensor row_major(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

Tensor row_major_empty(const Tensor& like) {
  return new_tensor(like, sizes_of(like), like.scalar_type());
}

// Runs an in-place kernel on x itself, or on a row-major copy that is written back.
template <typename F>
void in_place(const Tensor& x, F&& f) {
  const Tensor dense = row_major(x);
  f(dense);
  if (dense.const_data_ptr() != x.const_data_ptr()) {
    Tensor target = x;
    torch::stable::copy_(target, dense);
  }
}

int item_size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

RowBlocks row_blocks(const Checks& check, const Tensor& w, const char* name, int64_t rows,
                     int64_t row_size, int64_t block) {
  check.that(
      rows >= 0 && row_size >= 0 && rows * row_size == w.numel(),
      "`rows` · `row_size` to be the " + std::to_string(w.numel()) + " elements of `" + name + "`",
      std::to_string(rows) + " · " + std::to_string(row_size));
  check.that(block >= 1, "`block` to be at least 1", std::to_string(block));
  return {rows, row_size, block};
}

BlockDraw block_draw(const Checks& check, const Tensor& w, const Tensor& seed, double p,
                     const MaybeTensor& p_tensor) {
  check.seed(seed, w);
  if (p_tensor.has_value()) {
    check.same_device(*p_tensor, "p_tensor", w);
    check.dtype(*p_tensor, "p_tensor", ScalarType::Double, "float64");
    check.that(p_tensor->numel() == 1, "`p_tensor` of one element", sizes_name(*p_tensor));
    if (kValuesReadable) p = *const_data<double>(*p_tensor);
  }
  if (!p_tensor.has_value() || kValuesReadable)
    check.that(p >= 0.0 && p <= 1.0, "`p` in [0, 1]", std::to_string(p));
  return {p, data_or_null<double>(p_tensor), const_data<int64_t>(seed)};
}

// ---- block_select ----

void select_into(const Checks& check, const Tensor& w, const Tensor& y, const MaybeTensor& q,
                 const Tensor& seed, double p, int64_t rows, int64_t row_size, int64_t block,
                 const MaybeTensor& p_tensor, bool invert) {
  BlockSelectArgs args{};
  const Dtype dtype = check.floating(w, "w");
  args.itemsize = item_size(dtype);
  args.blocks = row_blocks(check, w, "w", rows, row_size, block);
  args.draw = block_draw(check, w, seed, p, p_tensor);
  args.invert = invert;
  Tensor replacement;
  if (q.has_value()) {
    check.same_device(*q, "q", w);
    check.that(q->scalar_type() == w.scalar_type(), "`q` of the dtype of `w`", "another");
    bool same = q->dim() == w.dim();
    for (int64_t i = 0; same && i < w.dim(); ++i) same = q->size(i) == w.size(i);
    args.q_shared = !same;
    check.that(same || (q->dim() == 1 && q->size(0) == block),
               "`q` of shape " + sizes_name(w) + " or (" + std::to_string(block) + ")",
               sizes_name(*q));
    replacement = row_major(*q);
    args.q = replacement.const_data_ptr();
  }
  if (w.numel() == 0) return;
  // A block that is longer than its row is the row.
  if (args.blocks.block > row_size) args.blocks.block = row_size;
  args.w = w.const_data_ptr();
  args.y = y.mutable_data_ptr();
  Tensor drawn;
  if (!kValuesReadable) {
    drawn = new_tensor(w, {(block_count(args.blocks) + 3) / 4}, ScalarType::Byte);
    args.drawn = mutable_data<uint8_t>(drawn);
  }
  backend::block_select(args, OnDevice(w));
}

Tensor block_select(const Tensor& w, MaybeTensor q, const Tensor& seed, double p, int64_t rows,
                    int64_t row_size, int64_t block, MaybeTensor p_tensor, bool invert,
                    bool straight_through) {
  static_cast<void>(straight_through);  // of the gradient alone
  const Tensor dense = row_major(w), y = row_major_empty(w);
  select_into(Checks("block_select"), dense, y, q, seed, p, rows, row_size, block, p_tensor,
              invert);
  return laid_out(y, w);
}

void block_select_(const Tensor& w, MaybeTensor q, const Tensor& seed, double p, int64_t rows,
                   int64_t row_size, int64_t block, MaybeTensor p_tensor, bool invert) {
  in_place(w, [&](const Tensor& t) {
    select_into(Checks("block_select_"), t, t, q, seed, p, rows, row_size, block, p_tensor, invert);
  });
}

// ---- centroids ----

constexpr int64_t kMostCentroids = 65536;

void check_codebook(const Checks& check, const Tensor& codebook, const Tensor& w) {
  check.same_device(codebook, "codebook", w);
  check.that(codebook.scalar_type() == w.scalar_type(), "`codebook` of the dtype of `w`",
             "another");
  check.that(codebook.dim() == 2 && codebook.size(0) >= 1 && codebook.size(0) <= kMostCentroids &&
                 codebook.size(1) >= 1,
             "`codebook` of shape (centroids, block) with 1 to 65536 centroids",
             sizes_name(codebook));
}

void check_index(const Checks& check, const Tensor& index, const RowBlocks& blocks,
                 const Tensor& w) {
  check.same_device(index, "index", w);
  check.dtype(index, "index", ScalarType::Int, "int32");
  check.shape(index, "index", {blocks.rows, blocks_per_row(blocks)});
}

Tensor nearest_centroid(const Tensor& w, const Tensor& codebook, int64_t rows, int64_t row_size,
                        MaybeTensor seed, double p, MaybeTensor p_tensor) {
  const Checks check("nearest_centroid");
  NearestCentroidArgs args{};
  args.dtype = check.floating(w, "w");
  check_codebook(check, codebook, w);
  args.blocks = row_blocks(check, w, "w", rows, row_size, codebook.size(1));
  args.drawn = seed.has_value();
  if (args.drawn) args.draw = block_draw(check, w, *seed, p, p_tensor);
  Tensor index = new_tensor(w, {rows, blocks_per_row(args.blocks)}, ScalarType::Int);
  if (index.numel() == 0) return index;
  Tensor given = codebook;
  const Tensor transposed = row_major(torch::stable::transpose(given, 0, 1));
  const Tensor dense = row_major(w);
  args.w = dense.const_data_ptr();
  args.codebook = transposed.const_data_ptr();
  args.centroids = codebook.size(0);
  args.index = mutable_data<int32_t>(index);
  backend::nearest_centroid(args, OnDevice(w));
  return index;
}

Tensor centroid_select(const Tensor& w, const Tensor& codebook, const Tensor& index, int64_t rows,
                       int64_t row_size, bool straight_through) {
  static_cast<void>(straight_through);
  const Checks check("centroid_select");
  CentroidSelectArgs args{};
  args.itemsize = item_size(check.floating(w, "w"));
  check_codebook(check, codebook, w);
  args.blocks = row_blocks(check, w, "w", rows, row_size, codebook.size(1));
  check_index(check, index, args.blocks, w);
  const Tensor dense = row_major(w), book = row_major(codebook), which = row_major(index);
  const Tensor y = row_major_empty(w);
  if (w.numel() > 0) {
    args.w = dense.const_data_ptr();
    args.codebook = book.const_data_ptr();
    args.centroids = codebook.size(0);
    args.index = const_data<int32_t>(which);
    args.y = y.mutable_data_ptr();
    backend::centroid_select(args, OnDevice(w));
  }
  return laid_out(y, w);
}

Tensor centroid_sum(const Tensor& g, const Tensor& order, const Tensor& offsets, int64_t rows,
                    int64_t row_size, int64_t block) {
  const Checks check("centroid_sum");
  CentroidSumArgs args{};
  args.dtype = check.floating(g, "g");
  args.blocks = row_blocks(check, g, "g", rows, row_size, block);
  check.same_device(order, "order", g);
  check.same_device(offsets, "offsets", g);
  check.dtype(order, "order", ScalarType::Long, "int64");
  check.dtype(offsets, "offsets", ScalarType::Long, "int64");
  check.shape(order, "order", {block_count(args.blocks)});
  check.that(offsets.dim() == 1 && offsets.size(0) >= 1, "`offsets` of shape (centroids + 1)",
             sizes_name(offsets));
  const Tensor dense = row_major(g), list = row_major(order), bounds = row_major(offsets);
  args.centroids = offsets.size(0) - 1;
  args.order = const_data<int64_t>(list);
  args.offsets = const_data<int64_t>(bounds);
  if (kValuesReadable) {
    const int64_t count = block_count(args.blocks);
    for (int64_t k = 0; k <= args.centroids; ++k)
      check.that(args.offsets[k] >= (k > 0 ? args.offsets[k - 1] : 0) && args.offsets[k] <= count,
                 "`offsets` to rise from 0 to " + std::to_string(count) + " at most",
                 std::to_string(args.offsets[k]));
    for (int64_t i = 0; i < count; ++i)
      check.that(args.order[i] >= 0 && args.order[i] < count,
                 "`order` to hold numbers below " + std::to_string(count),
                 std::to_string(args.order[i]));
  }
  Tensor out = new_tensor(g, {args.centroids, block}, g.scalar_type());
  args.g = dense.const_data_ptr();
  args.out = out.mutable_data_ptr();
  if (args.centroids > 0) backend::centroid_sum(args, OnDevice(g));
  return out;
}

Tensor subvector_mean(const Tensor& w, int64_t rows, int64_t row_size, int64_t block) {
  const Checks check("subvector_mean");
  SubvectorMeanArgs args{};
  args.dtype = check.floating(w, "w");
  args.blocks = row_blocks(check, w, "w", rows, row_size, block);
  Tensor out = torch::stable::new_zeros(w, {block}, w.scalar_type());
  if (w.numel() == 0) return out;
  const Tensor dense = row_major(w);
  Tensor partial =
      new_tensor(w, {mean_chunks(args.blocks) * kMeanLanes * block}, ScalarType::Double);
  args.w = dense.const_data_ptr();
  args.partial = mutable_data<double>(partial);
  args.out = out.mutable_data_ptr();
  backend::subvector_mean(args, OnDevice(w));
  return out;
}

// ---- weight_noise ----

struct NoiseOptions {
  std::string kind;
  double std_dev;
  int64_t rows, row_size, copies;
  double resolution;
  bool stochastic;
  double c0, c1, c2;
  bool truncate;
  double drop_connect;
  bool rescale;
  bool exempt_last_column;
};

void noise_into(const Checks& check, const Tensor& w, const Tensor& y, const MaybeTensor& seed,
                const MaybeTensor& scale, const NoiseOptions& o) {
  WeightNoiseArgs args{};
  args.dtype = check.floating(w, "w");
  const RowBlocks rows = row_blocks(check, w, "w", o.rows, o.row_size, 1);
  args.rows = rows.rows;
  args.row_size = rows.row_size;
  args.copies = o.copies;
  args.kind = static_cast<Noise>(check.one_of(
      o.kind, "kind",
      {"none", "add_normal", "mult_normal", "discretize", "dorefa", "poly", "prog_noise"}));
  check.that(o.std_dev >= 0.0, "`std_dev` to be at least 0", std::to_string(o.std_dev));
  check.that(o.drop_connect >= 0.0 && o.drop_connect <= 1.0, "`drop_connect` in [0, 1]",
             std::to_string(o.drop_connect));
  const bool levels = args.kind == Noise::discretize || args.kind == Noise::dorefa;
  check.that(!levels || (o.resolution > 0.0 && o.resolution <= 1.0), "`resolution` in (0, 1]",
             std::to_string(o.resolution));
  args.std_dev = o.std_dev;
  args.resolution = levels ? o.resolution : 0.0;
  args.stochastic = levels && o.stochastic;
  args.c0 = o.c0;
  args.c1 = o.c1;
  args.c2 = o.c2;
  args.truncate = o.truncate;
  args.drop = o.drop_connect;
  args.kept_scale = o.rescale && o.drop_connect < 1.0 ? 1.0 / (1.0 - o.drop_connect) : 1.0;
  args.exempt_last_column = o.exempt_last_column;
  Tensor scales;
  if (needs_scale(args.kind)) {
    check.that(scale.has_value(), "`scale` with kind " + o.kind, "none");
    check.same_device(*scale, "scale", w);
    check.that(
        scale->scalar_type() == compute_type(args.dtype),
        args.dtype == Dtype::float64 ? "`scale` of dtype float64" : "`scale` of dtype float32",
        "another");
    check.that(scale->numel() == 1 || scale->numel() == o.rows,
               "`scale` of 1 or " + std::to_string(o.rows) + " elements", sizes_name(*scale));
    scales = row_major(*scale);
    args.scale = scales.const_data_ptr();
    args.scale_count = scales.numel();
  }
  if (draws_normals(args) || args.stochastic || args.drop > 0.0)
    check.that(seed.has_value(), "`seed` with random noise", "none");
  if (seed.has_value()) {
    check.seed(*seed, w);
    args.seed = const_data<int64_t>(*seed);
  }
  if (y.numel() == 0) return;
  args.w = w.const_data_ptr();
  args.y = y.mutable_data_ptr();
  backend::weight_noise(args, OnDevice(w));
}

Tensor weight_noise(const Tensor& w, MaybeTensor seed, MaybeTensor scale, std::string kind,
                    double std_dev, int64_t rows, int64_t row_size, int64_t copies,
                    double resolution, bool stochastic, double c0, double c1, double c2,
                    bool truncate, double drop_connect, bool rescale, bool exempt_last_column,
                    bool straight_through) {
  static_cast<void>(straight_through);
  const Checks check("weight_noise");
  // 0 copies stand for one without a dimension of its own.
  check.that(copies >= 0, "`copies` to be at least 0", std::to_string(copies));
  const Tensor dense = row_major(w);
  std::vector<int64_t> sizes = sizes_of(w);
  if (copies > 0) sizes.insert(sizes.begin(), copies);
  const Tensor y = new_tensor(w, sizes, w.scalar_type());
  noise_into(check, dense, y, seed, scale,
             {kind, std_dev, rows, row_size, copies > 0 ? copies : 1, resolution, stochastic, c0,
              c1, c2, truncate, drop_connect, rescale, exempt_last_column});
  return copies > 0 ? y : laid_out(y, w);
}

void weight_noise_(const Tensor& w, MaybeTensor seed, MaybeTensor scale, std::string kind,
                   double std_dev, int64_t rows, int64_t row_size, double resolution,
                   bool stochastic, double c0, double c1, double c2, bool truncate,
                   double drop_connect, bool rescale, bool exempt_last_column) {
  in_place(w, [&](const Tensor& t) {
    noise_into(Checks("weight_noise_"), t, t, seed, scale,
               {kind, std_dev, rows, row_size, 1, resolution, stochastic, c0, c1, c2, truncate,
                drop_connect, rescale, exempt_last_column});
  });
}

Tensor weight_absmax(const Tensor& w, int64_t rows, int64_t row_size, bool per_row,
                     bool exempt_last_column) {
  const Checks check("weight_absmax");
  WeightAbsmaxArgs args{};
  args.dtype = check.floating(w, "w");
  const RowBlocks blocks = row_blocks(check, w, "w", rows, row_size, 1);
  args.rows = blocks.rows;
  args.row_size = blocks.row_size;
  args.per_row = per_row;
  args.exempt_last_column = exempt_last_column;
  Tensor out = torch::stable::new_zeros(w, {per_row ? rows : 1}, compute_type(args.dtype));
  if (w.numel() == 0) return out;
  const Tensor dense = row_major(w);
  args.w = dense.const_data_ptr();
  args.out = out.mutable_data_ptr();
  backend::weight_absmax(args, OnDevice(w));
  return out;
}

// ---- uniform noise ----

int64_t channels_of(const Checks& check, const Tensor& x, int64_t channels, int64_t inner) {
  check.that(channels >= 1 && inner >= 0, "`channels` from 1 and `inner` from 0",
             std::to_string(channels) + " and " + std::to_string(inner));
  const int64_t outer = x.numel() == 0 ? 0 : x.numel() / (channels * (inner > 0 ? inner : 1));
  check.that(outer * channels * inner == x.numel(),
             "`channels` · `inner` to divide the " + std::to_string(x.numel()) + " elements",
             std::to_string(channels) + " · " + std::to_string(inner));
  return outer;
}

void uniform_into(const Checks& check, const Tensor& x, const Tensor& y, const Tensor& step,
                  const Tensor& seed, int64_t channels, int64_t inner) {
  UniformNoiseArgs args{};
  args.dtype = check.floating(x, "x");
  args.outer = channels_of(check, x, channels, inner);
  args.channels = channels;
  args.inner = inner;
  check.seed(seed, x);
  check.same_device(step, "step", x);
  check.that(step.scalar_type() == compute_type(args.dtype),
             args.dtype == Dtype::float64 ? "`step` of dtype float64" : "`step` of dtype float32",
             "another");
  check.shape(step, "step", {channels});
  const Tensor steps = row_major(step);
  if (x.numel() == 0) return;
  args.x = x.const_data_ptr();
  args.step = steps.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.seed = const_data<int64_t>(seed);
  backend::uniform_noise(args, OnDevice(x));
}

Tensor uniform_noise(const Tensor& x, const Tensor& step, const Tensor& seed, int64_t channels,
                     int64_t inner) {
  const Tensor dense = row_major(x), y = row_major_empty(x);
  uniform_into(Checks("uniform_noise"), dense, y, step, seed, channels, inner);
  return laid_out(y, x);
}

void uniform_noise_(const Tensor& x, const Tensor& step, const Tensor& seed, int64_t channels,
                    int64_t inner) {
  in_place(x, [&](const Tensor& t) {
    uniform_into(Checks("uniform_noise_"), t, t, step, seed, channels, inner);
  });
}

Tensor uniform_noise_sum(const Tensor& g, const Tensor& seed, int64_t channels, int64_t inner) {
  const Checks check("uniform_noise_sum");
  UniformNoiseSumArgs args{};
  args.dtype = check.floating(g, "g");
  args.outer = channels_of(check, g, channels, inner);
  args.channels = channels;
  args.inner = inner;
  check.seed(seed, g);
  const Tensor dense = row_major(g);
  Tensor out = new_tensor(g, {channels}, compute_type(args.dtype));
  Tensor partial = new_tensor(g, {outer_pieces(args.outer, inner) * channels * inner_pieces(inner)},
                              ScalarType::Double);
  args.g = dense.const_data_ptr();
  args.partial = mutable_data<double>(partial);
  args.out = out.mutable_data_ptr();
  args.seed = const_data<int64_t>(seed);
  backend::uniform_noise_sum(args, OnDevice(g));
  return out;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "block_select(Tensor w, Tensor? q, Tensor seed, float p, int rows, int row_size, int block, "
      "Tensor? p_tensor=None, bool invert=False, bool straight_through=False) -> Tensor");
  m.def(
      "block_select_(Tensor(a!) w, Tensor? q, Tensor seed, float p, int rows, int row_size, "
      "int block, Tensor? p_tensor=None, bool invert=False) -> ()");
  m.def(
      "nearest_centroid(Tensor w, Tensor codebook, int rows, int row_size, Tensor? seed=None, "
      "float p=1.0, Tensor? p_tensor=None) -> Tensor");
  m.def(
      "centroid_select(Tensor w, Tensor codebook, Tensor index, int rows, int row_size, "
      "bool straight_through=False) -> Tensor");
  m.def(
      "centroid_sum(Tensor g, Tensor order, Tensor offsets, int rows, int row_size, int block) -> "
      "Tensor");
  m.def("subvector_mean(Tensor w, int rows, int row_size, int block) -> Tensor");
#define REGKERN_NOISE_OPTIONS                                                                    \
  "float resolution=0.0, bool stochastic=False, float c0=0.0, float c1=0.0, float c2=0.0, bool " \
  "truncate=False, float drop_connect=0.0, bool rescale=False, bool exempt_last_column=False"
  m.def(
      "weight_noise(Tensor w, Tensor? seed, Tensor? scale, str kind, float std_dev, int rows, int "
      "row_size, int copies=0, " REGKERN_NOISE_OPTIONS ", bool straight_through=False) -> Tensor");
  m.def(
      "weight_noise_(Tensor(a!) w, Tensor? seed, Tensor? scale, str kind, float std_dev, int rows, "
      "int row_size, " REGKERN_NOISE_OPTIONS ") -> ()");
#undef REGKERN_NOISE_OPTIONS
  m.def(
      "weight_absmax(Tensor w, int rows, int row_size, bool per_row=False, bool "
      "exempt_last_column=False) -> Tensor");
  m.def("uniform_noise(Tensor x, Tensor step, Tensor seed, int channels, int inner) -> Tensor");
  m.def("uniform_noise_(Tensor(a!) x, Tensor step, Tensor seed, int channels, int inner) -> ()");
  m.def("uniform_noise_sum(Tensor g, Tensor seed, int channels, int inner) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("block_select", TORCH_BOX(&block_select));
  m.impl("block_select_", TORCH_BOX(&block_select_));
  m.impl("nearest_centroid", TORCH_BOX(&nearest_centroid));
  m.impl("centroid_select", TORCH_BOX(&centroid_select));
  m.impl("centroid_sum", TORCH_BOX(&centroid_sum));
  m.impl("subvector_mean", TORCH_BOX(&subvector_mean));
  m.impl("weight_noise", TORCH_BOX(&weight_noise));
  m.impl("weight_noise_", TORCH_BOX(&weight_noise_));
  m.impl("weight_absmax", TORCH_BOX(&weight_absmax));
  m.impl("uniform_noise", TORCH_BOX(&uniform_noise));
  m.impl("uniform_noise_", TORCH_BOX(&uniform_noise_));
  m.impl("uniform_noise_sum", TORCH_BOX(&uniform_noise_sum));
}

}  // namespace regkern::quantize
