#include <algorithm>

#include "core/bits.h"
#include "core/op.h"
#include "masks/dropout.h"

namespace regkern::masks {
namespace {

// A run of dimensions that a mask has, or shares.
struct Run {
  bool kept;
  int64_t size;
};

// Neighbouring dimensions of one kind are one run; those of size 1 are of either kind.
std::vector<Run> runs_of(const std::vector<int64_t>& sizes, const std::vector<bool>& kept) {
  std::vector<Run> runs;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 1) continue;
    if (!runs.empty() && runs.back().kept == kept[d])
      runs.back().size *= sizes[d];
    else
      runs.push_back({kept[d], sizes[d]});
  }
  return runs;
}

// Kept, shared, kept, shared, of which any may be missing. `front`: a shared run before these.
MaskIndex index_of(const Checks& check, const char* what, std::vector<Run> runs, int64_t* front) {
  MaskIndex index{1, 1, 1};
  const auto last = [&](bool kept) {
    if (runs.empty() || runs.back().kept != kept) return int64_t{1};
    const int64_t size = runs.back().size;
    runs.pop_back();
    return size;
  };
  index.width = last(false);
  index.run = last(true);
  index.repeat = last(false);
  last(true);
  *front = last(false);
  check.that(runs.empty(),
             std::string("`") + what + "` that leaves no more than two runs of dimensions", "more");
  return index;
}

struct Dropout {
  std::vector<bool> kept;  // by dimension of x
  bool elementwise;
  std::vector<int64_t> mask_sizes;
  double p;
  const double* p_at = nullptr;
  Tensor each;  // float32, of more than one element
  bool has_each = false;
};

Dropout options(const Checks& check, const std::vector<int64_t>& sizes, double p,
                const std::vector<int64_t>& shared, const MaybeTensor& p_tensor, const Tensor& x) {
  const auto rank = static_cast<int64_t>(sizes.size());
  Dropout o;
  o.kept.assign(sizes.size(), true);
  o.elementwise = true;
  for (int64_t d : shared) {
    check.that(d >= 0 && d < rank, "every `shared` in [0, " + std::to_string(rank) + ")",
               std::to_string(d));
    o.kept[static_cast<size_t>(d)] = false;
    o.elementwise = o.elementwise && sizes[static_cast<size_t>(d)] == 1;
  }
  for (int64_t d = 0; d < rank; ++d)
    o.mask_sizes.push_back(o.kept[static_cast<size_t>(d)] ? sizes[static_cast<size_t>(d)] : 1);
  o.p = p;
  if (p_tensor.has_value() && p_tensor->numel() == 1) {
    check.same_device(*p_tensor, "p_tensor", x);
    check.dtype(*p_tensor, "p_tensor", ScalarType::Double, "float64");
    if (kValuesReadable) o.p = *const_data<double>(*p_tensor);
    o.p_at = const_data<double>(*p_tensor);
  } else if (p_tensor.has_value()) {
    check.same_device(*p_tensor, "p_tensor", x);
    check.dtype(*p_tensor, "p_tensor", ScalarType::Float, "float32");
    bool fits = p_tensor->dim() == rank;
    for (int64_t d = 0; fits && d < rank; ++d)
      fits = p_tensor->size(d) == 1 || p_tensor->size(d) == o.mask_sizes[static_cast<size_t>(d)];
    check.that(fits, "`p_tensor` of one element, or of the mask's sizes or 1 in each dimension",
               sizes_name(*p_tensor));
    o.each = torch::stable::contiguous(*p_tensor);
    o.has_each = true;
  }
  if (!p_tensor.has_value() || (kValuesReadable && !o.has_each))
    check.that(o.p >= 0.0 && o.p <= 1.0, "`p` in [0, 1]", std::to_string(o.p));
  return o;
}

// x and y are row-major.
void drop_elements(const Checks& check, const Dropout& o, const Tensor& x, const Tensor& y,
                   const std::vector<int64_t>& sizes, const Tensor& seed, bool scaled,
                   int64_t copies, bool sums) {
  DropoutArgs args{};
  args.dtype = check.floating(x, "x");
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.copies = copies;
  args.numel = 1;
  for (int64_t n : sizes) args.numel *= n;
  args.sums = sums;
  args.seed = const_data<int64_t>(seed);
  args.p = o.p;
  args.p_at = o.p_at;
  args.p_index = {1, 1, args.numel};
  if (o.has_each) {
    args.p_each = const_data<float>(o.each);
    std::vector<bool> varies;
    for (int64_t d = 0; d < o.each.dim(); ++d) varies.push_back(o.each.size(d) != 1);
    int64_t front = 1;
    args.p_index = index_of(check, "p_tensor", runs_of(sizes, varies), &front);
    check.that(front == 1, "`p_tensor` that varies from the first run of dimensions on", "another");
  }
  args.scaled = scaled;
  if (args.numel > 0 && copies > 0) backend::dropout(args, OnDevice(x));
}

