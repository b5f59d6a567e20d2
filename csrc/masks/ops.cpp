#include "core/op.h"
#include "masks/draw.h"
#include "masks/drop_block.h"
#include "masks/mask_apply.h"
#include "masks/mix.h"
#include "masks/random_erasing.h"
#include "masks/schemas.h"

namespace regkern::masks {
namespace {

// ---- drop_block ----

enum class Per : int { channel, sample, batch };

// The options of a mask, checked and parsed.
struct MaskOptions {
  Geometry geometry;
  Rate rate;
  Normalize normalize;
  Per per;
  double gamma_scale, p;
  MaybeTensor p_tensor;
  int64_t batch, channels;
  int64_t groups;  // scales
};

// (batch, channels, spatial …) with `ndim` spatial dimensions, or the same without the batch.
MaskOptions mask_options(const Checks& check, const std::vector<int64_t>& size,
                         const std::vector<int64_t>& block_size, const std::string& border,
                         const std::string& per, const std::string& normalize,
                         const std::string& gamma, double gamma_scale, double p,
                         const MaybeTensor& p_tensor, const Tensor& seed) {
  const auto ndim = static_cast<int64_t>(block_size.size());
  const auto rank = static_cast<int64_t>(size.size());
  check.that(ndim >= 1 && ndim <= 3, "`block_size` of length 1, 2 or 3", std::to_string(ndim));
  check.that(rank == ndim + 1 || rank == ndim + 2,
             "`x` of rank " + std::to_string(ndim + 1) + " or " + std::to_string(ndim + 2),
             std::to_string(rank));
  for (int64_t k : block_size)
    check.that(k >= 1, "every `block_size` to be at least 1", std::to_string(k));
  check.that(gamma_scale >= 0.0, "`gamma_scale` to be at least 0", std::to_string(gamma_scale));
  if (p_tensor.has_value()) {
    check.same_device(*p_tensor, "p_tensor", seed);
    check.dtype(*p_tensor, "p_tensor", ScalarType::Double, "float64");
    check.that(p_tensor->numel() == 1, "`p_tensor` of one element", sizes_name(*p_tensor));
    if (kValuesReadable) p = *const_data<double>(*p_tensor);
  }
  if (!p_tensor.has_value() || kValuesReadable)
    check.that(p >= 0.0 && p <= 1.0, "`p` in [0, 1]", std::to_string(p));
  MaskOptions o{};
  o.batch = rank == ndim + 2 ? size[0] : 1;
  o.channels = size[static_cast<size_t>(rank - ndim - 1)];
  o.per = static_cast<Per>(check.one_of(per, "per", {"channel", "sample", "batch"}));
  o.rate = static_cast<Rate>(check.one_of(gamma, "gamma", {"paper", "exact"}));
  o.normalize = static_cast<Normalize>(
      check.one_of(normalize, "normalize", {"count", "sample", "expected", "none"}));
  const auto parsed =
      static_cast<Border>(check.one_of(border, "border", {"valid", "clip", "same", "wrap"}));
  const int64_t planes = o.per == Per::batch    ? 1
                         : o.per == Per::sample ? o.batch
                                                : o.batch * o.channels;
  o.geometry = make_geometry(planes, size.data() + (rank - ndim), block_size.data(),
                             static_cast<int>(ndim), parsed);
  o.groups = o.normalize == Normalize::sample && o.per != Per::batch ? o.batch : 1;
  o.gamma_scale = gamma_scale;
  o.p = p;
  o.p_tensor = p_tensor;
  return o;
}

std::tuple<Tensor, Tensor> draw_mask(const MaskOptions& o, const Tensor& seed, Context context) {
  const int64_t bits = o.geometry.planes * elements(o.geometry);
  Tensor mask = new_tensor(seed, {bit_words(bits)}, ScalarType::Int);
  Tensor scale = new_tensor(seed, {o.groups}, ScalarType::Double);
  if (bits == 0) return {mask, torch::stable::fill_(scale, 1.0)};
  Tensor kept = new_tensor(seed, {o.groups}, ScalarType::Long);
  Tensor plan = new_tensor(seed, {kValuesReadable ? 0 : static_cast<int64_t>(sizeof(Plan))},
                           ScalarType::Byte);
  backend::drop_block_mask(
      DropBlockMaskArgs{o.geometry, o.rate, o.normalize, o.gamma_scale, o.p,
                        data_or_null<double>(o.p_tensor), const_data<int64_t>(seed), o.groups,
                        mutable_data<uint32_t>(mask), mutable_data<double>(scale),
                        mutable_data<int64_t>(kept), mutable_data<Plan>(plan)},
      context);
  return {mask, scale};
}

// How the elements of a dense tensor map to the bits of a mask of its batch, channels and planes.
struct Layout {
  int64_t batch, channels, plane;
  bool channels_last;
};

MaskIndex mask_index(const Layout& l, Per per) {
  const int64_t all = l.batch * l.channels * l.plane;
  if (per == Per::channel) return {1, 1, all};
  if (l.channels_last)
    return per == Per::sample ? MaskIndex{l.channels, 1, l.batch * l.plane}
                              : MaskIndex{l.channels, l.batch, l.plane};
  return per == Per::sample ? MaskIndex{1, l.channels, l.plane}
                            : MaskIndex{1, l.batch * l.channels, l.plane};
}

struct Fused {
  double noise = 0.0;
  const Tensor* seed = nullptr;
  bool relu = false;
  const Tensor* residual = nullptr;
  const Tensor* active = nullptr;
};

// Runs mask_apply on dense x and y; returns the packed bits of y > 0 (empty without relu).
Tensor apply_mask(const Tensor& x, const Tensor& y, const Layout& layout, Dtype dtype, Per per,
                  const Tensor& mask, const Tensor& scale, const Fused& fused, Context context) {
  const int64_t numel = x.numel(), words = bit_words(numel);
  Tensor active = new_tensor(x, {fused.relu ? words : 0}, ScalarType::Int);
  if (numel == 0) return active;
  // A mask per element goes into the memory order of x: then every layout streams.
  const bool reorder = layout.channels_last && layout.channels > 1;
  const Tensor bits =
      reorder && per == Per::channel
          ? transposed_bits(mask, layout.batch, layout.channels, layout.plane, context)
          : mask;
  Tensor active_in;
  if (fused.active != nullptr)
    active_in = reorder ? transposed_bits(*fused.active, layout.batch, layout.channels,
                                          layout.plane, context)
                        : *fused.active;
  MaskApplyArgs args{};
  args.dtype = dtype;
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.numel = numel;
  args.index = mask_index(layout, per);
  args.mask = const_data<uint32_t>(bits);
  args.mask_words = bits.numel();
  args.scale = const_data<double>(scale);
  args.per_scale = numel / scale.numel();
  args.residual = fused.residual != nullptr ? fused.residual->const_data_ptr() : nullptr;
  args.relu = fused.relu;
  args.active = fused.active != nullptr ? const_data<uint32_t>(active_in) : nullptr;
  args.active_out = fused.relu ? mutable_data<uint32_t>(active) : nullptr;
  args.noise = fused.noise;
  args.seed = fused.seed != nullptr ? const_data<int64_t>(*fused.seed) : nullptr;
  args.channels = layout.channels_last ? layout.channels : 1;
  args.plane = layout.plane;
  backend::mask_apply(args, context);
  return fused.relu && reorder
             ? transposed_bits(active, layout.batch, layout.plane, layout.channels, context)
             : active;
}

struct Dropped {
  Tensor mask, scale, active;
};

// Draws the mask and applies it from `in` to `out`, which share layout and may be one tensor.
Dropped drop(const Checks& check, const Dense& in, const Tensor& out, const Tensor& seed,
             const MaskOptions& o, double noise, bool relu, const MaybeTensor& residual,
             const std::string& save) {
  const Dtype dtype = check.floating(in.tensor, "x");
  const bool keep_mask = check.one_of(save, "save", {"mask", "seed"}) == 0;
  check.that(noise >= 0.0, "`noise` to be at least 0", std::to_string(noise));
  Tensor added;
  if (residual.has_value()) {
    check.same_device(*residual, "residual", in.tensor);
    check.that(residual->dim() == in.tensor.dim() && residual->numel() == in.tensor.numel() &&
                   sizes_name(*residual) == sizes_name(in.tensor),
               "`residual` of shape " + sizes_name(in.tensor), sizes_name(*residual));
    check.that(residual->scalar_type() == in.tensor.scalar_type(), "`residual` of the dtype of `x`",
               "another");
    added = dense_like(*residual, in);
  }
  const OnDevice context(in.tensor);
  auto [mask, scale] = draw_mask(o, seed, context);
  const Layout layout{o.batch, o.channels, elements(o.geometry), in.channels_last};
  Fused fused;
  fused.noise = noise;
  fused.seed = &seed;
  fused.relu = relu;
  fused.residual = residual.has_value() ? &added : nullptr;
  Tensor active = apply_mask(in.tensor, out, layout, dtype, o.per, mask, scale, fused, context);
  return {keep_mask ? mask : new_tensor(seed, {0}, ScalarType::Int), scale, active};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> drop_block(const Tensor& x, const Tensor& seed, double p,
                                                      std::vector<int64_t> block_size,
                                                      std::string border, std::string per,
                                                      std::string normalize, std::string gamma,
                                                      double gamma_scale, MaybeTensor p_tensor,
                                                      double noise, bool relu, MaybeTensor residual,
                                                      std::string save) {
  const Checks check("drop_block");
  check.seed(seed, x);
  check.floating(x, "x");
  const MaskOptions o = mask_options(check, sizes_of(x), block_size, border, per, normalize, gamma,
                                     gamma_scale, p, p_tensor, seed);
  const Dense in = dense(x);
  Tensor y = torch::stable::empty_like(in.tensor);
  Dropped d = drop(check, in, y, seed, o, noise, relu, residual, save);
  return {y, d.mask, d.scale, d.active};
}

std::tuple<Tensor, Tensor, Tensor> drop_block_(const Tensor& x, const Tensor& seed, double p,
                                               std::vector<int64_t> block_size, std::string border,
                                               std::string per, std::string normalize,
                                               std::string gamma, double gamma_scale,
                                               MaybeTensor p_tensor, double noise, bool relu,
                                               MaybeTensor residual, std::string save) {
  const Checks check("drop_block_");
  check.seed(seed, x);
  check.floating(x, "x");
  const MaskOptions o = mask_options(check, sizes_of(x), block_size, border, per, normalize, gamma,
                                     gamma_scale, p, p_tensor, seed);
  const Dense in = dense(x);
  Dropped d = drop(check, in, in.tensor, seed, o, noise, relu, residual, save);
  if (in.tensor.const_data_ptr() != x.const_data_ptr()) {
    Tensor target = x;
    torch::stable::copy_(target, in.tensor);
  }
  return {d.mask, d.scale, d.active};
}

std::tuple<Tensor, Tensor> drop_block_mask(const Tensor& seed, double p, std::vector<int64_t> size,
                                           std::vector<int64_t> block_size, std::string border,
                                           std::string per, std::string normalize,
                                           std::string gamma, double gamma_scale,
                                           MaybeTensor p_tensor) {
  const Checks check("drop_block_mask");
  check.seed(seed, seed);
  for (int64_t n : size) check.that(n >= 0, "every `size` to be at least 0", std::to_string(n));
  const MaskOptions o = mask_options(check, size, block_size, border, per, normalize, gamma,
                                     gamma_scale, p, p_tensor, seed);
  return draw_mask(o, seed, OnDevice(seed));
}

Tensor mask_apply(const Tensor& x, const Tensor& mask, const Tensor& scale, int64_t ndim,
                  std::string per, MaybeTensor active) {
  const Checks check("mask_apply");
  const Dtype dtype = check.floating(x, "x");
  check.that(x.dim() == ndim + 1 || x.dim() == ndim + 2,
             "`x` of rank " + std::to_string(ndim + 1) + " or " + std::to_string(ndim + 2),
             std::to_string(x.dim()));
  check.same_device(mask, "mask", x);
  check.dtype(mask, "mask", ScalarType::Int, "int32");
  check.same_device(scale, "scale", x);
  check.dtype(scale, "scale", ScalarType::Double, "float64");
  const Per parsed = static_cast<Per>(check.one_of(per, "per", {"channel", "sample", "batch"}));
  const Dense in = dense(x);
  Layout layout{x.dim() == ndim + 2 ? x.size(0) : 1, x.size(x.dim() - ndim - 1), 1,
                in.channels_last};
  for (int64_t d = x.dim() - ndim; d < x.dim(); ++d) layout.plane *= x.size(d);
  const int64_t planes = parsed == Per::batch    ? 1
                         : parsed == Per::sample ? layout.batch
                                                 : layout.batch * layout.channels;
  check.shape(mask, "mask", {bit_words(planes * layout.plane)});
  check.that(scale.dim() == 1 && (scale.numel() == 1 || scale.numel() == layout.batch),
             "`scale` of shape (1) or (" + std::to_string(layout.batch) + ")", sizes_name(scale));
  Fused fused;
  Tensor contiguous_active;
  if (active.has_value()) {
    check.same_device(*active, "active", x);
    check.dtype(*active, "active", ScalarType::Int, "int32");
    check.shape(*active, "active", {bit_words(x.numel())});
    contiguous_active = torch::stable::contiguous(*active);
    fused.active = &contiguous_active;
  }
  Tensor y = torch::stable::empty_like(in.tensor);
  apply_mask(in.tensor, y, layout, dtype, parsed, torch::stable::contiguous(mask),
             torch::stable::contiguous(scale), fused, OnDevice(x));
  return y;
}

// ---- mixing ----

// (batch, features) and (batch, …, height, width), in memory order.
Images images_of(const Dense& d) {
  const Tensor& t = d.tensor;
  if (t.dim() < 3) return {t.size(0), 1, 1, 1, t.dim() == 2 ? t.size(1) : 1};
  const int64_t height = t.size(t.dim() - 2), width = t.size(t.dim() - 1);
  Images m{t.size(0), 1, height, width, 1};
  for (int64_t i = d.channels_last ? 2 : 1; i < t.dim() - 2; ++i) m.outer *= t.size(i);
  if (d.channels_last) m.inner = t.size(1);
  return m;
}

// The arguments that say how to mix, checked against a batch.
struct Mixing {
  Tensor partner, box, weight;
  const int32_t* boxes = nullptr;
  Weights weights{nullptr, false};
};

void check_boxes(const Checks& check, const Tensor& box, const Images& m) {
  if (!kValuesReadable) return;
  const int32_t* boxes = const_data<int32_t>(box);
  for (int64_t i = 0; i < box.numel() / 4; ++i) {
    const Box b = load_box(boxes, i);
    const bool ok = b.y0 >= 0 && b.x0 >= 0 && b.y1 <= m.height && b.x1 <= m.width;
    if (ok) continue;
    check.that(false,
               "every `box` (y0, y1, x0, x1) inside the image of " + std::to_string(m.height) +
                   " x " + std::to_string(m.width),
               "(" + std::to_string(b.y0) + ", " + std::to_string(b.y1) + ", " +
                   std::to_string(b.x0) + ", " + std::to_string(b.x1) + ")");
  }
}

Mixing mixing(const Checks& check, const Tensor& x, const Images& m, int64_t others,
              const Tensor& partner, const MaybeTensor& box, const MaybeTensor& weight) {
  Mixing r;
  check.same_device(partner, "partner", x);
  check.dtype(partner, "partner", ScalarType::Long, "int64");
  check.shape(partner, "partner", {m.batch});
  r.partner = torch::stable::contiguous(partner);
  if (kValuesReadable)
    for (int64_t i = 0; i < m.batch; ++i) {
      const int64_t j = const_data<int64_t>(r.partner)[i];
      if (j < 0 || j >= others)
        check.that(false, "every `partner` in [0, " + std::to_string(others) + ")",
                   std::to_string(j));
    }
  if (box.has_value()) {
    check.that(x.dim() >= 3, "`x` of rank 3 or more with `box`", std::to_string(x.dim()));
    check.same_device(*box, "box", x);
    check.dtype(*box, "box", ScalarType::Int, "int32");
    check.shape(*box, "box", {m.batch, 4});
    r.box = torch::stable::contiguous(*box);
    check_boxes(check, r.box, m);
    r.boxes = const_data<int32_t>(r.box);
  }
  if (weight.has_value()) {
    check.same_device(*weight, "weight", x);
    check.shape(*weight, "weight", {m.batch});
    const bool is_double = weight->scalar_type() == ScalarType::Double;
    check.that(is_double || weight->scalar_type() == ScalarType::Float,
               "`weight` of dtype float32 or float64", "another");
    r.weight = torch::stable::contiguous(*weight);
    r.weights = {r.weight.const_data_ptr(), is_double};
  }
  return r;
}

int64_t itemsize(const Tensor& t) {
  size_t size = t.element_size();
  return static_cast<int64_t>(size);
}

// Shapes agree in all but the batch.
void check_other(const Checks& check, const Tensor& other, const Tensor& x) {
  check.same_device(other, "other", x);
  check.that(other.scalar_type() == x.scalar_type(), "`other` of the dtype of `x`", "another");
  bool ok = other.dim() == x.dim();
  for (int64_t i = 1; ok && i < x.dim(); ++i) ok = other.size(i) == x.size(i);
  check.that(ok, "`other` of the shape of `x`, " + sizes_name(x) + ", but for the batch",
             sizes_name(other));
}

void mix_into(const Checks& check, const Dense& in, const Tensor& y, const Tensor& partner,
              const MaybeTensor& box, const MaybeTensor& weight, const MaybeTensor& other) {
  const Tensor& x = in.tensor;
  check.that(x.dim() >= 1, "`x` of rank 1 or more", "0");
  if (other.has_value()) check_other(check, *other, x);
  const Images m = images_of(in);
  const Tensor source = other.has_value() ? dense_like(*other, in) : x;
  const Mixing how = mixing(check, x, m, source.size(0), partner, box, weight);
  MixArgs args{};
  args.dtype = weight.has_value() ? check.floating_or_byte(x, "x") : Dtype::uint8;
  args.itemsize = itemsize(x);
  if (x.numel() == 0) return;
  args.images = m;
  args.x = x.const_data_ptr();
  args.other = source.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.partner = const_data<int64_t>(how.partner);
  args.others = source.size(0);
  args.boxes = how.boxes;
  args.weight = how.weights;
  backend::mix(args, OnDevice(x));
}

Tensor mix(const Tensor& x, const Tensor& partner, MaybeTensor box, MaybeTensor weight,
           MaybeTensor other) {
  const Dense in = dense(x);
  Tensor y = torch::stable::empty_like(in.tensor);
  mix_into(Checks("mix"), in, y, partner, box, weight, other);
  return y;
}

void mix_out(const Tensor& x, const Tensor& partner, const Tensor& out, MaybeTensor box,
             MaybeTensor weight, MaybeTensor other) {
  const Checks check("mix_out");
  const Dense in = dense(x);
  check.same_device(out, "out", x);
  check.that(out.scalar_type() == x.scalar_type(), "`out` of the dtype of `x`", "another");
  check.that(sizes_name(out) == sizes_name(x), "`out` of shape " + sizes_name(x), sizes_name(out));
  const Dense target = dense(out);
  check.that(target.tensor.const_data_ptr() == out.const_data_ptr() &&
                 target.channels_last == in.channels_last,
             "`out` in the memory layout of `x`", "another");
  // A sample is read after its place in `out` was written, by the one that it is the partner of.
  const auto overlaps = [&](const Tensor& t) {
    const char *a = const_data<char>(t), *b = const_data<char>(out);
    const int64_t n = t.numel() * itemsize(t), m = out.numel() * itemsize(out);
    return n > 0 && m > 0 && a < b + m && b < a + n;
  };
  check.that(!overlaps(in.tensor) && !(other.has_value() && overlaps(*other)),
             "`out` that shares no memory with the input", "one that does");
  mix_into(check, in, out, partner, box, weight, other);
}

Tensor mix_adjoint(const Tensor& g, const Tensor& partner, int64_t others, MaybeTensor box,
                   MaybeTensor weight, bool own, bool from_partner) {
  const Checks check("mix_adjoint");
  check.that(g.dim() >= 1, "`g` of rank 1 or more", "0");
  const Dense in = dense(g);
  const Images m = images_of(in);
  const Dtype dtype = check.floating(g, "g");
  const Mixing how = mixing(check, g, m, others, partner, box, weight);
  check.that(!(own && from_partner) || others == m.batch,
             "`others` to be the batch size with `own` and `from_partner`", std::to_string(others));
  Tensor out;
  if (own || others == m.batch) {
    out = torch::stable::empty_like(in.tensor);
  } else {
    std::vector<int64_t> sizes = sizes_of(g);
    sizes[0] = others;
    out = dense_like(new_tensor(g, sizes, g.scalar_type()), in);
  }
  Tensor links = new_tensor(g, {others + m.batch}, ScalarType::Long);
  MixAdjointArgs args{};
  args.dtype = dtype;
  args.images = m;
  args.others = others;
  args.g = in.tensor.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.partner = const_data<int64_t>(how.partner);
  args.boxes = how.boxes;
  args.weight = how.weights;
  args.own = own;
  args.from_partner = from_partner;
  args.head = mutable_data<int64_t>(links);
  args.next = args.head + others;
  if (out.numel() > 0) backend::mix_adjoint(args, OnDevice(g));
  return out;
}

Tensor mix_dot(const Tensor& g, const Tensor& x, const Tensor& partner, MaybeTensor box,
               MaybeTensor other) {
  const Checks check("mix_dot");
  const Dense in = dense(x);
  const Images m = images_of(in);
  const Dtype dtype = check.floating(x, "x");
  check.same_device(g, "g", x);
  check.that(sizes_name(g) == sizes_name(x) && g.scalar_type() == x.scalar_type(),
             "`g` of the shape and dtype of `x`, " + sizes_name(x), sizes_name(g));
  if (other.has_value()) check_other(check, *other, x);
  const Tensor gradient = dense_like(g, in);
  const Tensor source = other.has_value() ? dense_like(*other, in) : in.tensor;
  const Mixing how = mixing(check, x, m, source.size(0), partner, box, MaybeTensor());
  Tensor out = new_tensor(x, {m.batch}, ScalarType::Double);
  if (x.numel() == 0) return torch::stable::fill_(out, 0.0);
  const int64_t segments = (sample_size(m) + kDotSegment - 1) / kDotSegment;
  Tensor scratch = new_tensor(x, {m.batch * segments}, ScalarType::Double);
  backend::mix_dot(
      MixDotArgs{dtype, m, gradient.const_data_ptr(), in.tensor.const_data_ptr(),
                 source.const_data_ptr(), const_data<int64_t>(how.partner), source.size(0),
                 how.boxes, mutable_data<double>(scratch), mutable_data<double>(out)},
      OnDevice(x));
  return out;
}

Tensor mix_labels(const Tensor& labels, const Tensor& partner, const Tensor& lam,
                  int64_t num_classes, ScalarType dtype, double smoothing,
                  MaybeTensor other_labels) {
  const Checks check("mix_labels");
  check.that(labels.dim() == 1, "`labels` of rank 1", std::to_string(labels.dim()));
  check.dtype(labels, "labels", ScalarType::Long, "int64");
  check.that(num_classes >= 1, "`num_classes` to be at least 1", std::to_string(num_classes));
  check.that(smoothing >= 0.0 && smoothing <= 1.0, "`smoothing` in [0, 1]",
             std::to_string(smoothing));
  const int64_t batch = labels.size(0);
  check.same_device(lam, "lam", labels);
  check.dtype(lam, "lam", ScalarType::Float, "float32");
  check.shape(lam, "lam", {batch});
  Tensor theirs = labels;
  if (other_labels.has_value()) {
    check.same_device(*other_labels, "other_labels", labels);
    check.dtype(*other_labels, "other_labels", ScalarType::Long, "int64");
    check.that(other_labels->dim() == 1, "`other_labels` of rank 1",
               std::to_string(other_labels->dim()));
    theirs = *other_labels;
  }
  const Images m{batch, 1, 1, 1, 1};
  const Mixing how =
      mixing(check, labels, m, theirs.size(0), partner, MaybeTensor(), MaybeTensor());
  const Tensor own = torch::stable::contiguous(labels);
  theirs = torch::stable::contiguous(theirs);
  if (kValuesReadable)
    for (const Tensor* t : {&own, static_cast<const Tensor*>(&theirs)})
      for (int64_t i = 0; i < t->numel(); ++i) {
        const int64_t label = const_data<int64_t>(*t)[i];
        if (label < 0 || label >= num_classes)
          check.that(false, "every label in [0, " + std::to_string(num_classes) + ")",
                     std::to_string(label));
      }
  Tensor out = new_tensor(labels, {batch, num_classes}, dtype);
  const Tensor share = torch::stable::contiguous(lam);
  MixLabelsArgs args{check.floating(out, "dtype"),
                     batch,
                     num_classes,
                     const_data<int64_t>(own),
                     const_data<int64_t>(theirs),
                     const_data<int64_t>(how.partner),
                     theirs.numel(),
                     const_data<float>(share),
                     smoothing,
                     out.mutable_data_ptr()};
  if (batch > 0) backend::mix_labels(args, OnDevice(labels));
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mix_params(
    const Tensor& seed, int64_t batch, int64_t height, int64_t width, std::string pairing,
    bool per_batch, double cutmix_alpha, double mixup_alpha, double switch_prob, double p,
    bool inside, double min_cut, double max_cut, bool correct_lam) {
  const Checks check("mix_params");
  check.seed(seed, seed);
  check.that(batch >= 0, "`batch` to be at least 0", std::to_string(batch));
  check.that(height >= 0 && width >= 0 && height < INT32_MAX && width < INT32_MAX,
             "`height` and `width` from 0 to 2^31 - 2",
             std::to_string(height) + " and " + std::to_string(width));
  check.that(cutmix_alpha >= 0.0 && mixup_alpha >= 0.0,
             "`cutmix_alpha` and `mixup_alpha` to be at least 0",
             std::to_string(cutmix_alpha) + " and " + std::to_string(mixup_alpha));
  check.that(p >= 0.0 && p <= 1.0, "`p` in [0, 1]", std::to_string(p));
  check.that(switch_prob >= 0.0 && switch_prob <= 1.0, "`switch_prob` in [0, 1]",
             std::to_string(switch_prob));
  check.that(0.0 <= min_cut && min_cut <= max_cut && max_cut <= 1.0,
             "0 <= `min_cut` <= `max_cut` <= 1",
             std::to_string(min_cut) + " and " + std::to_string(max_cut));
  const auto kind = static_cast<Pairing>(
      check.one_of(pairing, "pairing", {"roll", "flip", "perm", "derange", "identity"}));
  Tensor partner = new_tensor(seed, {batch}, ScalarType::Long);
  Tensor box = new_tensor(seed, {batch, 4}, ScalarType::Int);
  Tensor weight = new_tensor(seed, {batch}, ScalarType::Float);
  Tensor lam = new_tensor(seed, {batch}, ScalarType::Float);
  Tensor scratch = new_tensor(seed, {2 * batch}, ScalarType::Long);
  MixParamsArgs args{};
  args.seed = const_data<int64_t>(seed);
  args.batch = batch;
  args.height = height;
  args.width = width;
  args.pairing = kind;
  args.per_batch = per_batch;
  args.cutmix_alpha = cutmix_alpha;
  args.mixup_alpha = mixup_alpha;
  args.switch_prob = switch_prob;
  args.p = p;
  args.inside = inside;
  args.min_cut = min_cut;
  args.max_cut = max_cut;
  args.correct_lam = correct_lam;
  args.partner = mutable_data<int64_t>(partner);
  args.boxes = mutable_data<int32_t>(box);
  args.weight = mutable_data<float>(weight);
  args.lam = mutable_data<float>(lam);
  args.keys = mutable_data<uint64_t>(scratch);
  args.order = mutable_data<int64_t>(scratch) + batch;
  if (batch > 0) backend::mix_params(args, OnDevice(seed));
  return {partner, box, weight, lam};
}

// ---- random erasing ----

Tensor erase_params(const Tensor& seed, int64_t batch, int64_t height, int64_t width,
                    int64_t min_count, int64_t max_count, bool per_batch, double p, double min_area,
                    double max_area, double min_ratio, double max_ratio, std::string shape,
                    int64_t side) {
  const Checks check("erase_params");
  check.seed(seed, seed);
  check.that(batch >= 0, "`batch` to be at least 0", std::to_string(batch));
  check.that(height >= 0 && width >= 0 && height < INT32_MAX && width < INT32_MAX,
             "`height` and `width` from 0 to 2^31 - 2",
             std::to_string(height) + " and " + std::to_string(width));
  check.that(1 <= min_count && min_count <= max_count && max_count <= 4096,
             "1 <= `min_count` <= `max_count` <= 4096",
             std::to_string(min_count) + " and " + std::to_string(max_count));
  check.that(p >= 0.0 && p <= 1.0, "`p` in [0, 1]", std::to_string(p));
  check.that(0.0 < min_area && min_area <= max_area && max_area <= 1.0,
             "0 < `min_area` <= `max_area` <= 1",
             std::to_string(min_area) + " and " + std::to_string(max_area));
  check.that(0.0 < min_ratio && min_ratio <= max_ratio && max_ratio < 1e100,
             "0 < `min_ratio` <= `max_ratio`",
             std::to_string(min_ratio) + " and " + std::to_string(max_ratio));
  check.that(side >= 0 && side < INT32_MAX, "`side` to be at least 0", std::to_string(side));
  EraseParamsArgs args{};
  args.seed = const_data<int64_t>(seed);
  args.batch = batch;
  args.height = height;
  args.width = width;
  args.boxes_per_sample = max_count;
  args.min_boxes = min_count;
  args.per_batch = per_batch;
  args.p = p;
  args.min_area = min_area;
  args.max_area = max_area;
  args.log_min_ratio = regkern::log(min_ratio);
  args.log_max_ratio = regkern::log(max_ratio);
  args.shape = static_cast<EraseShape>(check.one_of(shape, "shape", {"retry", "fit", "square"}));
  args.side = side;
  Tensor box = new_tensor(seed, {batch, max_count, 4}, ScalarType::Int);
  args.boxes = mutable_data<int32_t>(box);
  if (batch > 0) backend::erase_params(args, OnDevice(seed));
  return box;
}

void erase(const Checks& check, const Dense& d, const Tensor& box, const MaybeTensor& value,
           const std::string& fill, const MaybeTensor& seed) {
  const Tensor& y = d.tensor;
  check.that(y.dim() == 4 || y.dim() == 5, "`x` of rank 4 or 5", std::to_string(y.dim()));
  RandomErasingArgs args{};
  args.fill = static_cast<Fill>(check.one_of(fill, "fill", {"value", "channel", "pixel"}));
  args.dtype = args.fill == Fill::value ? check.floating_or_byte(y, "x") : check.floating(y, "x");
  args.images = images_of(d);
  args.channels = y.size(1);
  args.frames = y.dim() == 5 ? y.size(2) : 1;
  check.same_device(box, "box", y);
  check.dtype(box, "box", ScalarType::Int, "int32");
  check.that(box.dim() == 3, "`box` of shape (batch, boxes, 4)", sizes_name(box));
  check.shape(box, "box", {y.size(0), box.size(1), 4});
  const Tensor boxes = torch::stable::contiguous(box);
  check_boxes(check, boxes, args.images);
  args.boxes = const_data<int32_t>(boxes);
  args.boxes_per_sample = box.size(1);
  Tensor values;
  if (args.fill == Fill::value) {
    check.that(value.has_value(), "`value` with fill=\"value\"", "none");
    check.same_device(*value, "value", y);
    check.dtype(*value, "value", ScalarType::Double, "float64");
    check.that(value->numel() == 1 || value->numel() == args.channels,
               "`value` of 1 or " + std::to_string(args.channels) + " elements",
               sizes_name(*value));
    values = torch::stable::contiguous(*value);
    args.values = const_data<double>(values);
    args.value_count = values.numel();
  } else {
    check.that(seed.has_value(), "`seed` with a random fill", "none");
    check.seed(*seed, y);
    args.seed = const_data<int64_t>(*seed);
  }
  args.y = y.mutable_data_ptr();
  if (y.numel() > 0 && box.size(1) > 0) backend::random_erasing(args, OnDevice(y));
}

Tensor random_erasing(const Tensor& x, const Tensor& box, MaybeTensor value, std::string fill,
                      MaybeTensor seed) {
  const Dense in = dense(x);
  Dense out{torch::stable::empty_like(in.tensor), in.channels_last};
  torch::stable::copy_(out.tensor, in.tensor);
  erase(Checks("random_erasing"), out, box, value, fill, seed);
  return out.tensor;
}

void random_erasing_(const Tensor& x, const Tensor& box, MaybeTensor value, std::string fill,
                     MaybeTensor seed) {
  const Dense in = dense(x);
  erase(Checks("random_erasing_"), in, box, value, fill, seed);
  if (in.tensor.const_data_ptr() != x.const_data_ptr()) {
    Tensor target = x;
    torch::stable::copy_(target, in.tensor);
  }
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) { define(m); }
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("drop_block", TORCH_BOX(&drop_block));
  m.impl("drop_block_", TORCH_BOX(&drop_block_));
  m.impl("drop_block_mask", TORCH_BOX(&drop_block_mask));
  m.impl("mask_apply", TORCH_BOX(&mask_apply));
  m.impl("mix", TORCH_BOX(&mix));
  m.impl("mix_out", TORCH_BOX(&mix_out));
  m.impl("mix_adjoint", TORCH_BOX(&mix_adjoint));
  m.impl("mix_dot", TORCH_BOX(&mix_dot));
  m.impl("mix_labels", TORCH_BOX(&mix_labels));
  m.impl("mix_params", TORCH_BOX(&mix_params));
  m.impl("erase_params", TORCH_BOX(&erase_params));
  m.impl("random_erasing", TORCH_BOX(&random_erasing));
  m.impl("random_erasing_", TORCH_BOX(&random_erasing_));
}

}  // namespace regkern::masks
