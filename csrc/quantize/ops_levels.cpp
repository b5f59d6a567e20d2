#include "core/op.h"
#include "quantize/bitwise.h"
#include "quantize/faults.h"
#include "quantize/level_penalty.h"
#include "quantize/levels.h"

namespace regkern::quantize {
namespace {

ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Dtype compute_dtype(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? Dtype::float64 : Dtype::float32;
}

// Empty, like a dense tensor in shape and layout.
Tensor empty_as(const Dense& d, ScalarType dtype) {
  using torch::headeronly::MemoryFormat;
  const Tensor& t = d.tensor;
  const MemoryFormat format = !d.channels_last ? MemoryFormat::Contiguous
                              : t.dim() == 4   ? MemoryFormat::ChannelsLast
                                               : MemoryFormat::ChannelsLast3d;
  return torch::stable::empty(t.sizes(), dtype, std::nullopt, t.device(), std::nullopt, format);
}

int64_t axis(const Checks& check, const Tensor& t, int64_t dim) {
  check.that(-t.dim() <= dim && dim < t.dim(),
             "`dim` from " + std::to_string(-t.dim()) + " to " + std::to_string(t.dim() - 1),
             std::to_string(dim));
  return dim < 0 ? dim + t.dim() : dim;
}

Segments one_group(int64_t numel) { return {1, 1, numel}; }

// The groups of axis `dim`, in memory order.
Segments groups_of(const Dense& d, int64_t dim) {
  const Tensor& t = d.tensor;
  Segments s{1, t.size(dim), 1};
  bool before = true;
  for (int64_t i = 0; i < t.dim(); ++i) {
    // Channels last: batch, space, channels.
    const int64_t a = !d.channels_last || i == 0 ? i : i == t.dim() - 1 ? 1 : i + 1;
    if (a == dim) {
      before = false;
      continue;
    }
    (before ? s.outer : s.inner) *= t.size(a);
  }
  return s;
}

void compute_like(const Checks& check, const Tensor& t, const char* name, const Tensor& like) {
  check.same_device(t, name, like);
  check.dtype(t, name, compute_type(like),
              like.scalar_type() == ScalarType::Double ? "float64" : "float32");
}

void same_shape(const Checks& check, const Tensor& t, const char* name, const Tensor& like) {
  check.same_device(t, name, like);
  bool ok = t.dim() == like.dim();
  for (int64_t i = 0; ok && i < t.dim(); ++i) ok = t.size(i) == like.size(i);
  check.that(ok, std::string("`") + name + "` of shape " + sizes_name(like), sizes_name(t));
}

void level_count(const Checks& check, int64_t levels) {
  check.that(1 <= levels && levels <= kMostLevels,
             "from 1 to " + std::to_string(kMostLevels) + " levels", std::to_string(levels));
}

// Levels (L), or (C, L) with C the size of axis `dim`.
Segments level_groups(const Checks& check, const Dense& x, const Tensor& levels, const char* name,
                      int64_t dim) {
  compute_like(check, levels, name, x.tensor);
  check.that(levels.dim() == 1 || levels.dim() == 2,
             std::string("`") + name + "` of shape (L) or (C, L)", sizes_name(levels));
  level_count(check, levels.size(levels.dim() - 1));
  if (levels.dim() == 1) return one_group(x.tensor.numel());
  const int64_t a = axis(check, x.tensor, dim);
  check.shape(levels, name, {x.tensor.size(a), levels.size(1)});
  return groups_of(x, a);
}

Allowed allowed_masks(const Checks& check, const MaybeTensor& allowed, const Dense& x,
                      int64_t levels, Tensor* keep) {
  if (!allowed.has_value()) return {nullptr, false};
  same_shape(check, *allowed, "allowed", x.tensor);
  const bool wide = allowed->scalar_type() == ScalarType::Long;
  check.that(wide || allowed->scalar_type() == ScalarType::Int, "`allowed` of dtype int32 or int64",
             "another");
  check.that(levels <= (wide ? 64 : 32),
             wide ? "at most 64 levels with `allowed`" : "at most 32 levels with int32 `allowed`",
             std::to_string(levels));
  *keep = dense_like(*allowed, x);
  return {keep->const_data_ptr(), wide};
}

ScalarType code_type(int64_t levels) { return levels <= 256 ? ScalarType::Byte : ScalarType::Int; }

Codes codes_of(const Tensor& code) {
  return {const_cast<void*>(code.const_data_ptr()), code.scalar_type() == ScalarType::Int};
}

Tensor dense_codes(const Checks& check, const Tensor& code, const char* name, const Dense& x,
                   int64_t levels) {
  same_shape(check, code, name, x.tensor);
  check.dtype(code, name, code_type(levels), levels <= 256 ? "uint8" : "int32");
  return dense_like(code, x);
}

// Sums over groups, with the scratch that they take.
struct Sums {
  SumsArgs args{};
  Tensor lanes, spans, out, total[2];
};

Sums sums_of(const Tensor& like, const Segments& s, int64_t bins, std::vector<int64_t> out,
             double factor, int totals, double total_factor) {
  Sums sums;
  SumsArgs& a = sums.args;
  a.dtype = compute_dtype(like);
  a.bins = static_cast<int>(bins);
  a.outputs = static_cast<int>(out.empty() ? 0 : out.back());
  const int64_t pieces = s.groups * piece_count(s, a.bins);
  sums.lanes =
      new_tensor(like, {kValuesReadable ? 0 : pieces * kSumLanes * bins}, ScalarType::Double);
  sums.spans = new_tensor(like, {s.groups * span_count(s, a.bins) * bins}, ScalarType::Double);
  a.lanes = mutable_data<double>(sums.lanes);
  a.spans = mutable_data<double>(sums.spans);
  if (!out.empty()) {
    sums.out = new_tensor(like, out, compute_type(like));
    a.out = sums.out.mutable_data_ptr();
  }
  a.factor = factor;
  for (int i = 0; i < totals; ++i) {
    sums.total[i] = new_tensor(like, {}, compute_type(like));
    a.total[i] = sums.total[i].mutable_data_ptr();
  }
  a.total_factor = total_factor;
  return sums;
}

// The mean of nothing is 0.
double share(bool mean, int64_t numel) {
  return mean && numel > 0 ? 1.0 / static_cast<double>(numel) : 1.0;
}

Tensor no_elements(const Tensor& like, ScalarType dtype) { return new_tensor(like, {0}, dtype); }

// ---- nearest_level, latent_quantize ----

struct NearestCall {
  Tensor y, code, bounds, values, allowed, refused;
  Sums sums;
};

NearestCall run_nearest(const Checks& check, const Dense& x, const Tensor& levels, const char* name,
                        const MaybeTensor& allowed, const Segments& s, bool with_loss, bool mean) {
  NearestCall call;
  const int64_t count = levels.size(levels.dim() - 1);
  NearestLevelArgs a{};
  a.dtype = check.floating(x.tensor, name);
  a.allowed = allowed_masks(check, allowed, x, count, &call.allowed);
  a.segments = s;
  a.levels = static_cast<int>(count);
  call.y = torch::stable::empty_like(x.tensor);
  call.code = empty_as(x, code_type(count));
  call.bounds = new_tensor(x.tensor, {s.groups, 2}, compute_type(x.tensor));
  call.values = torch::stable::contiguous(levels);
  call.refused =
      new_tensor(x.tensor, {kValuesReadable && allowed.has_value() ? 1 : 0}, ScalarType::Int);
  if (kValuesReadable && allowed.has_value()) {
    torch::stable::zero_(call.refused);
    a.refused = mutable_data<int32_t>(call.refused);
  }
  if (with_loss) call.sums = sums_of(x.tensor, s, 1, {}, 0.0, 2, share(mean, x.tensor.numel()));
  a.x = x.tensor.const_data_ptr();
  a.values = call.values.const_data_ptr();
  a.bounds = call.bounds.mutable_data_ptr();
  a.y = call.y.mutable_data_ptr();
  a.codes = codes_of(call.code);
  a.sums = call.sums.args;
  if (x.tensor.numel() > 0 || with_loss) backend::nearest_level(a, OnDevice(x.tensor));
  if (a.refused != nullptr)
    check.that(*a.refused == 0, "every mask in `allowed` to allow a level", "one without");
  return call;
}

// `clip` is for the gradient alone.
std::tuple<Tensor, Tensor> nearest_level(const Tensor& x, const Tensor& levels, MaybeTensor allowed,
                                         int64_t dim, bool) {
  const Checks check("nearest_level");
  check.floating(x, "x");
  const Dense in = dense(x);
  const Segments s = level_groups(check, in, levels, "levels", dim);
  const NearestCall call = run_nearest(check, in, levels, "x", allowed, s, false, false);
  return {call.y, call.code};
}

Segments codebook_groups(const Checks& check, const Dense& z, const Tensor& codebook, int64_t dim) {
  check.that(codebook.dim() == 2, "`codebook` of shape (D, n)", sizes_name(codebook));
  return level_groups(check, z, codebook, "codebook", dim);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> latent_quantize(const Tensor& z, const Tensor& codebook,
                                                           int64_t dim, bool mean) {
  const Checks check("latent_quantize");
  check.floating(z, "z");
  const Dense in = dense(z);
  const Segments s = codebook_groups(check, in, codebook, dim);
  const NearestCall call = run_nearest(check, in, codebook, "z", std::nullopt, s, true, mean);
  return {call.y, call.code, call.sums.total[0], call.sums.total[1]};
}

void run_gradient(LevelGradientArgs& a, const Sums& sums, const Tensor& like) {
  a.sums = sums.args;
  if (like.numel() > 0 || a.with_sums) backend::level_gradient(a, OnDevice(like));
}

std::tuple<Tensor, Tensor> latent_quantize_backward(const Tensor& g, const Tensor& g_quantization,
                                                    const Tensor& g_commitment, const Tensor& z,
                                                    const Tensor& codebook, const Tensor& indices,
                                                    int64_t dim, bool mean, bool codebook_grad) {
  const Checks check("latent_quantize_backward");
  const Dense in = dense(z);
  LevelGradientArgs a{};
  a.dtype = check.floating(z, "z");
  a.kind = LevelGradient::latent;
  a.segments = codebook_groups(check, in, codebook, dim);
  a.levels = static_cast<int>(codebook.size(1));
  same_shape(check, g, "g", z);
  check.that(g.scalar_type() == z.scalar_type(), "`g` of the dtype of `z`", "another");
  for (const Tensor* t : {&g_quantization, &g_commitment}) {
    compute_like(check, *t, "g_quantization and g_commitment", z);
    check.that(t->numel() == 1, "`g_quantization` and `g_commitment` of one element",
               sizes_name(*t));
  }
  const Tensor grad = dense_like(g, in), values = torch::stable::contiguous(codebook);
  const Tensor code = dense_codes(check, indices, "indices", in, a.levels);
  Tensor dz = torch::stable::empty_like(in.tensor);
  a.mean = 2.0 * share(mean, z.numel());
  a.with_sums = codebook_grad;
  Sums sums;
  Tensor dcodebook = codebook_grad ? Tensor() : no_elements(z, compute_type(z));
  if (codebook_grad) {
    sums = sums_of(z, a.segments, a.levels, {a.segments.groups, a.levels}, a.mean, 0, 0.0);
    sums.args.factor_tensor = g_quantization.const_data_ptr();
    dcodebook = sums.out;
  }
  a.g = grad.const_data_ptr();
  a.x = in.tensor.const_data_ptr();
  a.values = values.const_data_ptr();
  a.codes = codes_of(code);
  a.dx = dz.mutable_data_ptr();
  a.commitment = g_commitment.const_data_ptr();
  run_gradient(a, sums, z);
  return {dz, dcodebook};
}

// Σ_{code = j} g: (L), or (C, L) over axis `dim`.
Tensor level_sum(const Tensor& g, const Tensor& code, int64_t levels, bool per_channel,
                 int64_t dim) {
  const Checks check("level_sum");
  const Dense in = dense(g);
  LevelGradientArgs a{};
  a.dtype = check.floating(g, "g");
  level_count(check, levels);
  a.kind = LevelGradient::sum;
  a.levels = static_cast<int>(levels);
  a.segments = per_channel ? groups_of(in, axis(check, g, dim)) : one_group(g.numel());
  const Tensor codes = dense_codes(check, code, "code", in, levels);
  a.with_sums = true;
  const Sums sums = sums_of(
      g, a.segments, levels,
      per_channel ? std::vector<int64_t>{a.segments.groups, levels} : std::vector<int64_t>{levels},
      1.0, 0, 0.0);
  a.g = in.tensor.const_data_ptr();
  a.codes = codes_of(codes);
  run_gradient(a, sums, g);
  return sums.out;
}

std::tuple<Tensor, Tensor> nearest_level_backward(const Tensor& g, const Tensor& x,
                                                  const Tensor& levels, const Tensor& code,
                                                  int64_t dim, bool levels_grad) {
  const Checks check("nearest_level_backward");
  const Dense in = dense(x);
  LevelGradientArgs a{};
  a.dtype = check.floating(x, "x");
  a.kind = LevelGradient::clip;
  a.segments = level_groups(check, in, levels, "levels", dim);
  a.levels = static_cast<int>(levels.size(levels.dim() - 1));
  same_shape(check, g, "g", x);
  check.that(g.scalar_type() == x.scalar_type(), "`g` of the dtype of `x`", "another");
  const Tensor grad = dense_like(g, in), values = torch::stable::contiguous(levels);
  const Tensor codes = dense_codes(check, code, "code", in, a.levels);
  Tensor dx = torch::stable::empty_like(in.tensor);
  Tensor bounds = new_tensor(x, {a.segments.groups, 2}, compute_type(x));
  a.with_sums = levels_grad;
  Sums sums;
  Tensor dlevels = levels_grad ? Tensor() : no_elements(x, compute_type(x));
  if (levels_grad) {
    std::vector<int64_t> shape{a.levels};
    if (levels.dim() == 2) shape.insert(shape.begin(), a.segments.groups);
    sums = sums_of(x, a.segments, a.levels, shape, 1.0, 0, 0.0);
    dlevels = sums.out;
  }
  a.g = grad.const_data_ptr();
  a.x = in.tensor.const_data_ptr();
  a.values = values.const_data_ptr();
  a.bounds = bounds.mutable_data_ptr();
  a.codes = codes_of(codes);
  a.dx = dx.mutable_data_ptr();
  run_gradient(a, sums, x);
  return {dx, dlevels};
}

// ---- level_penalty ----

// The arguments that level_penalty and level_codes share, and what they point to.
struct PenaltyCall {
  LevelPenaltyArgs args{};
  Dense w;
  Tensor row_major, values, allowed, bounds, refused;
  Tensor stuck[2];
};

PenaltyCall penalty_call(const Checks& check, const Tensor& w, const Tensor& values, bool uniform,
                         int64_t quant_min, int64_t quant_max, const MaybeTensor& sa0,
                         const MaybeTensor& sa1, const MaybeTensor& allowed,
                         const MaybeTensor& seed, double variability) {
  PenaltyCall call;
  LevelPenaltyArgs& a = call.args;
  a.dtype = check.floating(w, "w");
  a.uniform = uniform;
  a.numel = w.numel();
  call.w = dense(w);
  // Sums and random numbers go by logical element.
  call.row_major = torch::stable::contiguous(w);
  const Dense rows{call.row_major, false};
  compute_like(check, values, uniform ? "step" : "levels", w);
  call.values = torch::stable::contiguous(values);
  a.levels = 1;
  if (uniform) {
    check.that(values.numel() == 1, "`step` of one element", sizes_name(values));
    constexpr int64_t kMost = int64_t{1} << 20;
    check.that(-kMost <= quant_min && quant_min <= quant_max && quant_max <= kMost,
               "-2^20 <= `quant_min` <= `quant_max` <= 2^20",
               std::to_string(quant_min) + " and " + std::to_string(quant_max));
    check.that(!allowed.has_value(), "no `allowed` with `step`", "one");
    a.range = {static_cast<int>(quant_min), static_cast<int>(quant_max)};
  } else {
    check.that(values.dim() == 1, "`levels` of shape (L)", sizes_name(values));
    level_count(check, values.numel());
    check.that(!sa0.has_value() && !sa1.has_value(), "no `sa0` and `sa1` with `levels`", "one");
    a.levels = static_cast<int>(values.numel());
  }
  a.allowed = allowed_masks(check, allowed, rows, a.levels, &call.allowed);
  const MaybeTensor* masks[] = {&sa0, &sa1};
  const uint8_t** pointers[] = {&a.sa0, &a.sa1};
  for (int i = 0; i < 2; ++i) {
    if (!masks[i]->has_value()) continue;
    const Tensor& mask = **masks[i];
    const char* name = i == 0 ? "sa0" : "sa1";
    const int64_t count = quant_max - quant_min + 1;
    check.that(count >= 2 && count <= 256 && (count & (count - 1)) == 0 &&
                   (quant_min == 0 || quant_min == -count / 2),
               "all codes of at most 8 bits, signed or unsigned, with `sa0` and `sa1`",
               std::to_string(quant_min) + " to " + std::to_string(quant_max));
    same_shape(check, mask, name, w);
    check.dtype(mask, name, ScalarType::Byte, "uint8");
    call.stuck[i] = torch::stable::contiguous(mask);
    *pointers[i] = const_data<uint8_t>(call.stuck[i]);
  }
  a.variability = variability;
  check.that(variability >= 0.0, "`variability` to be at least 0", std::to_string(variability));
  if (variability != 0.0) {
    check.that(seed.has_value(), "`seed` with `variability`", "none");
    check.seed(*seed, w);
    a.seed = const_data<int64_t>(*seed);
  }
  call.bounds = new_tensor(w, {2}, compute_type(w));
  call.refused = new_tensor(w, {kValuesReadable && allowed.has_value() ? 1 : 0}, ScalarType::Int);
  if (kValuesReadable && allowed.has_value()) {
    torch::stable::zero_(call.refused);
    a.refused = mutable_data<int32_t>(call.refused);
  }
  a.w = call.row_major.const_data_ptr();
  a.values = call.values.const_data_ptr();
  a.bounds = call.bounds.mutable_data_ptr();
  return call;
}

void run_penalty(const Checks& check, const PenaltyCall& call) {
  backend::level_penalty(call.args, OnDevice(call.w.tensor));
  if (call.args.refused != nullptr)
    check.that(*call.args.refused == 0, "every mask in `allowed` to allow a level", "one without");
}

std::tuple<Tensor, Tensor, Tensor> level_penalty(const Tensor& w, const Tensor& values,
                                                 bool uniform, int64_t quant_min, int64_t quant_max,
                                                 MaybeTensor sa0, MaybeTensor sa1,
                                                 MaybeTensor allowed, MaybeTensor seed,
                                                 double variability, bool mean, bool gradients) {
  const Checks check("level_penalty");
  PenaltyCall call = penalty_call(check, w, values, uniform, quant_min, quant_max, sa0, sa1,
                                  allowed, seed, variability);
  LevelPenaltyArgs& a = call.args;
  a.mean = share(mean, w.numel());
  const int64_t outputs = gradients ? a.levels : 0;
  std::vector<int64_t> shape;
  if (gradients) shape.push_back(outputs);
  const Sums sums = sums_of(w, one_group(w.numel()), outputs + 1, shape, -2.0 * a.mean, 1, a.mean);
  a.sums = sums.args;
  Tensor dw = no_elements(w, w.scalar_type()), dvalues = no_elements(w, compute_type(w));
  if (gradients) {
    dw = torch::stable::empty_like(call.row_major);
    a.dw = dw.mutable_data_ptr();
    dvalues = torch::stable::reshape(sums.out, values.sizes());
  }
  run_penalty(check, call);
  return {sums.total[0], gradients ? dense_like(dw, call.w) : dw, dvalues};
}

std::tuple<Tensor, Tensor> level_codes(const Tensor& w, const Tensor& values, bool uniform,
                                       int64_t quant_min, int64_t quant_max, MaybeTensor sa0,
                                       MaybeTensor sa1, MaybeTensor allowed, MaybeTensor seed,
                                       double variability) {
  const Checks check("level_codes");
  PenaltyCall call = penalty_call(check, w, values, uniform, quant_min, quant_max, sa0, sa1,
                                  allowed, seed, variability);
  Tensor code = empty_as({call.row_major, false}, ScalarType::Int);
  Tensor factor = empty_as({call.row_major, false}, compute_type(w));
  call.args.code = mutable_data<int32_t>(code);
  call.args.factor = factor.mutable_data_ptr();
  if (w.numel() > 0) run_penalty(check, call);
  return {dense_like(code, call.w), dense_like(factor, call.w)};
}

// ---- stuck bits ----

bool is_integer(ScalarType t) {
  return t == ScalarType::Byte || t == ScalarType::Char || t == ScalarType::Short ||
         t == ScalarType::Int || t == ScalarType::Long;
}

int itemsize_of(ScalarType t) {
  return t == ScalarType::Byte || t == ScalarType::Char ? 1
         : t == ScalarType::Short                       ? 2
         : t == ScalarType::Int                         ? 4
                                                        : 8;
}

void check_integer(const Checks& check, ScalarType t, const char* name) {
  check.that(is_integer(t),
             std::string("`") + name + "` of dtype uint8, int8, int16, int32 or int64", "another");
}

Tensor stuck_at(const Tensor& code, const Tensor& sa0, const Tensor& sa1) {
  const Checks check("stuck_at");
  check_integer(check, code.scalar_type(), "code");
  const Dense in = dense(code);
  Tensor masks[2];
  const Tensor* given[] = {&sa0, &sa1};
  for (int i = 0; i < 2; ++i) {
    same_shape(check, *given[i], i == 0 ? "sa0" : "sa1", code);
    check.that(given[i]->scalar_type() == code.scalar_type(),
               "`sa0` and `sa1` of the dtype of `code`", "another");
    masks[i] = dense_like(*given[i], in);
  }
  Tensor out = torch::stable::empty_like(in.tensor);
  if (code.numel() > 0)
    backend::stuck_at(
        StuckAtArgs{code.numel() * itemsize_of(code.scalar_type()), in.tensor.const_data_ptr(),
                    masks[0].const_data_ptr(), masks[1].const_data_ptr(), out.mutable_data_ptr()},
        OnDevice(code));
  return out;
}

void check_rate(const Checks& check, double rate, double p_sa1) {
  check.that(rate >= 0.0 && rate <= 1.0, "`rate` in [0, 1]", std::to_string(rate));
  check.that(p_sa1 >= 0.0 && p_sa1 <= 1.0, "`p_sa1` in [0, 1]", std::to_string(p_sa1));
}

std::tuple<Tensor, Tensor> stuck_at_masks(const Tensor& seed, std::vector<int64_t> shape,
                                          int64_t bits, double rate, double p_sa1,
                                          ScalarType dtype) {
  const Checks check("stuck_at_masks");
  check.seed(seed, seed);
  check_integer(check, dtype, "dtype");
  const int itemsize = itemsize_of(dtype);
  check.that(1 <= bits && bits <= 8 * itemsize, "`bits` from 1 to " + std::to_string(8 * itemsize),
             std::to_string(bits));
  check_rate(check, rate, p_sa1);
  for (int64_t size : shape)
    check.that(size >= 0, "every size in `shape` to be at least 0", std::to_string(size));
  Tensor sa0 = new_tensor(seed, shape, dtype), sa1 = new_tensor(seed, shape, dtype);
  if (sa0.numel() > 0)
    backend::stuck_at_masks(
        StuckAtMasksArgs{sa0.numel(), itemsize, static_cast<int>(bits), fault_rate(rate, p_sa1),
                         const_data<int64_t>(seed), sa0.mutable_data_ptr(), sa1.mutable_data_ptr()},
        OnDevice(seed));
  return {sa0, sa1};
}

Tensor inject_faults(const Tensor& w, const Tensor& scale, const Tensor& zero_point, int64_t bits,
                     MaybeTensor sa0, MaybeTensor sa1, MaybeTensor seed, double rate, double p_sa1,
                     int64_t dim) {
  const Checks check("inject_faults");
  InjectFaultsArgs a{};
  a.dtype = check.floating(w, "w");
  check.that(2 <= bits && bits <= 16, "`bits` from 2 to 16", std::to_string(bits));
  a.bits = static_cast<int>(bits);
  check_rate(check, rate, p_sa1);
  const Dense in = dense(w);
  // Draws are numbered by logical element.
  const Dense work = seed.has_value() ? Dense{torch::stable::contiguous(w), false} : in;
  compute_like(check, scale, "scale", w);
  compute_like(check, zero_point, "zero_point", w);
  check.that(scale.numel() == zero_point.numel(), "`zero_point` as large as `scale`",
             sizes_name(zero_point));
  a.channels = 1;
  a.inner = w.numel();
  if (scale.numel() != 1) {
    const int64_t d = axis(check, w, dim);
    check.shape(scale, "scale", {w.size(d)});
    const Segments s = groups_of(work, d);
    a.channels = s.groups;
    a.inner = s.inner;
  }
  const Tensor scales = torch::stable::contiguous(scale);
  const Tensor zeros = torch::stable::contiguous(zero_point);
  Tensor masks[2];
  if (seed.has_value()) {
    check.that(!sa0.has_value() && !sa1.has_value(), "`seed`, or `sa0` and `sa1`", "both");
    check.seed(*seed, w);
    a.seed = const_data<int64_t>(*seed);
    a.rate = fault_rate(rate, p_sa1);
  }
  const MaybeTensor* given[] = {&sa0, &sa1};
  const void** pointers[] = {&a.sa0, &a.sa1};
  a.masks_wide = bits > 8;
  for (int i = 0; i < 2; ++i) {
    if (!given[i]->has_value()) continue;
    const char* name = i == 0 ? "sa0" : "sa1";
    same_shape(check, **given[i], name, w);
    check.dtype(**given[i], name, bits > 8 ? ScalarType::Int : ScalarType::Byte,
                bits > 8 ? "int32" : "uint8");
    masks[i] = dense_like(**given[i], work);
    *pointers[i] = masks[i].const_data_ptr();
  }
  Tensor y = torch::stable::empty_like(work.tensor);
  a.numel = w.numel();
  a.w = work.tensor.const_data_ptr();
  a.scale = scales.const_data_ptr();
  a.zero_point = zeros.const_data_ptr();
  a.y = y.mutable_data_ptr();
  if (w.numel() > 0) backend::inject_faults(a, OnDevice(w));
  return seed.has_value() ? dense_like(y, in) : y;
}

// ---- trained bits ----

std::vector<int64_t> plane_shape(const Tensor& bits) {
  std::vector<int64_t> shape;
  for (int64_t i = 1; i < bits.dim(); ++i) shape.push_back(bits.size(i));
  return shape;
}

// Checks the planes and the sign. The tensors live in `keep`.
BitwiseArgs bitwise_args(const Checks& check, const Tensor& bits, const MaybeTensor& sign,
                         Tensor keep[2]) {
  BitwiseArgs a{};
  a.dtype = check.floating(bits, "bits");
  check.that(bits.dim() >= 1, "`bits` of shape (b, ...)", sizes_name(bits));
  check.that(1 <= bits.size(0) && bits.size(0) <= kMostBits,
             "from 1 to " + std::to_string(kMostBits) + " planes in `bits`",
             std::to_string(bits.size(0)));
  a.bits = static_cast<int>(bits.size(0));
  a.numel = bits.numel() / bits.size(0);
  keep[0] = torch::stable::contiguous(bits);
  a.planes = keep[0].const_data_ptr();
  if (!sign.has_value()) return a;
  check.same_device(*sign, "sign", bits);
  check.that(sign->scalar_type() == bits.scalar_type(), "`sign` of the dtype of `bits`", "another");
  bool ok = sign->dim() == bits.dim() - 1;
  for (int64_t i = 0; ok && i < sign->dim(); ++i) ok = sign->size(i) == bits.size(i + 1);
  check.that(ok, "`sign` of the shape of a plane of `bits`, " + sizes_name(bits),
             sizes_name(*sign));
  keep[1] = torch::stable::contiguous(*sign);
  a.sign = keep[1].const_data_ptr();
  return a;
}

void check_scale(const Checks& check, const Tensor& scale, const Tensor& bits) {
  compute_like(check, scale, "scale", bits);
  check.that(scale.numel() == 1, "`scale` of one element", sizes_name(scale));
}

Tensor bitwise_weights(const Tensor& bits, MaybeTensor sign, const Tensor& scale, int64_t) {
  const Checks check("bitwise_weights");
  Tensor keep[2];
  BitwiseArgs a = bitwise_args(check, bits, sign, keep);
  check_scale(check, scale, bits);
  Tensor w = new_tensor(bits, plane_shape(bits), bits.scalar_type());
  a.scale = scale.const_data_ptr();
  a.w = w.mutable_data_ptr();
  if (a.numel > 0) backend::bitwise_weights(a, OnDevice(bits));
  return w;
}

std::tuple<Tensor, Tensor, Tensor> bitwise_weights_backward(const Tensor& g, const Tensor& bits,
                                                            MaybeTensor sign, const Tensor& scale,
                                                            int64_t trainable) {
  const Checks check("bitwise_weights_backward");
  Tensor keep[2];
  BitwiseGradientArgs a{};
  a.forward = bitwise_args(check, bits, sign, keep);
  check_scale(check, scale, bits);
  check.same_device(g, "g", bits);
  check.that(g.scalar_type() == bits.scalar_type() && g.numel() == a.forward.numel,
             "`g` like a plane of `bits`", sizes_name(g));
  const Tensor grad = torch::stable::contiguous(g);
  Tensor dbits = torch::stable::empty_like(keep[0]);
  Tensor dsign =
      sign.has_value() ? torch::stable::empty_like(keep[1]) : no_elements(bits, bits.scalar_type());
  const Sums sums = sums_of(bits, one_group(a.forward.numel), 1, {1}, 1.0, 0, 0.0);
  a.forward.scale = scale.const_data_ptr();
  a.g = grad.const_data_ptr();
  a.trainable = static_cast<uint32_t>(trainable);
  a.dplanes = dbits.mutable_data_ptr();
  a.dsign = sign.has_value() ? dsign.mutable_data_ptr() : nullptr;
  a.sums = sums.args;
  backend::bitwise_gradient(a, OnDevice(bits));
  return {dbits, dsign, torch::stable::reshape(sums.out, scale.sizes())};
}

ScalarType packed_type(int64_t bits) {
  return bits < 8 ? ScalarType::Char : bits < 16 ? ScalarType::Short : ScalarType::Int;
}

Tensor pack_bits(const Tensor& bits, MaybeTensor sign) {
  const Checks check("pack_bits");
  Tensor keep[2];
  BitwiseArgs a = bitwise_args(check, bits, sign, keep);
  Tensor codes = new_tensor(bits, plane_shape(bits), packed_type(a.bits));
  a.w = codes.mutable_data_ptr();
  a.codes = true;
  a.itemsize = itemsize_of(packed_type(a.bits));
  if (a.numel > 0) backend::bitwise_weights(a, OnDevice(bits));
  return codes;
}

std::tuple<Tensor, Tensor> unpack_bits(const Tensor& codes, int64_t bits, bool latent,
                                       ScalarType dtype) {
  const Checks check("unpack_bits");
  check.that(1 <= bits && bits <= kMostBits, "`bits` from 1 to " + std::to_string(kMostBits),
             std::to_string(bits));
  check.that(codes.scalar_type() == packed_type(bits),
             "`codes` of dtype int8 below 8 bits, int16 below 16, else int32", "another");
  const Tensor in = torch::stable::contiguous(codes);
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < codes.dim(); ++i) shape.push_back(codes.size(i));
  Tensor sign = new_tensor(codes, shape, dtype);
  shape.insert(shape.begin(), bits);
  Tensor planes = new_tensor(codes, shape, dtype);
  const UnpackBitsArgs a{check.floating(sign, "dtype"), codes.numel(),
                         static_cast<int>(bits),        itemsize_of(codes.scalar_type()),
                         in.const_data_ptr(),           latent,
                         planes.mutable_data_ptr(),     sign.mutable_data_ptr()};
  if (codes.numel() > 0) backend::unpack_bits(a, OnDevice(codes));
  return {planes, sign};
}

// ---- sign_ste ----

Tensor sign_ste(const Tensor& x, std::string surrogate, double beta) {
  const Checks check("sign_ste");
  const Dtype dtype = check.floating(x, "x");
  check.one_of(surrogate, "surrogate", {"identity", "hardtanh", "tanh"});
  check.that(beta > 0.0, "`beta` above 0", std::to_string(beta));
  const Dense in = dense(x);
  Tensor y = torch::stable::empty_like(in.tensor);
  if (x.numel() > 0)
    backend::sign_ste(SignArgs{dtype, x.numel(), in.tensor.const_data_ptr(), y.mutable_data_ptr()},
                      OnDevice(x));
  return y;
}

Tensor sign_ste_backward(const Tensor& g, const Tensor& x, std::string surrogate, double beta) {
  const Checks check("sign_ste_backward");
  const Dtype dtype = check.floating(x, "x");
  const auto kind =
      static_cast<Surrogate>(check.one_of(surrogate, "surrogate", {"hardtanh", "tanh"}));
  check.that(beta > 0.0, "`beta` above 0", std::to_string(beta));
  same_shape(check, g, "g", x);
  check.that(g.scalar_type() == x.scalar_type(), "`g` of the dtype of `x`", "another");
  const Dense in = dense(x);
  const Tensor grad = dense_like(g, in);
  Tensor dx = torch::stable::empty_like(in.tensor);
  if (x.numel() > 0)
    backend::sign_gradient(SignGradientArgs{dtype, x.numel(), kind, beta, grad.const_data_ptr(),
                                            in.tensor.const_data_ptr(), dx.mutable_data_ptr()},
                           OnDevice(x));
  return dx;
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "nearest_level(Tensor x, Tensor levels, Tensor? allowed=None, int dim=0, bool clip=False) "
      "-> (Tensor y, Tensor code)");
  m.def(
      "nearest_level_backward(Tensor g, Tensor x, Tensor levels, Tensor code, int dim=0, bool "
      "levels_grad=True) -> (Tensor dx, Tensor dlevels)");
  m.def(
      "level_sum(Tensor g, Tensor code, int levels, bool per_channel=False, int dim=0) -> Tensor");
  m.def(
      "latent_quantize(Tensor z, Tensor codebook, int dim=-1, bool mean=True) -> (Tensor zhat, "
      "Tensor indices, Tensor quantization_loss, Tensor commitment_loss)");
  m.def(
      "latent_quantize_backward(Tensor g, Tensor g_quantization, Tensor g_commitment, Tensor z, "
      "Tensor codebook, Tensor indices, int dim=-1, bool mean=True, bool codebook_grad=True) -> "
      "(Tensor dz, Tensor dcodebook)");
#define REGKERN_LEVEL_OPTIONS                                                                  \
  "Tensor w, Tensor values, bool uniform, int quant_min=0, int quant_max=0, Tensor? sa0=None," \
  " Tensor? sa1=None, Tensor? allowed=None, Tensor? seed=None, float variability=0.0"
  m.def("level_penalty(" REGKERN_LEVEL_OPTIONS
        ", bool mean=False, bool gradients=True) -> (Tensor value, Tensor dw, Tensor dvalues)");
  m.def("level_codes(" REGKERN_LEVEL_OPTIONS ") -> (Tensor code, Tensor factor)");
#undef REGKERN_LEVEL_OPTIONS
  m.def("stuck_at(Tensor code, Tensor sa0, Tensor sa1) -> Tensor");
  m.def(
      "stuck_at_masks(Tensor seed, int[] shape, int bits, float rate, float p_sa1, ScalarType "
      "dtype) -> (Tensor sa0, Tensor sa1)");
  m.def(
      "inject_faults(Tensor w, Tensor scale, Tensor zero_point, int bits, Tensor? sa0=None, "
      "Tensor? sa1=None, Tensor? seed=None, float rate=0.0, float p_sa1=0.5, int dim=0) -> Tensor");
  m.def("bitwise_weights(Tensor bits, Tensor? sign, Tensor scale, int trainable=-1) -> Tensor");
  m.def(
      "bitwise_weights_backward(Tensor g, Tensor bits, Tensor? sign, Tensor scale, int "
      "trainable=-1) -> (Tensor dbits, Tensor dsign, Tensor dscale)");
  m.def("pack_bits(Tensor bits, Tensor? sign=None) -> Tensor");
  m.def(
      "unpack_bits(Tensor codes, int bits, bool latent, ScalarType dtype) -> (Tensor bits, Tensor "
      "sign)");
  m.def("sign_ste(Tensor x, str surrogate=\"identity\", float beta=1.0) -> Tensor");
  m.def("sign_ste_backward(Tensor g, Tensor x, str surrogate, float beta=1.0) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("nearest_level", TORCH_BOX(&nearest_level));
  m.impl("nearest_level_backward", TORCH_BOX(&nearest_level_backward));
  m.impl("level_sum", TORCH_BOX(&level_sum));
  m.impl("latent_quantize", TORCH_BOX(&latent_quantize));
  m.impl("latent_quantize_backward", TORCH_BOX(&latent_quantize_backward));
  m.impl("level_penalty", TORCH_BOX(&level_penalty));
  m.impl("level_codes", TORCH_BOX(&level_codes));
  m.impl("stuck_at", TORCH_BOX(&stuck_at));
  m.impl("stuck_at_masks", TORCH_BOX(&stuck_at_masks));
  m.impl("inject_faults", TORCH_BOX(&inject_faults));
  m.impl("bitwise_weights", TORCH_BOX(&bitwise_weights));
  m.impl("bitwise_weights_backward", TORCH_BOX(&bitwise_weights_backward));
  m.impl("pack_bits", TORCH_BOX(&pack_bits));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits));
  m.impl("sign_ste", TORCH_BOX(&sign_ste));
  m.impl("sign_ste_backward", TORCH_BOX(&sign_ste_backward));
}

}  // namespace regkern::quantize
