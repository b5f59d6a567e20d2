#include <cmath>
#include <cstdio>

#include "quantize/copy_stochastic.h"
#include "quantize/gradient.h"
#include "quantize/op.h"
#include "quantize/quantize.h"
#include "quantize/range.h"

namespace regkern::quantize {
namespace {

// ---- formats ----

// "e4m3fn", "e5m2", "e4m3fnuz" (ml_dtypes' names: with infinities, finite, finite without -0) or
// "int:low:high".
Grid parse_format(const Checks& check, const std::string& format) {
  int exponent = 0, mantissa = 0, length = 0;
  long long low = 0, high = 0;
  Grid g{};
  if (std::sscanf(format.c_str(), "int:%lld:%lld%n", &low, &high, &length) == 2 &&
      length == static_cast<int>(format.size())) {
    check.that(low < high && low >= -65536 && high <= 65536,
               "integers low < high within 2^16 of zero in `format`", format);
    g.kind = Kind::integer;
    g.low = static_cast<double>(low);
    g.high = static_cast<double>(high);
    return g;
  }
  const bool read = std::sscanf(format.c_str(), "e%dm%d%n", &exponent, &mantissa, &length) == 2;
  const std::string suffix = read ? format.substr(static_cast<size_t>(length)) : "";
  check.that(
      read && exponent >= 2 && exponent <= 8 && mantissa >= 0 && mantissa <= 22 &&
          (suffix.empty() || ((suffix == "fn" || suffix == "fnuz") && exponent < 8)),
      "`format` eXmY, eXmYfn, eXmYfnuz (X from 2 to 8, or 7 with a suffix; Y from 0 to 22) or "
      "int:low:high",
      format);
  const bool unsigned_zero = suffix == "fnuz", finite = !suffix.empty();
  g.kind = exponent == 8 ? Kind::cut : Kind::floating;
  g.exponent_bits = exponent;
  g.mantissa_bits = mantissa;
  g.bias = (1 << (exponent - 1)) - (unsigned_zero ? 0 : 1);
  g.infinity = !finite;
  // A NaN has a code with infinities, instead of -0, or as the last code of 8 bits and more.
  g.nan = !finite || unsigned_zero || 1 + exponent + mantissa >= 8;
  g.negative_zero = !unsigned_zero;
  const bool last_is_nan = finite && !unsigned_zero && g.nan;
  const int top = (1 << exponent) - 1 - (finite ? 0 : 1) - (last_is_nan && mantissa == 0 ? 1 : 0);
  const double fraction = 2.0 - std::ldexp(last_is_nan && mantissa > 0 ? 2.0 : 1.0, -mantissa);
  g.max = std::ldexp(fraction, top - g.bias);
  return g;
}

Rounder make_rounder(const Checks& check, const std::string& format, const std::string& rounding,
                     const MaybeTensor& seed, int64_t random_bits, bool saturate, const Tensor& x) {
  Rounder r{};
  r.grid = parse_format(check, format);
  r.rounding = static_cast<Rounding>(check.one_of(
      rounding, "rounding",
      {"nearest_even", "nearest_away", "toward_zero", "floor", "stochastic", "noise"}));
  check.that(r.rounding != Rounding::noise || r.grid.kind == Kind::integer,
             "an integer `format` with rounding=\"noise\"", format);
  check.that(random_bits == 8 || random_bits == 16 || random_bits == 23,
             "`random_bits` to be 8, 16 or 23", std::to_string(random_bits));
  r.random_bits = static_cast<int>(random_bits);
  r.saturate = saturate;
  if (is_random(r.rounding)) {
    check.that(seed.has_value(), "`seed` with rounding=\"" + rounding + "\"", "none");
    check.seed(*seed, x);
  }
  return r;
}

Store store_of(const Checks& check, ScalarType dtype, const Grid& g) {
  switch (dtype) {
    case ScalarType::Float:
      return Store::float32;
    case ScalarType::Double:
      return Store::float64;
    case ScalarType::BFloat16:
      return Store::bfloat16;
    case ScalarType::Half:
      return Store::float16;
    case ScalarType::Byte:
      check.that(g.kind == Kind::integer ? g.low >= -128 && g.high <= 255 && g.high - g.low < 256
                                         : 1 + g.exponent_bits + g.mantissa_bits <= 8 && g.nan,
                 "a `format` of 8 bits that has a NaN, or of integers of 8 bits, with codes",
                 "another");
      return Store::code8;
    case ScalarType::Short:
      check.that(g.kind == Kind::integer && g.low >= -32768 && g.high <= 32767,
                 "a `format` of integers of 16 bits with int16 codes", "another");
      return Store::code16;
    default:
      check.that(false, "`dtype` float32, float64, bfloat16, float16, uint8 or int16", "another");
      return Store::float32;
  }
}

// ---- memory ----

bool one_block(const Blocks& b) { return block_count(b) == 1; }

// A dense x in the order that the kernel walks, and the blocks in that order. Draws are numbered in
// row-major order, and most blocks are contiguous only there.
struct Ordered {
  Dense x;
  Blocks blocks;
};

Ordered ordered(const Tensor& x, const Blocks& b, bool random) {
  const Dense in = dense(x);
  if (!in.channels_last) return {in, b};
  if (!random && one_block(b)) return {in, Blocks{1, 1, x.numel(), 1, x.numel(), false}};
  // A scale per channel: the channels are the columns.
  const bool per_channel = b.shared && b.outer == x.size(0) && b.rows == x.size(1) &&
                           b.block_rows == 1 && b.block_cols == b.cols;
  if (!random && per_channel)
    return {in, Blocks{1, b.outer * b.cols, b.rows, b.outer * b.cols, 1, false}};
  return {Dense{torch::stable::contiguous(x), false}, b};
}

// ---- round_to ----

void run_round(const QuantizeArgs& base, const Dense& in, const Tensor& out) {
  QuantizeArgs args = base;
  const int64_t n = in.tensor.numel();
  args.x = in.tensor.const_data_ptr();
  args.y = out.mutable_data_ptr();
  args.numel = n;
  args.blocks = Blocks{1, 1, n, 1, n > 0 ? n : 1, false};
  if (n == 0) return;
  // Into the storage of bfloat16 and float16 the kernel for lists takes fewer steps to the same
  // bits.
  const Rounder& r = args.rounder;
  const bool into_half =
      (args.store == Store::bfloat16 && r.grid.kind == Kind::cut && r.grid.mantissa_bits == 7) ||
      (args.store == Store::float16 && r.grid.infinity && r.grid.exponent_bits == 5 &&
       r.grid.mantissa_bits == 10);
  if (into_half && args.dtype == Dtype::float32 && r.rounding == Rounding::stochastic &&
      r.random_bits == 16 && r.saturate) {
    const CopyRow row{args.y, args.x, n, 0};
    const Dtype to = args.store == Store::bfloat16 ? Dtype::bfloat16 : Dtype::float16;
    return backend::copy_stochastic(CopyStochasticArgs{args.dtype, to, &row, 1, args.seed},
                                    OnDevice(in.tensor));
  }
  backend::quantize(args, OnDevice(in.tensor));
}

QuantizeArgs round_args(const Checks& check, const Tensor& x, const std::string& format,
                        const std::string& rounding, const MaybeTensor& seed, int64_t random_bits,
                        bool saturate, ScalarType store) {
  QuantizeArgs args{};
  args.dtype = check.floating(x, "x");
  args.rounder = make_rounder(check, format, rounding, seed, random_bits, saturate, x);
  args.store = store_of(check, store, args.rounder.grid);
  check.that(
      args.dtype != Dtype::float64 || store == ScalarType::Double || store == ScalarType::Float,
      "`dtype` float64 or float32 for a float64 `x`", "another");
  check.that(args.dtype == Dtype::float64 || store != ScalarType::Double,
             "a float64 `x` with `dtype` float64", "another");
  if (args.rounder.grid.kind == Kind::integer) args.scale.rule = ScaleRule::given;
  args.seed = is_random(args.rounder.rounding) ? const_data<int64_t>(*seed) : nullptr;
  return args;
}

// The integers by themselves have scale 1.
Tensor unit_scale(const Tensor& x, Dtype dtype) {
  return torch::stable::fill_(new_tensor(x, {1}, compute_type(dtype)), 1.0);
}

Tensor round_to(const Tensor& x, std::string format, std::string rounding, MaybeTensor seed,
                int64_t random_bits, bool saturate, std::optional<ScalarType> dtype) {
  const Checks check("round_to");
  const ScalarType store = dtype.has_value() ? *dtype : x.scalar_type();
  QuantizeArgs args = round_args(check, x, format, rounding, seed, random_bits, saturate, store);
  Tensor unit;
  if (args.scale.rule == ScaleRule::given) {
    unit = unit_scale(x, args.dtype);
    args.scale.scale = unit.const_data_ptr();
  }
  Dense in = dense(x);
  if (in.channels_last && (is_random(args.rounder.rounding) || store != x.scalar_type()))
    in = {torch::stable::contiguous(x), false};
  const Tensor out =
      in.channels_last ? torch::stable::empty_like(in.tensor) : new_tensor(x, sizes_of(x), store);
  run_round(args, in, out);
  return in.channels_last ? out : laid_out(out, x);
}

void round_to_out(const Tensor& x, const Tensor& out, std::string format, std::string rounding,
                  MaybeTensor seed, int64_t random_bits, bool saturate) {
  const Checks check("round_to_out");
  check.same_device(out, "out", x);
  check.that(sizes_name(out) == sizes_name(x), "`out` of shape " + sizes_name(x), sizes_name(out));
  QuantizeArgs args =
      round_args(check, x, format, rounding, seed, random_bits, saturate, out.scalar_type());
  Tensor unit;
  if (args.scale.rule == ScaleRule::given) {
    unit = unit_scale(x, args.dtype);
    args.scale.scale = unit.const_data_ptr();
  }
  const bool last =
      is_channels_last(x) && is_channels_last(out) && !is_random(args.rounder.rounding);
  const Dense in = last ? Dense{x, true} : Dense{torch::stable::contiguous(x), false};
  if (last || out.is_contiguous()) return run_round(args, in, out);
  const Tensor result = new_tensor(out, sizes_of(x), out.scalar_type());
  run_round(args, in, result);
  Tensor target = out;
  torch::stable::copy_(target, result);
}

// ---- fake_quantize ----

ScaleOptions scale_options(const Checks& check, const Grid& g, const std::string& rule,
                           const std::string& mode) {
  ScaleOptions o{};
  o.rule = static_cast<ScaleRule>(
      1 + check.one_of(rule, "rule", {"given", "mx", "nvfp4", "symmetric", "asymmetric"}));
  const bool integer = g.kind == Kind::integer;
  check.that(g.kind != Kind::cut || o.rule == ScaleRule::given,
             "a `format` with less than 8 bits of exponent, or integers, with computed scales",
             "eight");
  o.epsilon = 1.1920928955078125e-07;  // that of float32, as in torch.ao
  o.divisor = integer ? (g.high - g.low) / 2.0 : g.max;
  if (o.rule == ScaleRule::asymmetric) {
    check.that(integer, "an integer `format` with rule=\"asymmetric\"", "a floating one");
    o.divisor = g.high - g.low;
  }
  if (o.rule == ScaleRule::nvfp4) {
    check.that(!integer, "a floating `format` with rule=\"nvfp4\"", "integers");
    o.epsilon = 0.015625;
  }
  if (o.rule == ScaleRule::mx) {
    const double max = integer ? g.high : g.max;
    o.emax = std::ilogb(max);
    const double top = std::ldexp(max, -o.emax);  // in [1, 2)
    const int places = integer ? o.emax : g.mantissa_bits;
    switch (check.one_of(mode, "mode", {"floor", "ceil", "rceil", "even", "midpoint"})) {
      case 0:
        o.up_above = 2.0;
        break;
      case 1:
        o.up_above = 1.0;
        break;
      case 2:
        o.up_above = top;
        break;
      case 3:
        // The tie at 2 - 2^-(m+1) goes up, to the even mantissa: just below it is the last to stay.
        o.up_above = 2.0 - std::ldexp(1.0, -places - 1) - std::ldexp(1.0, -23);
        break;
      default:
        o.up_above = (top + 2.0) / 2.0;
    }
  }
  return o;
}

// One number per block of x, in the compute type.
Tensor per_block(const Checks& check, const Tensor& t, const char* name, const Tensor& x,
                 ScalarType compute, int64_t count) {
  check.same_device(t, name, x);
  check.dtype(t, name, compute, compute == ScalarType::Double ? "float64" : "float32");
  check.that(t.numel() == count || x.numel() == 0,
             std::string("`") + name + "` of " + std::to_string(count) + " elements, one per block",
             sizes_name(t));
  return torch::stable::contiguous(t);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fake_quantize(
    const Tensor& x, std::vector<int64_t> blocks, std::string format, std::string rule,
    MaybeTensor scale, MaybeTensor zero_point, std::string mode, MaybeTensor tensor_scale,
    std::string rounding, MaybeTensor seed, int64_t random_bits, bool saturate, bool codes,
    bool save_inside) {
  const Checks check("fake_quantize");
  QuantizeArgs args{};
  args.dtype = check.floating(x, "x");
  args.rounder = make_rounder(check, format, rounding, seed, random_bits, saturate, x);
  const Grid& g = args.rounder.grid;
  args.scale = scale_options(check, g, rule, mode);
  const ScalarType compute = compute_type(args.dtype);
  const Blocks asked = parse_blocks(check, blocks, x.numel());
  const int64_t count = block_count(asked);
  Tensor scales, zeros;
  if (args.scale.rule == ScaleRule::given) {
    check.that(scale.has_value(), "`scale` with rule=\"given\"", "none");
    scales = per_block(check, *scale, "scale", x, compute, count);
    args.scale.scale = scales.const_data_ptr();
    if (zero_point.has_value()) {
      check.that(g.kind == Kind::integer, "no `zero_point` with a floating `format`", "one");
      zeros = per_block(check, *zero_point, "zero_point", x, compute, count);
      args.scale.zero_point = zeros.const_data_ptr();
    }
  }
  if (args.scale.rule == ScaleRule::nvfp4) {
    check.that(tensor_scale.has_value(), "`tensor_scale` with rule=\"nvfp4\"", "none");
    check.same_device(*tensor_scale, "tensor_scale", x);
    check.dtype(*tensor_scale, "tensor_scale", ScalarType::Float, "float32");
    check.that(tensor_scale->numel() == 1, "`tensor_scale` of one element",
               sizes_name(*tensor_scale));
    args.scale.tensor_scale = const_data<float>(*tensor_scale);
  }
  args.seed = is_random(args.rounder.rounding) ? const_data<int64_t>(*seed) : nullptr;
  args.numel = x.numel();

  const bool computed = is_computed(args.scale.rule);
  const bool encoded = args.scale.rule == ScaleRule::mx || args.scale.rule == ScaleRule::nvfp4;
  Ordered in = ordered(x, asked, is_random(args.rounder.rounding));
  const bool reordered = in.x.channels_last && !one_block(asked);
  args.blocks = reordered ? in.blocks : flattened(in.blocks);
  args.x = in.x.tensor.const_data_ptr();

  std::vector<int64_t> sizes = sizes_of(x);
  Tensor y;
  const int bits = g.kind == Kind::integer ? (g.high - g.low < 16    ? 4
                                              : g.high - g.low < 256 ? 8
                                                                     : 16)
                                           : 1 + g.exponent_bits + g.mantissa_bits;
  if (codes) {
    check.that(args.dtype != Dtype::float64, "`x` of float32, bfloat16 or float16 with codes",
               "float64");
    check.that(bits <= 8 || g.kind == Kind::integer, "a `format` of at most 8 bits with codes",
               format);
    if (in.x.channels_last) {
      in = {Dense{torch::stable::contiguous(x), false}, asked};
      args.blocks = flattened(asked);
      args.x = in.x.tensor.const_data_ptr();
    }
    args.store = bits == 16 ? Store::code16 : bits == 4 ? Store::code4 : Store::code8;
    if (bits == 4) {
      // Neighbours share a byte: rows and tiles of an even length keep it to one thread.
      check.that(x.dim() > 0 && x.size(-1) % 2 == 0 && args.blocks.cols % 2 == 0,
                 "a last dimension of even length with codes of 4 bits", sizes_name(x));
      check.that(args.blocks.block_cols % 2 == 0 || args.blocks.block_cols == 1,
                 "blocks of an even number of columns with codes of 4 bits",
                 std::to_string(args.blocks.block_cols));
      sizes.back() /= 2;
    }
    y = new_tensor(x, sizes, bits == 16 ? ScalarType::Short : ScalarType::Byte);
  } else {
    args.store = store_of(check, x.scalar_type(), g);
    y = in.x.channels_last ? torch::stable::empty_like(in.x.tensor)
                           : new_tensor(x, sizes, x.scalar_type());
  }
  args.y = y.mutable_data_ptr();

  const auto empty = [&](ScalarType dtype) { return new_tensor(x, {0}, dtype); };
  Tensor scale_out = computed ? new_tensor(x, {count}, compute) : empty(compute);
  Tensor zero_out =
      args.scale.rule == ScaleRule::asymmetric ? new_tensor(x, {count}, compute) : empty(compute);
  Tensor code_out = encoded ? new_tensor(x, {count}, ScalarType::Byte) : empty(ScalarType::Byte);
  Tensor inside =
      save_inside ? new_tensor(x, {bit_words(x.numel())}, ScalarType::Int) : empty(ScalarType::Int);
  if (x.numel() > 0) {
    const OnDevice context(x);
    if (computed) {
      args.scale_out = scale_out.mutable_data_ptr();
      if (zero_out.numel() > 0) args.zero_point_out = zero_out.mutable_data_ptr();
      if (encoded) args.scale_code = mutable_data<uint8_t>(code_out);
    }
    if (save_inside) {
      torch::stable::zero_(inside);
      args.inside = mutable_data<uint32_t>(inside);
    }
    Tensor minimum, maximum;
    if (computed && !finds_ranges(args.blocks, !kValuesReadable)) {
      minimum = new_tensor(x, {count}, compute);
      maximum = new_tensor(x, {count}, compute);
      backend::block_range(BlockRangeArgs{args.dtype, args.x, args.blocks,
                                          minimum.mutable_data_ptr(), maximum.mutable_data_ptr()},
                           context);
      args.minimum = minimum.mutable_data_ptr();
      args.maximum = maximum.mutable_data_ptr();
    }
    backend::quantize(args, context);
    // The bits are in row-major order, whatever that of x.
    if (save_inside && in.x.channels_last)
      inside =
          transposed_bits(inside, x.size(0), x.numel() / x.size(0) / x.size(1), x.size(1), context);
  }
  if (!codes && !in.x.channels_last) y = laid_out(y, x);
  return {y, scale_out, zero_out, code_out, inside};
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_backward(const Tensor& g, const Tensor& x,
                                                          std::vector<int64_t> blocks,
                                                          std::string format, const Tensor& scale,
                                                          MaybeTensor zero_point,
                                                          std::string rounding, MaybeTensor seed,
                                                          int64_t random_bits, bool saturate) {
  const Checks check("fake_quantize_backward");
  GradientArgs args{};
  args.dtype = check.floating(x, "x");
  check.same_device(g, "g", x);
  check.that(sizes_name(g) == sizes_name(x) && g.scalar_type() == x.scalar_type(),
             "`g` of the shape and dtype of `x`", sizes_name(g));
  args.rounder = make_rounder(check, format, rounding, seed, random_bits, saturate, x);
  args.scale = scale_options(check, args.rounder.grid, "given", "floor");
  const ScalarType compute = compute_type(args.dtype);
  const Blocks asked = parse_blocks(check, blocks, x.numel());
  const int64_t count = block_count(asked);
  const Tensor scales = per_block(check, scale, "scale", x, compute, count);
  args.scale.scale = scales.const_data_ptr();
  Tensor zeros;
  if (zero_point.has_value()) {
    zeros = per_block(check, *zero_point, "zero_point", x, compute, count);
    args.scale.zero_point = zeros.const_data_ptr();
  }
  args.seed = is_random(args.rounder.rounding) ? const_data<int64_t>(*seed) : nullptr;
  const Ordered in = ordered(x, asked, is_random(args.rounder.rounding));
  args.blocks = in.x.channels_last && !one_block(asked) ? in.blocks : flattened(in.blocks);
  const Tensor upstream = dense_like(g, in.x);
  Tensor dx = torch::stable::empty_like(in.x.tensor);
  Tensor dscale = torch::stable::fill_(torch::stable::empty_like(scales), 0.0);
  Tensor dzero = zero_point.has_value()
                     ? torch::stable::fill_(torch::stable::empty_like(scales), 0.0)
                     : new_tensor(scale, {0}, compute);
  if (x.numel() > 0) {
    args.g = upstream.const_data_ptr();
    args.x = in.x.tensor.const_data_ptr();
    args.dx = dx.mutable_data_ptr();
    const Tensor inverse = torch::stable::empty_like(scales);
    args.inverse = inverse.mutable_data_ptr();
    const int64_t sums = zero_point.has_value() ? 2 : 1;
    const int64_t partials = partial_count(args.blocks) * count * sums;
    // The second half takes the sums of the first, and so on to and fro.
    Tensor scratch = new_tensor(x, {2 * partials}, ScalarType::Double);
    args.partial = mutable_data<double>(scratch);
    args.dscale = dscale.mutable_data_ptr();
    args.dzero = zero_point.has_value() ? dzero.mutable_data_ptr() : nullptr;
    backend::quantize_gradient(args, OnDevice(x));
  }
  return {in.x.channels_last ? dx : laid_out(dx, x), dscale, dzero};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "round_to(Tensor x, str format, str rounding=\"nearest_even\", Tensor? seed=None, "
      "int random_bits=16, bool saturate=False, ScalarType? dtype=None) -> Tensor");
  m.def(
      "round_to_out(Tensor x, Tensor(a!) out, str format, str rounding=\"nearest_even\", "
      "Tensor? seed=None, int random_bits=16, bool saturate=False) -> ()");
  m.def(
      "fake_quantize(Tensor x, int[] blocks, str format, str rule=\"given\", Tensor? scale=None, "
      "Tensor? zero_point=None, str mode=\"floor\", Tensor? tensor_scale=None, "
      "str rounding=\"nearest_even\", Tensor? seed=None, int random_bits=16, bool saturate=True, "
      "bool codes=False, bool save_inside=False) "
      "-> (Tensor y, Tensor scale, Tensor zero_point, Tensor scale_code, Tensor inside)");
  m.def(
      "fake_quantize_backward(Tensor g, Tensor x, int[] blocks, str format, Tensor scale, "
      "Tensor? zero_point=None, str rounding=\"nearest_even\", Tensor? seed=None, "
      "int random_bits=16, bool saturate=True) "
      "-> (Tensor dx, Tensor dscale, Tensor dzero_point)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("round_to", TORCH_BOX(&round_to));
  m.impl("round_to_out", TORCH_BOX(&round_to_out));
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize));
  m.impl("fake_quantize_backward", TORCH_BOX(&fake_quantize_backward));
}

}  // namespace regkern::quantize