// x and y share layout, and may be one tensor.
void drop_shared(const Checks& check, const Dropout& o, const Dense& in, const Tensor& y,
                 const Tensor& seed, bool scaled) {
  const Tensor& x = in.tensor;
  if (x.numel() == 0) return;
  const OnDevice context(x);
  std::vector<int64_t> sizes;
  std::vector<bool> kept;
  for (int64_t i = 0; i < x.dim(); ++i) {
    const int64_t d = !in.channels_last || i == 0 ? i : i == x.dim() - 1 ? 1 : i + 1;
    sizes.push_back(x.size(d));
    kept.push_back(o.kept[static_cast<size_t>(d)]);
  }
  MaskApplyArgs args{};
  int64_t front = 1;
  args.index = index_of(check, "shared", runs_of(sizes, kept), &front);
  int64_t count = 1;
  for (int64_t n : o.mask_sizes) count *= n;
  if (o.has_each) {
    check.that(o.each.numel() == count, "`p_tensor` of the mask's sizes", sizes_name(o.each));
    check.that(!scaled || (args.index.repeat == 1 && front == 1),
               "no dimension of `shared` before others that have a probability each, with `scaled`",
               "one");
  }
  Tensor bits = new_tensor(x, {bit_words(count)}, ScalarType::Int);
  Tensor scale = new_tensor(x, {o.has_each && scaled ? count : 1}, ScalarType::Double);
  Tensor unused = new_tensor(x, {o.has_each && !scaled ? count : 0}, ScalarType::Double);
  DropoutBitsArgs draw{};
  draw.numel = count;
  draw.seed = const_data<int64_t>(seed);
  draw.p = o.p;
  draw.p_at = o.p_at;
  draw.p_each = o.has_each ? const_data<float>(o.each) : nullptr;
  draw.scaled = scaled;
  draw.bits = mutable_data<uint32_t>(bits);
  draw.scale = mutable_data<double>(o.has_each && !scaled ? unused : scale);
  backend::dropout_bits(draw, context);
  if (o.has_each && !scaled) scale = torch::stable::fill_(scale, 1.0);
  args.dtype = check.floating(x, "x");
  args.numel = x.numel() / front;
  args.mask = const_data<uint32_t>(bits);
  args.mask_words = bits.numel();
  args.scale = const_data<double>(scale);
  args.per_scale = args.numel / scale.numel();
  args.channels = 1;
  args.plane = 1;
  for (int64_t i = 0; i < front; ++i) {
    const int64_t at = i * args.numel * x.element_size();
    args.x = static_cast<const char*>(x.const_data_ptr()) + at;
    args.y = static_cast<char*>(y.mutable_data_ptr()) + at;
    backend::mask_apply(args, context);
  }
}

// Whether the mask's dimensions stand in memory as they do in the tensor, and every run of elements
// has one factor.
bool in_order(const Dropout& o, const Dense& in, bool scaled) {
  if (!in.channels_last) return true;
  if (o.has_each && scaled) return false;
  const bool channels = o.mask_sizes[1] > 1;
  bool others = false;
  for (size_t d = 2; d < o.mask_sizes.size(); ++d) others = others || o.mask_sizes[d] > 1;
  return !(channels && others);
}

Tensor dropout(const Tensor& x, const Tensor& seed, double p, std::vector<int64_t> shared,
               bool scaled, MaybeTensor p_tensor, int64_t copies, bool sums) {
  const Checks check("dropout");
  check.floating(x, "x");
  check.seed(seed, x);
  check.that(copies >= 0, "`copies` to be at least 0", std::to_string(copies));
  std::vector<int64_t> sizes = sizes_of(x);
  if (sums) {
    check.that(copies > 0 && !sizes.empty() && sizes[0] == copies,
               "`x` with `copies` in front to sum", sizes_name(x));
    sizes.erase(sizes.begin());
  }
  const Dropout o = options(check, sizes, p, shared, p_tensor, x);
  check.that(o.elementwise || copies == 0, "`copies` without `shared`", "both");
  if (!o.elementwise) {
    Dense in = dense(x);
    if (!in_order(o, in, scaled)) in = {torch::stable::contiguous(x), false};
    Tensor y = torch::stable::empty_like(in.tensor);
    drop_shared(check, o, in, y, seed, scaled);
    return laid_out(y, x);
  }
  const Tensor in = torch::stable::contiguous(x);
  std::vector<int64_t> out = sizes;
  if (copies > 0 && !sums) out.insert(out.begin(), copies);
  Tensor y = new_tensor(x, out, x.scalar_type());
  drop_elements(check, o, in, y, sizes, seed, scaled, copies > 0 ? copies : 1, sums);
  return copies > 0 ? y : laid_out(y, x);
}

void dropout_(const Tensor& x, const Tensor& seed, double p, std::vector<int64_t> shared,
              bool scaled, MaybeTensor p_tensor) {
  const Checks check("dropout_");
  check.floating(x, "x");
  check.seed(seed, x);
  const Dropout o = options(check, sizes_of(x), p, shared, p_tensor, x);
  Dense in = o.elementwise ? Dense{torch::stable::contiguous(x), false} : dense(x);
  if (!o.elementwise && !in_order(o, in, scaled)) in = {torch::stable::contiguous(x), false};
  if (o.elementwise)
    drop_elements(check, o, in.tensor, in.tensor, sizes_of(x), seed, scaled, 1, false);
  else
    drop_shared(check, o, in, in.tensor, seed, scaled);
  if (in.tensor.const_data_ptr() != x.const_data_ptr()) {
    Tensor target = x;
    torch::stable::copy_(target, in.tensor);
  }
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "dropout(Tensor x, Tensor seed, float p, int[] shared, bool scaled=True, "
      "Tensor? p_tensor=None, int copies=0, bool sums=False) -> Tensor");
  m.def(
      "dropout_(Tensor(a!) x, Tensor seed, float p, int[] shared, bool scaled=True, "
      "Tensor? p_tensor=None) -> ()");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("dropout", TORCH_BOX(&dropout));
  m.impl("dropout_", TORCH_BOX(&dropout_));
}

}  // namespace regkern::masks
