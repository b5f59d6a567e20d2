#include "core/launch.cuh"
#include "sparse/conv.h"

namespace regkern::cuda {
namespace {

using namespace sparse;

constexpr int kThreads = 256;
// Columns that a block packs, planes that it writes, and entries that it keeps meanwhile.
constexpr int kPackColumns = 32, kPlanes = 8, kStaged = 128;
// Entries whose sums a block takes at once, and blocks that share the entries of a plane.
constexpr int kEntries = kThreads / kBatchLanes, kSplits = 8;
constexpr unsigned kAll = 0xffffffffu;

template <typename T>
__global__ void __launch_bounds__(kThreads, 3) sparse_conv_pack_kernel(ConvPackArgs args) {
  using C = compute_t<T>;
  constexpr int kPitch = kPackColumns + 1;
  RK_SHARED(C, shared, kConvLanes * kPitch);
  const T* const x = static_cast<const T*>(args.x);
  C* const packed = static_cast<C*>(args.packed);
  const ConvField& field = args.field;
  const int lanes = static_cast<int>(field.lanes);
  const int64_t column_classes = args.columns.classes();
  const int64_t classes = args.rows.classes() * column_classes;
  const int64_t rows = args.rows.extent(), columns = args.columns.extent();
  const int64_t chunks = ceil_div(columns, int64_t{kPackColumns});
  const int64_t units = args.tiles * classes * rows * chunks * args.channels;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    // Neighbouring channels last: they share the sectors of images whose channels are last.
    const int64_t c = unit % args.channels, chunk = unit / args.channels % chunks;
    const int64_t outer = unit / args.channels / chunks;
    const int64_t r = outer % rows, j = outer / rows % classes, t = outer / rows / classes;
    const int64_t h = args.rows.first(j / column_classes) + r * args.rows.stride;
    const int64_t first = args.columns.first(j % column_classes);
    for (int i = static_cast<int>(threadIdx.x); i < lanes * kPackColumns; i += kThreads) {
      const int k = i / kPackColumns, q = i % kPackColumns;
      const int64_t b = t * lanes + k;
      const int64_t w = first + (chunk * kPackColumns + q) * args.columns.stride;
      C value = C(0);
      if (b < args.batch && h >= 0 && h < args.rows.size && w >= 0 && w < args.columns.size)
        value = widen(x[b * args.strides[0] + c * args.strides[1] + h * args.strides[2] +
                        w * args.strides[3]]);
      shared[k * kPitch + q] = value;
    }
    __syncthreads();
    C* const out = packed + t * field.of_tile + j * field.of_class + c * field.plane +
                   r * field.row + chunk * kPackColumns * lanes;
    for (int i = static_cast<int>(threadIdx.x); i < lanes * kPackColumns; i += kThreads) {
      const int k = i % lanes, q = i / lanes;
      if (chunk * kPackColumns + q < columns) out[i] = shared[k * kPitch + q];
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads, 4) sparse_conv_rows_kernel(ConvEntriesArgs args) {
  const ConvShape& shape = args.shape;
  const ConvField& field = args.field;
  const int64_t in_group = shape.channels / shape.groups, taps = shape.taps();
  for (int64_t o = blockIdx.x; o < shape.outputs; o += gridDim.x) {
    const int64_t group = o / (shape.outputs / shape.groups);
    const int64_t end = args.view.offsets[o + 1];
    for (int64_t e = args.view.offsets[o] + threadIdx.x; e < end; e += kThreads) {
      const int64_t column = args.view.index[e], tap = column % taps;
      const int64_t y = tap / shape.columns.taps, x = tap % shape.columns.taps;
      args.shift[e] = shape.class_of(y, x) * field.of_class +
                      (group * in_group + column / taps) * field.plane +
                      shape.rows.shift_of(y) * field.row + shape.columns.shift_of(x) * field.lanes;
    }
  }
}

// A channel of a group a block: it walks through groups, classes and taps, and has the entries of a
// tap side by side.
template <typename C>
__global__ void __launch_bounds__(kThreads, 3) sparse_conv_columns_kernel(ConvEntriesArgs args) {
  const ConvShape& shape = args.shape;
  const ConvField& field = args.field;
  const SparseView& view = args.view;
  const int64_t in_group = shape.channels / shape.groups, taps = shape.taps();
  const int64_t rows_in_group = shape.outputs / shape.groups;
  const int64_t row_period = shape.rows.period(), column_period = shape.columns.period();
  const int64_t row_classes = shape.rows.classes(), column_classes = shape.columns.classes();
  const C* const values = static_cast<const C*>(args.values);
  C* const weight = static_cast<C*>(args.weight);
  for (int64_t ci = blockIdx.x; ci < in_group; ci += gridDim.x) {
    int64_t at = view.offsets[ci * taps];
    for (int64_t group = 0; group < shape.groups; ++group)
      for (int64_t j = 0; j < row_classes * column_classes; ++j) {
        const int64_t plane = j * shape.channels + group * in_group + ci;
        if (threadIdx.x == 0) args.begin[plane] = at;
        for (int64_t y = j / column_classes; y < shape.rows.taps; y += row_period)
          for (int64_t x = j % column_classes; x < shape.columns.taps; x += column_period) {
            const int64_t column = ci * taps + y * shape.columns.taps + x;
            const int64_t shift =
                shape.rows.shift_of(y) * field.row + shape.columns.shift_of(x) * field.lanes;
            const int64_t first = first_of_row(view, column, group * rows_in_group);
            const int64_t last = first_of_row(view, column, (group + 1) * rows_in_group);
            for (int64_t e = first + threadIdx.x; e < last; e += kThreads) {
              const int64_t to = at + e - first;
              const int32_t place = view.order[e];
              args.shift[to] = view.index[e] * field.plane - shift;
              args.place[to] = place;
              if (values != nullptr) weight[to] = values[place];
            }
            at += last - first;
          }
        if (threadIdx.x == 0) args.end[plane] = at;
      }
  }
}

// Whole columns of a plane, one element a thread, for some planes one after the other.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4) sparse_conv_gather_kernel(ConvGatherArgs args) {
  using C = compute_t<T>;
  constexpr int kPitch = kThreads + 1;
  RK_SHARED(C, results, kPlanes * kPitch);
  RK_SHARED(int64_t, shifts, kStaged);
  RK_SHARED(C, weights, kStaged);
  const ConvField& field = args.field;
  const C* const bias = static_cast<const C*>(args.bias);
  const C* const weight = static_cast<const C*>(args.list.weight);
  const bool rectified = args.activation == Activation::relu;
  T* const y = static_cast<T*>(args.y);
  const int thread = static_cast<int>(threadIdx.x), lanes = static_cast<int>(field.lanes);
  const int columns = kThreads / lanes;  // that a block has
  const int64_t chunks = ceil_div(args.rows * args.columns, int64_t{columns});
  const int64_t groups = ceil_div(args.planes, int64_t{kPlanes});
  for (int64_t unit = blockIdx.x; unit < args.tiles * chunks * groups; unit += gridDim.x) {
    const int64_t first = unit % groups * kPlanes, chunk = unit / groups % chunks;
    const int64_t t = unit / groups / chunks;
    const int count =
        static_cast<int>(args.planes - first < kPlanes ? args.planes - first : kPlanes);
    const int64_t place = chunk * columns + thread / lanes;
    const bool mine = thread / lanes < columns && place < args.rows * args.columns;
    const C* const in =
        static_cast<const C*>(args.in) + t * field.of_tile +
        (mine ? place / args.columns * field.row + place % args.columns * lanes + thread % lanes
              : 0);
    for (int j = 0; j < count; ++j) {
      const int64_t begin = args.list.begin[first + j], end = args.list.end[first + j];
      C sum = C(0);
      for (int64_t at = begin; at < end; at += kStaged) {
        const int some = static_cast<int>(end - at < kStaged ? end - at : kStaged);
        __syncthreads();
        if (thread < some) {
          shifts[thread] = args.list.shift[at + thread];
          weights[thread] = weight[at + thread];
        }
        __syncthreads();
        if (mine) {
#pragma unroll 4
          for (int e = 0; e < some; ++e) sum += weights[e] * in[shifts[e]];
        }
      }
      const C z = bias != nullptr ? sum + bias[first + j] : sum;
      results[j * kPitch + thread] = rectified ? activated<Activation::relu>(z) : z;
    }
    __syncthreads();
    // Neighbours of memory belong to neighbouring threads: channels, or columns.
    const int each = columns * lanes;
    for (int i = thread; i < count * each; i += kThreads) {
      const bool channels_last = args.strides[1] == 1;
      const int j = channels_last ? i % count : i / each;
      const int rest = channels_last ? i / count : i % each;
      const int k = rest / columns, q = rest % columns;
      const int64_t b = t * lanes + k, to = chunk * columns + q;
      if (b >= args.batch || to >= args.rows * args.columns) continue;
      y[b * args.strides[0] + (first + j) * args.strides[1] + to / args.columns * args.strides[2] +
        to % args.columns * args.strides[3]] = narrowed<T>(results[j * kPitch + q * lanes + k]);
    }
    __syncthreads();
  }
}

// Sixteen threads an entry, one a lane.
template <typename C>
__global__ void __launch_bounds__(kThreads, 4)
    sparse_conv_sample_kernel(ConvSampleArgs all, int rows_at_once) {
  const ConvGatherArgs& args = all.gather;
  const ConvField& field = args.field;
  C* const dvalues = static_cast<C*>(all.dvalues);
  const int lane = static_cast<int>(threadIdx.x) % kBatchLanes;
  const int width = kConvTile<C> / rows_at_once;
  const int64_t strip = conv_strip_columns(field.lanes, kConvTile<C>, rows_at_once) * field.lanes;
  const int64_t length = args.columns * field.lanes;
  for (int64_t unit = blockIdx.x; unit < args.planes * kSplits; unit += gridDim.x) {
    const int64_t c = unit % args.planes, end = args.list.end[c];
    for (int64_t at = args.list.begin[c] + unit / args.planes * kEntries; at < end;
         at += kSplits * kEntries) {
      // All threads of a warp go round alike; those without an entry take the last one's place.
      const int64_t wanted = at + static_cast<int>(threadIdx.x) / kBatchLanes;
      const int64_t e = wanted < end ? wanted : end - 1;
      C total = all.add ? dvalues[args.list.place[e]] : C(0);
      for (int64_t t = 0; t < args.tiles; ++t) {
        const C* const g = static_cast<const C*>(args.in) + t * field.of_tile + args.list.shift[e];
        const C* const x = static_cast<const C*>(all.x) + t * all.of_x.of_tile + c * all.of_x.plane;
        C sum = C(0);
        for (int64_t r = 0; r < args.rows; r += rows_at_once)
          for (int64_t q = 0; q < length; q += strip) {
            const int64_t last = q + strip < length ? q + strip : length;
            for (int64_t k = q; k < last; k += width)
              for (int i = lane; i < kConvTile<C>; i += kBatchLanes) {
                const int64_t row = r + i / width, column = k + i % width;
                if (row < args.rows && column < last)
                  sum += x[row * all.of_x.row + column] * g[row * field.row + column];
              }
          }
#pragma unroll
        for (int half = kBatchLanes / 2; half > 0; half /= 2)
          sum += __shfl_down_sync(kAll, sum, half, kBatchLanes);
        total += sum;
      }
      if (lane == 0 && wanted < end) dvalues[args.list.place[e]] = total;
    }
  }
}

}  // namespace

void sparse_conv_pack(const ConvPackArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t units = args.tiles * args.rows.classes() * args.columns.classes() *
                        args.rows.extent() *
                        ceil_div(args.columns.extent(), int64_t{kPackColumns}) * args.channels;
  if (units == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((sparse_conv_pack_kernel<decltype(zero)>), grid_blocks(units, 8), kThreads, 0, stream,
              args);
  });
}

