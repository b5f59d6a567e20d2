#include "sparse/op_pattern.h"

// Products with a sparse matrix, and what they are differentiated by.

namespace regkern::sparse {
namespace {

struct Side {
  Dtype dtype;
  int64_t batch, features;
};

Side side_of(const Checks& check, const Tensor& x, const char* name, int64_t features,
             bool feature_major) {
  Side side{check.floating(x, name), 0, features};
  check.that(x.dim() == 2, std::string("`") + name + "` of two dimensions", sizes_name(x));
  side.batch = x.size(feature_major ? 1 : 0);
  check.that(x.size(feature_major ? 0 : 1) == features,
             std::string("`") + name + "` of " + std::to_string(features) + " features",
             sizes_name(x));
  return side;
}

// A pattern, and the order in which blocks of its rows are begun with, if there is one.
struct OrderedPattern : Pattern {
  Tensor kept, t_kept;
  const int32_t* row_blocks = nullptr;
  const int32_t* t_row_blocks = nullptr;
};

const int32_t* blocks_of(const Checks& check, const MaybeTensor& blocks, const char* name,
                         int64_t rows, const Tensor& like, Tensor* kept) {
  if (!blocks.has_value()) return nullptr;
  const int64_t count = (rows + kRowBlock - 1) / kRowBlock;
  check.same_device(*blocks, name, like);
  check.dtype(*blocks, name, ScalarType::Int, "int32");
  check.shape(*blocks, name, {count});
  *kept = torch::stable::contiguous(*blocks);
  check_indices<int32_t>(check, *kept, name, count);
  return const_data<int32_t>(*kept);
}

OrderedPattern ordered_pattern_of(const Checks& check, const Tensor& like, const Tensor& offsets,
                                  const Tensor& index, const Tensor& t_offsets,
                                  const Tensor& t_index, const Tensor& t_order,
                                  const MaybeTensor& row_blocks, const MaybeTensor& t_row_blocks,
                                  Views views) {
  OrderedPattern p{};
  static_cast<Pattern&>(p) =
      pattern_of(check, like, offsets, index, t_offsets, t_index, t_order, views);
  p.row_blocks = blocks_of(check, row_blocks, "row_blocks", p.by_rows.rows, like, &p.kept);
  p.t_row_blocks =
      blocks_of(check, t_row_blocks, "t_row_blocks", p.by_columns.rows, like, &p.t_kept);
  return p;
}

int tile_of(const Pattern& pattern, Dtype dtype, int64_t batch) {
  const int64_t rows = pattern.by_rows.rows, columns = pattern.by_rows.columns;
  return batch_tile(dtype == Dtype::float64, rows > columns ? rows : columns, batch);
}

constexpr bool kOnCuda = !kValuesReadable;

bool is_aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

// x in tiles; `kept` holds their memory. What is summed over the batch on CUDA is interleaved.
BatchTiles tiles_of(const Tensor& x, const Side& side, int tile, bool feature_major, bool summed,
                    Tensor* kept, const OnDevice& device) {
  const Tensor dense = torch::stable::contiguous(x);
  const bool as_it_is = kOnCuda ? !summed && is_aligned(dense.const_data_ptr())
                                : side.dtype == Dtype::float32 || side.dtype == Dtype::float64;
  if (feature_major && side.batch % tile == 0 && as_it_is) {
    *kept = dense;
    return {dense.const_data_ptr(), side.batch, tile, false};
  }
  const int64_t tiles = (side.batch + tile - 1) / tile;
  *kept = new_tensor(x, {tiles, side.features, tile},
                     kOnCuda ? x.scalar_type() : compute_type(side.dtype));
  backend::sparse_pack(PackArgs{side.dtype, tile, side.batch, side.features, feature_major, kOnCuda,
                                dense.const_data_ptr(), kept->mutable_data_ptr()},
                       device);
  return {kept->const_data_ptr(), tile, side.features * tile, kOnCuda};
}

std::vector<int64_t> sizes_by(bool feature_major, int64_t batch, int64_t features) {
  if (feature_major) return {features, batch};
  return {batch, features};
}

Tensor multiply(const Checks& check, const char* name, const Tensor& x, const Tensor& values,
                const OrderedPattern& pattern, bool by_rows, const MaybeTensor& bias,
                Activation activation, bool feature_major, Tensor* z = nullptr) {
  const SparseView& view = by_rows ? pattern.by_rows : pattern.by_columns;
  const Side side = side_of(check, x, name, view.columns, feature_major);
  const Tensor w = check_numbers(check, values, "values", view.nnz, x, side.dtype);
  Tensor own_bias;
  if (bias.has_value()) own_bias = check_numbers(check, *bias, "bias", view.rows, x, side.dtype);
  const Tensor y = new_tensor(x, sizes_by(feature_major, side.batch, view.rows), x.scalar_type());
  if (z != nullptr) *z = new_tensor(x, sizes_of(y), x.scalar_type());
  if (y.numel() == 0) return y;
  const OnDevice device(x);
  Tensor kept;
  SpmmArgs args{};
  args.dtype = side.dtype;
  args.tile = tile_of(pattern, side.dtype, side.batch);
  args.batch = side.batch;
  args.view = view;
  args.x = tiles_of(x, side, args.tile, feature_major, false, &kept, device);
  args.values = w.const_data_ptr();
  args.bias = bias.has_value() ? own_bias.const_data_ptr() : nullptr;
  args.activation = activation;
  args.feature_major = feature_major;
  args.y = y.mutable_data_ptr();
  args.z = z != nullptr ? z->mutable_data_ptr() : nullptr;
  args.row_blocks = by_rows ? pattern.row_blocks : pattern.t_row_blocks;
  backend::sparse_spmm(args, device);
  return y;
}

Activation activation_of(const Checks& check, const std::string& name) {
  return static_cast<Activation>(
      check.one_of(name, "activation", {"none", "relu", "gelu", "gelu_tanh", "silu"}));
}

Tensor sparse_linear(const Tensor& x, const Tensor& values, const MaybeTensor& bias,
                     const std::string& activation, const Tensor& offsets, const Tensor& index,
                     const Tensor& t_offsets, const Tensor& t_index, const Tensor& t_order,
                     const MaybeTensor& row_blocks, const MaybeTensor& t_row_blocks,
                     bool feature_major) {
  const Checks check("sparse_linear");
  const Activation kind = activation_of(check, activation);
  const OrderedPattern pattern = ordered_pattern_of(check, x, offsets, index, t_offsets, t_index,
                                                    t_order, row_blocks, t_row_blocks, Views::rows);
  return multiply(check, "x", x, values, pattern, true, bias, kind, feature_major);
}

std::tuple<Tensor, Tensor> sparse_linear_activated(
    const Tensor& x, const Tensor& values, const MaybeTensor& bias, const std::string& activation,
    const Tensor& offsets, const Tensor& index, const Tensor& t_offsets, const Tensor& t_index,
    const Tensor& t_order, const MaybeTensor& row_blocks, const MaybeTensor& t_row_blocks,
    bool feature_major) {
  const Checks check("sparse_linear_activated");
  const Activation kind = activation_of(check, activation);
  const OrderedPattern pattern = ordered_pattern_of(check, x, offsets, index, t_offsets, t_index,
                                                    t_order, row_blocks, t_row_blocks, Views::rows);
  Tensor z;
  const Tensor y = multiply(check, "x", x, values, pattern, true, bias, kind, feature_major, &z);
  return {y, z};
}

Tensor sparse_linear_t(const Tensor& g, const Tensor& values, const Tensor& offsets,
                       const Tensor& index, const Tensor& t_offsets, const Tensor& t_index,
                       const Tensor& t_order, const MaybeTensor& row_blocks,
                       const MaybeTensor& t_row_blocks, bool feature_major) {
  const Checks check("sparse_linear_t");
  const OrderedPattern pattern =
      ordered_pattern_of(check, g, offsets, index, t_offsets, t_index, t_order, row_blocks,
                         t_row_blocks, Views::columns);
  return multiply(check, "g", g, values, pattern, false, std::nullopt, Activation::none,
                  feature_major);
}

void sample(const Checks& check, const Tensor& g, const Tensor& x, const Tensor* values,
            const OrderedPattern& pattern, bool feature_major, const Tensor* dx, Tensor* dvalues,
            bool whole_tiles = false) {
  const SparseView& view = pattern.by_columns;
  const Side of_x = side_of(check, x, "x", view.rows, feature_major);
  const Side of_g = side_of(check, g, "g", view.columns, feature_major);
  check.same_device(g, "g", x);
  check.that(of_g.dtype == of_x.dtype && of_g.batch == of_x.batch,
             "`g` of the dtype and batch of `x`, " + sizes_name(x), sizes_name(g));
  *dvalues = new_tensor(x, {view.nnz}, compute_type(of_x.dtype));
  if (of_x.batch == 0) {
    torch::stable::zero_(*dvalues);
    return;
  }
  const OnDevice device(x);
  Tensor kept_x, kept_g;
  SddmmArgs args{};
  args.dtype = of_x.dtype;
  args.tile = tile_of(pattern, of_x.dtype, of_x.batch);
  args.batch = of_x.batch;
  args.view = view;
  args.x = tiles_of(x, of_x, args.tile, feature_major, true, &kept_x, device);
  args.g = tiles_of(g, of_g, args.tile, feature_major, true, &kept_g, device);
  args.values = values != nullptr ? values->const_data_ptr() : nullptr;
  args.feature_major = feature_major;
  args.dx = dx != nullptr ? dx->mutable_data_ptr() : nullptr;
  args.dvalues = dvalues->mutable_data_ptr();
  args.row_blocks = pattern.t_row_blocks;
  const bool halves = of_x.dtype == Dtype::bfloat16 || of_x.dtype == Dtype::float16;
  args.whole_tiles = kOnCuda && halves && dx == nullptr &&
                     (whole_tiles || tiles_pay(view.rows, view.columns, view.nnz));
  Tensor partial;
  const int64_t tiles = (of_x.batch + args.tile - 1) / args.tile;
  if (kOnCuda && !args.whole_tiles && tiles > 1) {
    const int64_t side_by_side = tiles < kPartialTiles ? tiles : kPartialTiles;
    partial = new_tensor(x, {side_by_side, view.nnz}, compute_type(of_x.dtype));
    args.partial = partial.mutable_data_ptr();
  }
  if (view.rows > 0) backend::sparse_sddmm(args, device);
}

Tensor sample_alone(const char* name, bool whole_tiles, const Tensor& g, const Tensor& x,
                    const Tensor& offsets, const Tensor& index, const Tensor& t_offsets,
                    const Tensor& t_index, const Tensor& t_order, const MaybeTensor& row_blocks,
                    const MaybeTensor& t_row_blocks, bool feature_major) {
  const Checks check(name);
  const OrderedPattern pattern =
      ordered_pattern_of(check, x, offsets, index, t_offsets, t_index, t_order, row_blocks,
                         t_row_blocks, Views::columns);
  Tensor dvalues;
  sample(check, g, x, nullptr, pattern, feature_major, nullptr, &dvalues, whole_tiles);
  return dvalues;
}

Tensor sddmm(const Tensor& g, const Tensor& x, const Tensor& offsets, const Tensor& index,
             const Tensor& t_offsets, const Tensor& t_index, const Tensor& t_order,
             const MaybeTensor& row_blocks, const MaybeTensor& t_row_blocks, bool feature_major) {
  return sample_alone("sddmm", false, g, x, offsets, index, t_offsets, t_index, t_order, row_blocks,
                      t_row_blocks, feature_major);
}

Tensor sddmm_tiles(const Tensor& g, const Tensor& x, const Tensor& offsets, const Tensor& index,
                   const Tensor& t_offsets, const Tensor& t_index, const Tensor& t_order,
                   const MaybeTensor& row_blocks, const MaybeTensor& t_row_blocks,
                   bool feature_major) {
  return sample_alone("sddmm_tiles", true, g, x, offsets, index, t_offsets, t_index, t_order,
                      row_blocks, t_row_blocks, feature_major);
}

std::tuple<Tensor, Tensor> sparse_linear_backward(
    const Tensor& g, const Tensor& x, const Tensor& values, const Tensor& offsets,
    const Tensor& index, const Tensor& t_offsets, const Tensor& t_index, const Tensor& t_order,
    const MaybeTensor& row_blocks, const MaybeTensor& t_row_blocks, bool feature_major) {
  const Checks check("sparse_linear_backward");
  const OrderedPattern pattern =
      ordered_pattern_of(check, x, offsets, index, t_offsets, t_index, t_order, row_blocks,
                         t_row_blocks, Views::columns);
  const Dtype dtype = check.floating(x, "x");
  const Tensor w = check_numbers(check, values, "values", pattern.by_rows.nnz, x, dtype);
  const Tensor dx = new_tensor(x, sizes_of(x), x.scalar_type());
  Tensor dvalues;
  sample(check, g, x, &w, pattern, feature_major, &dx, &dvalues);
  return {dx, dvalues};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "sparse_linear(Tensor x, Tensor values, Tensor? bias, str activation, Tensor offsets, "
      "Tensor index, Tensor t_offsets, Tensor t_index, Tensor t_order, Tensor? row_blocks, "
      "Tensor? t_row_blocks, bool feature_major) -> Tensor");
  m.def(
      "sparse_linear_activated(Tensor x, Tensor values, Tensor? bias, str activation, Tensor "
      "offsets, Tensor index, Tensor t_offsets, Tensor t_index, Tensor t_order, Tensor? "
      "row_blocks, Tensor? t_row_blocks, bool feature_major) -> (Tensor y, Tensor z)");
  m.def(
      "sparse_linear_t(Tensor g, Tensor values, Tensor offsets, Tensor index, Tensor "
      "t_offsets, Tensor t_index, Tensor t_order, Tensor? row_blocks, Tensor? t_row_blocks, "
      "bool feature_major) -> Tensor");
  m.def(
      "sddmm(Tensor g, Tensor x, Tensor offsets, Tensor index, Tensor t_offsets, Tensor "
      "t_index, Tensor t_order, Tensor? row_blocks, Tensor? t_row_blocks, bool feature_major) "
      "-> Tensor");
  m.def(
      "sddmm_tiles(Tensor g, Tensor x, Tensor offsets, Tensor index, Tensor t_offsets, Tensor "
      "t_index, Tensor t_order, Tensor? row_blocks, Tensor? t_row_blocks, bool feature_major) "
      "-> Tensor");
  m.def(
      "sparse_linear_backward(Tensor g, Tensor x, Tensor values, Tensor offsets, Tensor index, "
      "Tensor t_offsets, Tensor t_index, Tensor t_order, Tensor? row_blocks, Tensor? "
      "t_row_blocks, bool feature_major) -> (Tensor dx, Tensor dvalues)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("sparse_linear", TORCH_BOX(&sparse_linear));
  m.impl("sparse_linear_activated", TORCH_BOX(&sparse_linear_activated));
  m.impl("sparse_linear_t", TORCH_BOX(&sparse_linear_t));
  m.impl("sddmm", TORCH_BOX(&sddmm));
  m.impl("sddmm_tiles", TORCH_BOX(&sddmm_tiles));
  m.impl("sparse_linear_backward", TORCH_BOX(&sparse_linear_backward));
}

}  // namespace regkern::sparse
