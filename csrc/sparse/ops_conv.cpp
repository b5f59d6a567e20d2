#include "sparse/conv.h"
#include "sparse/op_pattern.h"

// Convolutions with a sparse weight, and what they are differentiated by.

namespace regkern::sparse {
namespace {

using Ints = std::vector<int64_t>;

// What a convolution is, beside its tensors.
struct Options {
  const Ints &kernel, &stride, &padding, &dilation;
  int64_t groups;
};

ConvShape shape_of(const Checks& check, const Pattern& entries, const Options& options,
                   int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const auto pair = [&](const Ints& t, const char* name, int64_t count, int64_t least) {
    bool ok = static_cast<int64_t>(t.size()) == count;
    for (const int64_t i : t) ok = ok && i >= least && i < (int64_t{1} << 31);
    check.that(ok,
               std::string("`") + name + "` of " + std::to_string(count) + " numbers from " +
                   std::to_string(least) + " on",
               "others");
  };
  pair(options.kernel, "kernel_size", 2, 1);
  pair(options.stride, "stride", 2, 1);
  pair(options.dilation, "dilation", 2, 1);
  pair(options.padding, "padding", 4, 0);
  const int64_t outputs = entries.by_rows.rows, groups = options.groups;
  check.that(groups > 0 && channels % groups == 0 && outputs % groups == 0,
             "`groups` that divide " + std::to_string(channels) + " channels and " +
                 std::to_string(outputs) + " outputs",
             std::to_string(groups));
  const auto axis = [&](int i, int64_t size) {
    ConvAxis a{size,
               0,
               options.kernel[static_cast<size_t>(i)],
               options.stride[static_cast<size_t>(i)],
               options.dilation[static_cast<size_t>(i)],
               options.padding[static_cast<size_t>(2 * i)]};
    const int64_t room = size + a.before + options.padding[static_cast<size_t>(2 * i + 1)] -
                         (a.taps - 1) * a.dilation - 1;
    check.that(room >= 0, "an input that the kernel fits into, padding included",
               std::to_string(height) + " by " + std::to_string(width));
    a.out = room / a.stride + 1;
    return a;
  };
  const ConvShape shape{batch, channels, outputs, groups, axis(0, height), axis(1, width)};
  check.that(entries.by_rows.columns == channels / groups * shape.taps(),
             "a pattern of " + std::to_string(channels / groups * shape.taps()) + " columns",
             std::to_string(entries.by_rows.columns));
  return shape;
}

void check_image(const Checks& check, const Tensor& t, const char* name) {
  check.that(t.dim() == 4, std::string("`") + name + "` of four dimensions", sizes_name(t));
}

void check_gradient(const Checks& check, const Tensor& g, const ConvShape& shape) {
  check_image(check, g, "g");
  check.shape(g, "g", {shape.batch, shape.outputs, shape.rows.out, shape.columns.out});
}

void strides_of(const Tensor& t, int64_t* strides) {
  for (int i = 0; i < 4; ++i) strides[i] = t.stride(i);
}

// A new tensor of images in the memory layout of `like`.
Tensor new_images(const Tensor& like, const Ints& sizes) {
  if (like.is_contiguous() || !is_channels_last(like))
    return new_tensor(like, sizes, like.scalar_type());
  const Tensor t = new_tensor(like, {sizes[0], sizes[2], sizes[3], sizes[1]}, like.scalar_type());
  return torch::stable::transpose(torch::stable::transpose(t, 2, 3), 1, 2);
}

void fill_zeros(Tensor t) { torch::stable::zero_(t); }

// What is read, packed some tiles of the batch at a time.
struct Packed {
  ConvPackArgs args;
  Tensor images, memory;
};

Packed packed_like(const Tensor& images, Dtype dtype, const ConvAxis& rows, const ConvAxis& columns,
                   int64_t lanes) {
  Packed p{};
  p.images = images;
  p.args.dtype = dtype;
  p.args.channels = images.size(1);
  p.args.rows = rows;
  p.args.columns = columns;
  p.args.field = conv_field(lanes, rows.classes() * columns.classes(), p.args.channels,
                            rows.extent(), columns.extent());
  strides_of(images, p.args.strides);
  return p;
}

Packed packed_input(const Tensor& x, Dtype dtype, const ConvShape& shape, int64_t lanes) {
  return packed_like(x, dtype, shape.rows, shape.columns, lanes);
}

// With zeros as far as taps reach.
Packed packed_gradient(const Tensor& g, Dtype dtype, const ConvShape& shape, int64_t lanes) {
  const auto axis = [](const ConvAxis& a) {
    return ConvAxis{a.out, a.out + 2 * a.reach(), 1, 1, 1, a.reach()};
  };
  return packed_like(g, dtype, axis(shape.rows), axis(shape.columns), lanes);
}

// How many tiles of the batch are packed at once: on the CPU what stays in the last cache.
int64_t wave_of(int64_t tiles, int64_t elements, Dtype dtype) {
  if constexpr (!kValuesReadable) return tiles;
  constexpr int64_t kBytes = int64_t{8} << 20;
  const int64_t bytes = elements * (dtype == Dtype::float64 ? 8 : 4);
  const int64_t some = bytes > 0 ? kBytes / bytes : tiles;
  return some < 1 ? 1 : some < tiles ? some : tiles;
}

void allocate(Packed* p, int64_t wave) {
  p->memory = new_tensor(p->images, {wave * p->args.field.of_tile + conv_slack(p->args.field)},
                         compute_type(p->args.dtype));
  p->args.packed = p->memory.mutable_data_ptr();
}

size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}
size_t compute_bytes(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

// Element `at` of a tensor.
template <typename P>
P moved(P data, int64_t at, size_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<P>>, const char, char>;
  return static_cast<Byte*>(data) + at * static_cast<int64_t>(bytes);
}

// Tiles of the batch from `first` on.
void pack(Packed* p, int64_t first, int64_t tiles, const OnDevice& device) {
  const int64_t b = first * p->args.field.lanes;
  p->args.tiles = tiles;
  p->args.batch = p->images.size(0) - b;
  p->args.x = moved(p->images.const_data_ptr(), b * p->args.strides[0], bytes_of(p->args.dtype));
  backend::sparse_conv_pack(p->args, device);
}

// Pattern in the order of a kernel, and the memory for it.
struct Ordered {
  Tensor begin, end, shift, weight, place;
  ConvList list;
};

Ordered by_rows(const Pattern& entries, const ConvShape& shape, const ConvField& field,
                const Tensor& values, const OnDevice& device) {
  Ordered o{};
  o.shift = new_tensor(values, {entries.by_rows.nnz}, ScalarType::Long);
  ConvEntriesArgs args{};
  args.shape = shape;
  args.view = entries.by_rows;
  args.field = field;
  args.shift = mutable_data<int64_t>(o.shift);
  backend::sparse_conv_entries(args, device);
  o.list = {entries.by_rows.offsets, entries.by_rows.offsets + 1, args.shift,
            values.const_data_ptr(), nullptr};
  return o;
}

Ordered by_columns(const Pattern& entries, const ConvShape& shape, const ConvField& field,
                   const Tensor* values, const Tensor& like, Dtype dtype, const OnDevice& device) {
  Ordered o{};
  const int64_t nnz = entries.by_rows.nnz, planes = shape.classes() * shape.channels;
  o.begin = new_tensor(like, {planes}, ScalarType::Long);
  o.end = new_tensor(like, {planes}, ScalarType::Long);
  o.shift = new_tensor(like, {nnz}, ScalarType::Long);
  o.place = new_tensor(like, {nnz}, ScalarType::Int);
  ConvEntriesArgs args{};
  args.wide = dtype == Dtype::float64;
  args.by_columns = true;
  args.shape = shape;
  args.view = entries.by_columns;
  args.field = field;
  if (values != nullptr) {
    o.weight = new_tensor(like, {nnz}, compute_type(dtype));
    args.values = values->const_data_ptr();
    args.weight = o.weight.mutable_data_ptr();
  }
  args.begin = mutable_data<int64_t>(o.begin);
  args.end = mutable_data<int64_t>(o.end);
  args.shift = mutable_data<int64_t>(o.shift);
  args.place = mutable_data<int32_t>(o.place);
  backend::sparse_conv_entries(args, device);
  o.list = {args.begin, args.end, args.shift, args.weight, args.place};
  return o;
}

Tensor sparse_conv2d(const Tensor& x, const Tensor& values, const MaybeTensor& bias,
                     const std::string& activation, const Tensor& offsets, const Tensor& index,
                     const Tensor& t_offsets, const Tensor& t_index, const Tensor& t_order,
                     Ints kernel, Ints stride, Ints padding, Ints dilation, int64_t groups) {
  const Checks check("sparse_conv2d");
  const auto kind =
      static_cast<Activation>(check.one_of(activation, "activation", {"none", "relu"}));
  const Dtype dtype = check.floating(x, "x");
  check_image(check, x, "x");
  const Pattern entries = pattern_of(check, x, offsets, index, t_offsets, t_index, t_order);
  const ConvShape shape = shape_of(check, entries, {kernel, stride, padding, dilation, groups},
                                   x.size(0), x.size(1), x.size(2), x.size(3));
  const Tensor w = check_numbers(check, values, "values", entries.by_rows.nnz, x, dtype);
  Tensor own_bias;
  if (bias.has_value()) own_bias = check_numbers(check, *bias, "bias", shape.outputs, x, dtype);
  const Tensor y = new_images(x, {shape.batch, shape.outputs, shape.rows.out, shape.columns.out});
  if (y.numel() == 0) return y;
  const OnDevice device(x);
  const int64_t lanes = conv_lanes(shape.batch), tiles = (shape.batch + lanes - 1) / lanes;
  Packed in = packed_input(x, dtype, shape, lanes);
  const int64_t wave = wave_of(tiles, in.args.field.of_tile, dtype);
  allocate(&in, wave);
  const Ordered ordered = by_rows(entries, shape, in.args.field, w, device);
  ConvGatherArgs args{};
  args.dtype = dtype;
  args.planes = shape.outputs;
  args.rows = shape.rows.out;
  args.columns = shape.columns.out;
  args.list = ordered.list;
  args.field = in.args.field;
  args.in = in.args.packed;
  args.bias = bias.has_value() ? own_bias.const_data_ptr() : nullptr;
  args.activation = kind;
  strides_of(y, args.strides);
  for (int64_t t = 0; t < tiles; t += wave) {
    args.tiles = tiles - t < wave ? tiles - t : wave;
    pack(&in, t, args.tiles, device);
    args.batch = in.args.batch;
    args.y = moved(y.mutable_data_ptr(), t * lanes * args.strides[0], bytes_of(dtype));
    backend::sparse_conv_gather(args, device);
  }
  return y;
}

// Whether taps reach every place of the source.
bool covered(const ConvAxis& axis) {
  int64_t reached = 0;
  for (int64_t j = 0; j < axis.classes(); ++j) reached += axis.end(j) - axis.begin(j);
  return reached == axis.size;
}

// Of two classes of columns the one whose places are behind those of the other, or -1 where they do
// not take turns. Written together, no line of memory is written twice, nor an element at a time.
int64_t class_behind(const ConvAxis& columns, int64_t lanes, const int64_t* strides) {
  if (!kValuesReadable || columns.stride != 2 || columns.classes() != 2 || lanes < 4) return -1;
  if (strides[3] != 1 || strides[1] == 1) return -1;
  int64_t first[2];
  for (int64_t j = 0; j < 2; ++j) first[j] = columns.first(j) + columns.begin(j) * columns.stride;
  if (columns.end(0) - columns.begin(0) != columns.end(1) - columns.begin(1)) return -1;
  return first[0] + 1 == first[1] ? 1 : first[1] + 1 == first[0] ? 0 : -1;
}

// Wᵀ g into dx, and where dvalues are wanted those of x and g.
void backward(const Checks& check, const Tensor& g, const Tensor* x, const Tensor* values,
              const Pattern& entries, const ConvShape& shape, Dtype dtype, const Tensor* dx,
              const Tensor* dvalues) {
  check_gradient(check, g, shape);
  const bool nothing =
      g.numel() == 0 || shape.channels == 0 || shape.rows.size == 0 || shape.columns.size == 0;
  // Between the taps of a stride, and behind the last one, nobody writes.
  if (dx != nullptr && (nothing || !covered(shape.rows) || !covered(shape.columns)))
    fill_zeros(*dx);
  if (dvalues != nullptr && nothing) fill_zeros(*dvalues);
  if (nothing) return;
  const OnDevice device(g);
  const int64_t lanes = conv_lanes(shape.batch), tiles = (shape.batch + lanes - 1) / lanes;
  Packed of_g = packed_gradient(g, dtype, shape, lanes), of_x{};
  int64_t elements = of_g.args.field.of_tile;
  if (x != nullptr) {
    of_x = packed_input(*x, dtype, shape, lanes);
    elements += of_x.args.field.of_tile;
  }
  const int64_t wave = wave_of(tiles, elements, dtype);
  allocate(&of_g, wave);
  if (x != nullptr) allocate(&of_x, wave);
  const Ordered ordered = by_columns(entries, shape, of_g.args.field, values, g, dtype, device);
  const ConvField& field = of_g.args.field;
  int64_t strides[4] = {};
  if (dx != nullptr) strides_of(*dx, strides);
  const size_t bytes = compute_bytes(dtype);
  const int64_t behind =
      dx != nullptr && x != nullptr ? class_behind(shape.columns, lanes, strides) : -1;
  for (int64_t t = 0; t < tiles; t += wave) {
    const int64_t count = tiles - t < wave ? tiles - t : wave;
    pack(&of_g, t, count, device);
    if (x != nullptr) pack(&of_x, t, count, device);
    for (int64_t j = 0; j < shape.rows.classes(); ++j)
      for (int64_t i = 0; i < shape.columns.classes(); ++i) {
        if (i == behind) continue;
        const int64_t own = j * shape.columns.classes() + i;
        const int64_t r = shape.rows.begin(j), q = shape.columns.begin(i);
        ConvSampleArgs args{};
        ConvGatherArgs& part = args.gather;
        part.dtype = dtype;
        part.batch = of_g.args.batch;
        part.tiles = count;
        part.planes = shape.channels;
        part.rows = shape.rows.end(j) - r;
        part.columns = shape.columns.end(i) - q;
        part.list = ordered.list;
        part.list.begin += own * shape.channels;
        part.list.end += own * shape.channels;
        part.field = field;
        part.in = moved(static_cast<const void*>(of_g.args.packed),
                        (r + shape.rows.reach()) * field.row + (q + shape.columns.reach()) * lanes,
                        bytes);
        if (dx != nullptr) {
          const int64_t row = shape.rows.first(j) + r * shape.rows.stride;
          const int64_t column = shape.columns.first(i) + q * shape.columns.stride;
          part.y = moved(dx->mutable_data_ptr(),
                         t * lanes * strides[0] + row * strides[2] + column * strides[3],
                         bytes_of(dtype));
          part.strides[0] = strides[0];
          part.strides[1] = strides[1];
          part.strides[2] = strides[2] * shape.rows.stride;
          part.strides[3] = strides[3] * shape.columns.stride;
        }
        if (x == nullptr) {
          if (part.rows > 0 && part.columns > 0) backend::sparse_conv_gather(part, device);
          continue;
        }
        args.of_x = of_x.args.field;
        args.x = moved(static_cast<const void*>(of_x.args.packed),
                       own * args.of_x.of_class + r * args.of_x.row + q * lanes, bytes);
        args.dvalues = dvalues->mutable_data_ptr();
        args.add = t > 0;
        ConvTwin twin{};
        if (behind >= 0) {
          const int64_t other = j * shape.columns.classes() + behind;
          const int64_t to = shape.columns.begin(behind);
          twin.begin = ordered.list.begin + other * shape.channels;
          twin.end = ordered.list.end + other * shape.channels;
          twin.in = moved(part.in, (to - q) * lanes, bytes);
          twin.x = moved(args.x, (other - own) * args.of_x.of_class + (to - q) * lanes, bytes);
          args.twin = &twin;
          part.strides[3] = strides[3];
        }
        backend::sparse_conv_sample(args, device);
      }
  }
}

Tensor sparse_conv2d_t(const Tensor& g, const Tensor& values, int64_t height, int64_t width,
                       const Tensor& offsets, const Tensor& index, const Tensor& t_offsets,
                       const Tensor& t_index, const Tensor& t_order, Ints kernel, Ints stride,
                       Ints padding, Ints dilation, int64_t groups) {
  const Checks check("sparse_conv2d_t");
  const Dtype dtype = check.floating(g, "g");
  check_image(check, g, "g");
  check.that(height >= 0 && width >= 0, "`height` and `width` of at least 0",
             std::to_string(height) + " and " + std::to_string(width));
  const Pattern entries = pattern_of(check, g, offsets, index, t_offsets, t_index, t_order);
  int64_t taps = 1;
  for (const int64_t k : kernel) taps *= k > 0 ? k : 1;
  const int64_t channels = entries.by_columns.rows / taps * groups;
  const ConvShape shape = shape_of(check, entries, {kernel, stride, padding, dilation, groups},
                                   g.size(0), channels, height, width);
  const Tensor w = check_numbers(check, values, "values", entries.by_rows.nnz, g, dtype);
  const Tensor dx = new_images(g, {shape.batch, channels, height, width});
  backward(check, g, nullptr, &w, entries, shape, dtype, &dx, nullptr);
  return dx;
}

ConvShape shape_of_both(const Checks& check, const Tensor& g, const Tensor& x,
                        const Pattern& entries, const Options& options) {
  check_image(check, x, "x");
  check.same_device(g, "g", x);
  check.that(g.scalar_type() == x.scalar_type(), "`g` of the dtype of `x`", "another");
  return shape_of(check, entries, options, x.size(0), x.size(1), x.size(2), x.size(3));
}

Tensor sparse_conv2d_sample(const Tensor& g, const Tensor& x, const Tensor& offsets,
                            const Tensor& index, const Tensor& t_offsets, const Tensor& t_index,
                            const Tensor& t_order, Ints kernel, Ints stride, Ints padding,
                            Ints dilation, int64_t groups) {
  const Checks check("sparse_conv2d_sample");
  const Dtype dtype = check.floating(x, "x");
  const Pattern entries = pattern_of(check, x, offsets, index, t_offsets, t_index, t_order);
  const ConvShape shape =
      shape_of_both(check, g, x, entries, {kernel, stride, padding, dilation, groups});
  const Tensor dvalues = new_tensor(x, {entries.by_rows.nnz}, compute_type(dtype));
  backward(check, g, &x, nullptr, entries, shape, dtype, nullptr, &dvalues);
  return dvalues;
}

std::tuple<Tensor, Tensor> sparse_conv2d_backward(const Tensor& g, const Tensor& x,
                                                  const Tensor& values, const Tensor& offsets,
                                                  const Tensor& index, const Tensor& t_offsets,
                                                  const Tensor& t_index, const Tensor& t_order,
                                                  Ints kernel, Ints stride, Ints padding,
                                                  Ints dilation, int64_t groups) {
  const Checks check("sparse_conv2d_backward");
  const Dtype dtype = check.floating(x, "x");
  const Pattern entries = pattern_of(check, x, offsets, index, t_offsets, t_index, t_order);
  const ConvShape shape =
      shape_of_both(check, g, x, entries, {kernel, stride, padding, dilation, groups});
  const Tensor w = check_numbers(check, values, "values", entries.by_rows.nnz, x, dtype);
  const Tensor dx = new_images(x, sizes_of(x));
  const Tensor dvalues = new_tensor(x, {entries.by_rows.nnz}, compute_type(dtype));
  backward(check, g, &x, &w, entries, shape, dtype, &dx, &dvalues);
  return {dx, dvalues};
}

}  // namespace

#if !defined(REGKERN_CUDA)
#define REGKERN_CONV_PATTERN \
  "Tensor offsets, Tensor index, Tensor t_offsets, Tensor t_index, Tensor t_order, "
#define REGKERN_CONV_OPTIONS \
  "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups) -> "
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "sparse_conv2d(Tensor x, Tensor values, Tensor? bias, str "
      "activation, " REGKERN_CONV_PATTERN REGKERN_CONV_OPTIONS "Tensor");
  m.def(
      "sparse_conv2d_t(Tensor g, Tensor values, SymInt height, SymInt "
      "width, " REGKERN_CONV_PATTERN REGKERN_CONV_OPTIONS "Tensor");
  m.def("sparse_conv2d_sample(Tensor g, Tensor x, " REGKERN_CONV_PATTERN REGKERN_CONV_OPTIONS
        "Tensor");
  m.def(
      "sparse_conv2d_backward(Tensor g, Tensor x, Tensor "
      "values, " REGKERN_CONV_PATTERN REGKERN_CONV_OPTIONS "(Tensor dx, Tensor dvalues)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("sparse_conv2d", TORCH_BOX(&sparse_conv2d));
  m.impl("sparse_conv2d_t", TORCH_BOX(&sparse_conv2d_t));
  m.impl("sparse_conv2d_sample", TORCH_BOX(&sparse_conv2d_sample));
  m.impl("sparse_conv2d_backward", TORCH_BOX(&sparse_conv2d_backward));
}

}  // namespace regkern::sparse
