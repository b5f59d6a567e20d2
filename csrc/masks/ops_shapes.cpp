#include "core/op.h"
#include "masks/beta_noise.h"
#include "masks/shapes.h"

namespace regkern::masks {
namespace {

// (batch, …, height, width) in memory order.
Images pixels_of(const Checks& check, const Dense& d) {
  const Tensor& t = d.tensor;
  check.that(t.dim() >= 3, "`x` of rank 3 or more", std::to_string(t.dim()));
  Images m{t.size(0), 1, t.size(t.dim() - 2), t.size(t.dim() - 1), 1};
  for (int64_t i = d.channels_last ? 2 : 1; i < t.dim() - 2; ++i) m.outer *= t.size(i);
  if (d.channels_last) m.inner = t.size(1);
  return m;
}

void check_size(const Checks& check, int64_t batch, int64_t height, int64_t width) {
  check.that(batch >= 0, "`batch` to be at least 0", std::to_string(batch));
  check.that(height >= 0 && width >= 0 && height < (1 << 23) && width < (1 << 23),
             "`height` and `width` from 0 to 2^23 - 1",
             std::to_string(height) + " and " + std::to_string(width));
}

std::tuple<Tensor, Tensor> shape_bits(const Tensor& seed, std::string shape, int64_t batch,
                                      int64_t height, int64_t width, double p, int64_t least,
                                      int64_t most, double ratio, double turns,
                                      std::vector<int64_t> cell, bool invert, MaybeTensor boxes) {
  const Checks check("shape_bits");
  check.seed(seed, seed);
  check_size(check, batch, height, width);
  ShapeBitsArgs args{};
  args.shape = static_cast<Shape>(check.one_of(shape, "shape", {"grid", "patches", "boxes"}));
  args.seed = const_data<int64_t>(seed);
  args.batch = batch;
  args.height = height;
  args.width = width;
  args.invert = invert;
  check.that(p >= 0.0 && p <= 1.0, "`p` in [0, 1]", std::to_string(p));
  args.p = p;
  check.that(2 <= least && least <= most && most < (1 << 23), "2 <= `least` <= `most` < 2^23",
             std::to_string(least) + " and " + std::to_string(most));
  args.least = least;
  args.most = most;
  check.that(ratio >= 0.0 && ratio <= 1.0, "`ratio` in [0, 1]", std::to_string(ratio));
  args.ratio = ratio;
  check.that(turns >= 0.0 && turns <= 1.0, "`turns` in [0, 1]", std::to_string(turns));
  args.turns = turns;
  check.that(cell.size() == 2 && cell[0] > 0 && cell[1] > 0, "`cell` of two positive numbers",
             std::to_string(cell.size()) + " numbers");
  args.cell_height = cell[0];
  args.cell_width = cell[1];
  Tensor held;
  check.that(boxes.has_value() == (args.shape == Shape::boxes),
             "`boxes` with shape=\"boxes\" alone", boxes.has_value() ? "some" : "none");
  if (boxes.has_value()) {
    check.same_device(*boxes, "boxes", seed);
    check.dtype(*boxes, "boxes", ScalarType::Int, "int32");
    check.that(boxes->dim() == 3 && boxes->size(0) == batch && boxes->size(2) == 4,
               "`boxes` of shape (" + std::to_string(batch) + ", boxes, 4)", sizes_name(*boxes));
    held = torch::stable::contiguous(*boxes);
    args.boxes = const_data<int32_t>(held);
    args.boxes_per_sample = boxes->size(1);
  }
  Tensor bits = new_tensor(seed, {batch, bit_words(height * width)}, ScalarType::Int);
  Tensor kept = new_tensor(seed, {batch}, ScalarType::Int);
  args.bits = mutable_data<uint32_t>(bits);
  args.kept = mutable_data<int32_t>(kept);
  if (batch > 0) backend::shape_bits(args, OnDevice(seed));
  return {bits, kept};
}

Tensor bands(const Tensor& seed, int64_t batch, int64_t height, int64_t width, int64_t row_bands,
             int64_t row_width, int64_t column_bands, int64_t column_width, double share,
             MaybeTensor lengths) {
  const Checks check("bands");
  check.seed(seed, seed);
  check_size(check, batch, height, width);
  check.that(row_bands >= 0 && column_bands >= 0 && row_width >= 0 && column_width >= 0,
             "numbers and widths of bands to be at least 0", "less");
  check.that(share >= 0.0 && share <= 1.0, "`share` in [0, 1]", std::to_string(share));
  BandsArgs args{};
  args.seed = const_data<int64_t>(seed);
  args.batch = batch;
  args.height = height;
  args.width = width;
  args.row_bands = row_bands;
  args.row_width = row_width;
  args.column_bands = column_bands;
  args.column_width = column_width;
  args.share = share;
  Tensor held;
  if (lengths.has_value()) {
    check.same_device(*lengths, "lengths", seed);
    check.dtype(*lengths, "lengths", ScalarType::Long, "int64");
    check.shape(*lengths, "lengths", {batch});
    held = torch::stable::contiguous(*lengths);
    args.lengths = const_data<int64_t>(held);
  }
  Tensor boxes = new_tensor(seed, {batch, row_bands + column_bands, 4}, ScalarType::Int);
  args.boxes = mutable_data<int32_t>(boxes);
  if (batch > 0) backend::bands(args, OnDevice(seed));
  return boxes;
}

Tensor checked_bits(const Checks& check, const Tensor& bits, const Tensor& x, const Images& m) {
  check.same_device(bits, "bits", x);
  check.dtype(bits, "bits", ScalarType::Int, "int32");
  check.shape(bits, "bits", {m.batch, bit_words(m.height * m.width)});
  return torch::stable::contiguous(bits);
}

Tensor checked_partner(const Checks& check, const Tensor& partner, const Tensor& x,
                       std::initializer_list<int64_t> shape) {
  check.same_device(partner, "partner", x);
  check.dtype(partner, "partner", ScalarType::Long, "int64");
  check.shape(partner, "partner", shape);
  const Tensor held = torch::stable::contiguous(partner);
  if (kValuesReadable)
    for (int64_t i = 0; i < held.numel(); ++i) {
      const int64_t j = const_data<int64_t>(held)[i];
      if (j < 0 || j >= x.size(0))
        check.that(false, "every `partner` in [0, " + std::to_string(x.size(0)) + ")",
                   std::to_string(j));
    }
  return held;
}

void mix_into(const Checks& check, const Dense& in, const Tensor& y, const Tensor& bits,
              const MaybeTensor& partner, const MaybeTensor& value) {
  const Tensor& x = in.tensor;
  MaskMixArgs args{};
  args.dtype = check.floating_or_byte(x, "x");
  args.images = pixels_of(check, in);
  args.channels = x.dim() > 3 ? x.size(1) : 1;
  args.frames = in.channels_last || args.channels == 0 ? 1 : args.images.outer / args.channels;
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  const Tensor held = checked_bits(check, bits, x, args.images);
  args.bits = const_data<uint32_t>(held);
  check.that(partner.has_value() != value.has_value(), "`partner` or `value`",
             partner.has_value() ? "both" : "neither");
  Tensor partners, values;
  if (partner.has_value()) {
    partners = checked_partner(check, *partner, x, {args.images.batch});
    args.partner = const_data<int64_t>(partners);
  } else {
    check.same_device(*value, "value", x);
    check.dtype(*value, "value", ScalarType::Double, "float64");
    check.that(value->numel() == 1 || value->numel() == args.channels,
               "`value` of 1 or " + std::to_string(args.channels) + " elements",
               sizes_name(*value));
    values = torch::stable::contiguous(*value);
    args.values = const_data<double>(values);
    args.value_count = values.numel();
  }
  if (x.numel() > 0) backend::mask_mix(args, OnDevice(x));
}

Tensor mask_mix(const Tensor& x, const Tensor& bits, MaybeTensor partner, MaybeTensor value) {
  const Dense in = dense(x);
  Tensor y = torch::stable::empty_like(in.tensor);
  mix_into(Checks("mask_mix"), in, y, bits, partner, value);
  return y;
}

void mask_mix_(const Tensor& x, const Tensor& bits, const Tensor& value) {
  const Dense in = dense(x);
  mix_into(Checks("mask_mix_"), in, in.tensor, bits, MaybeTensor(), value);
  if (in.tensor.const_data_ptr() != x.const_data_ptr()) {
    Tensor target = x;
    torch::stable::copy_(target, in.tensor);
  }
}

Tensor mask_mix_adjoint(const Tensor& g, const Tensor& bits, const Tensor& partner) {
  const Checks check("mask_mix_adjoint");
  const Dense in = dense(g);
  MaskMixAdjointArgs args{};
  args.dtype = check.floating(g, "g");
  args.images = pixels_of(check, in);
  const Tensor held = checked_bits(check, bits, g, args.images);
  const Tensor partners = checked_partner(check, partner, g, {args.images.batch});
  Tensor out = torch::stable::empty_like(in.tensor);
  Tensor links = new_tensor(g, {2 * args.images.batch}, ScalarType::Long);
  args.g = in.tensor.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.bits = const_data<uint32_t>(held);
  args.partner = const_data<int64_t>(partners);
  args.head = mutable_data<int64_t>(links);
  args.next = args.head + args.images.batch;
  if (g.numel() > 0) backend::mask_mix_adjoint(args, OnDevice(g));
  return out;
}

Tensor mosaic_of(const char* name, const Tensor& x, const Tensor& partner, const Tensor& centre,
                 bool corner, bool adjoint) {
  const Checks check(name);
  const Dense in = dense(x);
  MosaicArgs args{};
  args.dtype = adjoint ? check.floating(x, "g") : check.floating_or_byte(x, "x");
  args.images = pixels_of(check, in);
  const int64_t batch = args.images.batch;
  check_size(check, batch, args.images.height, args.images.width);
  const Tensor partners = checked_partner(check, partner, x, {batch, 4});
  check.same_device(centre, "centre", x);
  check.dtype(centre, "centre", ScalarType::Int, "int32");
  check.shape(centre, "centre", {batch, 2});
  const Tensor held = torch::stable::contiguous(centre);
  Tensor y = torch::stable::empty_like(in.tensor);
  Tensor links = new_tensor(x, {adjoint ? 5 * batch : 0}, ScalarType::Long);
  args.x = in.tensor.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.partner = const_data<int64_t>(partners);
  args.centre = const_data<int32_t>(held);
  args.corner = corner;
  if (x.numel() == 0) return y;
  if (!adjoint) {
    backend::mosaic(args, OnDevice(x));
    return y;
  }
  args.head = mutable_data<int64_t>(links);
  args.next = args.head + batch;
  backend::mosaic_adjoint(args, OnDevice(x));
  return y;
}

Tensor mosaic(const Tensor& x, const Tensor& partner, const Tensor& centre, bool corner) {
  return mosaic_of("mosaic", x, partner, centre, corner, false);
}

Tensor mosaic_adjoint(const Tensor& g, const Tensor& partner, const Tensor& centre, bool corner) {
  return mosaic_of("mosaic_adjoint", g, partner, centre, corner, true);
}

std::tuple<Tensor, Tensor> mosaic_params(const Tensor& seed, int64_t batch, int64_t height,
                                         int64_t width, double low, double high) {
  const Checks check("mosaic_params");
  check.seed(seed, seed);
  check_size(check, batch, height, width);
  check.that(0.0 <= low && low <= high && high <= 1.0, "0 <= `low` <= `high` <= 1",
             std::to_string(low) + " and " + std::to_string(high));
  Tensor partner = new_tensor(seed, {batch, 4}, ScalarType::Long);
  Tensor centre = new_tensor(seed, {batch, 2}, ScalarType::Int);
  MosaicParamsArgs args{
      const_data<int64_t>(seed),    batch, height, width, low, high, mutable_data<int64_t>(partner),
      mutable_data<int32_t>(centre)};
  if (batch > 0) backend::mosaic_params(args, OnDevice(seed));
  return {partner, centre};
}

Tensor beta_noise(const Tensor& alpha, const Tensor& beta, const Tensor& seed) {
  const Checks check("beta_noise");
  check.seed(seed, alpha);
  check.dtype(alpha, "alpha", ScalarType::Double, "float64");
  check.dtype(beta, "beta", ScalarType::Double, "float64");
  check.same_device(beta, "beta", alpha);
  check.that(sizes_name(beta) == sizes_name(alpha), "`beta` of shape " + sizes_name(alpha),
             sizes_name(beta));
  const Tensor a = torch::stable::contiguous(alpha), b = torch::stable::contiguous(beta);
  Tensor out = new_tensor(alpha, sizes_of(alpha), ScalarType::Double);
  BetaNoiseArgs args{const_data<int64_t>(seed), alpha.numel(), const_data<double>(a),
                     const_data<double>(b), mutable_data<double>(out)};
  if (alpha.numel() > 0) backend::beta_noise(args, OnDevice(alpha));
  return out;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "shape_bits(Tensor seed, str shape, int batch, int height, int width, float p, int least, "
      "int most, float ratio, float turns, int[] cell, bool invert, Tensor? boxes) "
      "-> (Tensor bits, Tensor kept)");
  m.def(
      "bands(Tensor seed, int batch, int height, int width, int row_bands, int row_width, "
      "int column_bands, int column_width, float share, Tensor? lengths) -> Tensor");
  m.def("mask_mix(Tensor x, Tensor bits, Tensor? partner, Tensor? value) -> Tensor");
  m.def("mask_mix_(Tensor(a!) x, Tensor bits, Tensor value) -> ()");
  m.def("mask_mix_adjoint(Tensor g, Tensor bits, Tensor partner) -> Tensor");
  m.def("mosaic(Tensor x, Tensor partner, Tensor centre, bool corner) -> Tensor");
  m.def("mosaic_adjoint(Tensor g, Tensor partner, Tensor centre, bool corner) -> Tensor");
  m.def(
      "mosaic_params(Tensor seed, int batch, int height, int width, float low, float high) "
      "-> (Tensor partner, Tensor centre)");
  m.def("beta_noise(Tensor alpha, Tensor beta, Tensor seed) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("shape_bits", TORCH_BOX(&shape_bits));
  m.impl("bands", TORCH_BOX(&bands));
  m.impl("mask_mix", TORCH_BOX(&mask_mix));
  m.impl("mask_mix_", TORCH_BOX(&mask_mix_));
  m.impl("mask_mix_adjoint", TORCH_BOX(&mask_mix_adjoint));
  m.impl("mosaic", TORCH_BOX(&mosaic));
  m.impl("mosaic_adjoint", TORCH_BOX(&mosaic_adjoint));
  m.impl("mosaic_params", TORCH_BOX(&mosaic_params));
  m.impl("beta_noise", TORCH_BOX(&beta_noise));
}

}  // namespace regkern::masks