void sparse_conv_entries(const ConvEntriesArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (!args.by_columns) {
    RK_LAUNCH(sparse_conv_rows_kernel, grid_blocks(args.shape.outputs, 8), kThreads, 0, stream,
              args);
    return;
  }
  const int64_t units = args.shape.channels / args.shape.groups;
  if (args.wide)
    RK_LAUNCH((sparse_conv_columns_kernel<double>), grid_blocks(units, 8), kThreads, 0, stream,
              args);
  else
    RK_LAUNCH((sparse_conv_columns_kernel<float>), grid_blocks(units, 8), kThreads, 0, stream,
              args);
}

void sparse_conv_gather(const ConvGatherArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t columns = kThreads / args.field.lanes;
  const int64_t units = args.tiles * ceil_div(args.rows * args.columns, columns) *
                        ceil_div(args.planes, int64_t{kPlanes});
  if (units == 0) return;
  dispatch_floating(args.dtype, [&](auto zero) {
    RK_LAUNCH((sparse_conv_gather_kernel<decltype(zero)>), grid_blocks(units, 8), kThreads, 0,
              stream, args);
  });
}

void sparse_conv_sample(const ConvSampleArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const ConvGatherArgs& gather = args.gather;
  if (gather.y != nullptr) sparse_conv_gather(gather, context);
  const int64_t units = gather.planes * kSplits, length = gather.columns * gather.field.lanes;
  if (units == 0) return;
  if (gather.dtype == Dtype::float64)
    RK_LAUNCH((sparse_conv_sample_kernel<double>), grid_blocks(units, 8), kThreads, 0, stream, args,
              conv_rows_at_once(gather.rows, length, kConvTile<double>));
  else
    RK_LAUNCH((sparse_conv_sample_kernel<float>), grid_blocks(units, 8), kThreads, 0, stream, args,
              conv_rows_at_once(gather.rows, length, kConvTile<float>));
}

}  // namespace regkern::cuda
