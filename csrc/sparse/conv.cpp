#include "sparse/conv.h"

#include "core/parallel.h"
#include "core/transpose.h"
#include "core/vec.h"
#include "core/vectors.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace sparse;

// Channels that are packed together, and planes whose results are written together.
constexpr int64_t kPackChannels = kSquare;
constexpr int64_t kPlanes = 128;
// How far ahead of an entry what it needs is asked for.
constexpr int64_t kAhead = 6;

// ---- packing ----

template <typename T, typename C>
inline void copy_lanes(const T* from, int64_t stride, int64_t lanes, C* to) {
  for (int64_t b = 0; b < lanes; ++b) to[b] = widen(from[b * stride]);
}

// Where rows or columns of the source go, or -1.
inline void places_of(const ConvAxis& axis, int64_t class_pitch, int64_t pitch, int64_t* at) {
  for (int64_t i = 0; i < axis.size; ++i) at[i] = -1;
  for (int64_t j = 0; j < axis.classes(); ++j)
    for (int64_t r = axis.begin(j); r < axis.end(j); ++r)
      at[axis.first(j) + r * axis.stride] = j * class_pitch + r * pitch;
}

// `some` rows of 16 elements and more rows of zeros, turned: out (16, 16).
template <typename T, typename C>
inline void turned_square(const T* from, int64_t stride, int64_t some, int64_t width, C* out) {
  C square[kSquare][kSquare];
  for (int k = 0; k < kSquare; ++k) {
    const T* const row = from + k * stride;
    if (k < some && width == kSquare) {
#pragma omp simd
      for (int i = 0; i < kSquare; ++i) square[k][i] = widen(row[i]);
    } else {
      for (int i = 0; i < kSquare; ++i) square[k][i] = k < some && i < width ? widen(row[i]) : C(0);
    }
  }
  transpose_square(square, kSquare, out);
}

template <typename C>
inline void put_lanes(const C* from, int64_t lanes, C* to) {
  if (lanes == kSquare)
    memcpy(to, from, kSquare * sizeof(C));
  else
    for (int64_t b = 0; b < lanes; ++b) to[b] = from[b];
}

// A channel whose rows follow one another.
template <typename T, typename C>
void pack_flat(const T* x, int64_t stride, int64_t some, int64_t lanes, int64_t height,
               int64_t width, const int64_t* row_at, const int64_t* column_at, C* out) {
  if (lanes < 4) {
    for (int64_t h = 0; h < height; ++h) {
      if (row_at[h] < 0) continue;
      for (int64_t w = 0; w < width; ++w)
        if (column_at[w] >= 0)
          copy_lanes(x + h * width + w, stride, some, out + row_at[h] + column_at[w]);
    }
    return;
  }
  const int64_t n = height * width;
  int64_t h = 0, w = 0;
  for (int64_t i = 0; i < n; i += kSquare) {
    const int64_t count = n - i < kSquare ? n - i : kSquare;
    alignas(64) C turned[kSquare * kSquare];
    turned_square(x + i, stride, some, count, turned);
    for (int64_t k = 0; k < count; ++k) {
      if (row_at[h] >= 0 && column_at[w] >= 0)
        put_lanes(turned + k * kSquare, lanes, out + row_at[h] + column_at[w]);
      if (++w == width) {
        w = 0;
        ++h;
      }
    }
  }
}

// The same where columns are neighbours in the source too, at least 16 of them, in 16 lanes:
// squares go where they belong, the last of a row over a part of the one before.
template <typename T, typename C>
void pack_rows(const T* x, int64_t stride, int64_t some, const ConvPackArgs& args, C* out) {
  const int64_t width = args.columns.size, left = args.columns.before;
  const int64_t first = args.rows.begin(0), last = args.rows.end(0), extent = args.columns.extent();
  const int64_t row = args.field.row, used = args.columns.end(0) - left;
  memset(out, 0, static_cast<size_t>(first * row) * sizeof(C));
  memset(out + last * row, 0, static_cast<size_t>(args.field.plane - last * row) * sizeof(C));
  for (int64_t r = first; r < last; ++r) {
    C* const to = out + r * row;
    const T* const from = x + (args.rows.first(0) + r) * width;
    memset(to, 0, static_cast<size_t>(left * kSquare) * sizeof(C));
    const int64_t behind = left + used;
    memset(to + behind * kSquare, 0, static_cast<size_t>((extent - behind) * kSquare) * sizeof(C));
    for (int64_t w = 0; w < used; w += kSquare) {
      const int64_t at = w + kSquare < used ? w : used - kSquare;
      turned_square(from + at, stride, some, kSquare, to + (left + at) * kSquare);
    }
  }
}

template <typename T>
void pack(const ConvPackArgs& args) {
  using C = compute_t<T>;
  const ConvField& field = args.field;
  const int64_t height = args.rows.size, width = args.columns.size, lanes = field.lanes;
  const int64_t classes = args.rows.classes() * args.columns.classes();
  const Scratch<int64_t> row_at(height), column_at(width);
  places_of(args.rows, args.columns.classes() * field.of_class, field.row, row_at.data());
  places_of(args.columns, field.of_class, lanes, column_at.data());
  const int64_t* const s = args.strides;
  const bool flat = s[3] == 1 && (height == 1 || s[2] == width);
  const bool direct = flat && lanes == kSquare && args.rows.stride == 1 &&
                      args.columns.stride == 1 &&
                      args.columns.end(0) - args.columns.before >= kSquare;
  const int64_t blocks = (args.channels + kPackChannels - 1) / kPackChannels;
  C* const packed = static_cast<C*>(args.packed);
  parallel_for(args.tiles * blocks, 1, [&](int64_t from, int64_t to) {
    for (int64_t unit = from; unit < to; ++unit) {
      const int64_t t = unit / blocks, c = unit % blocks * kPackChannels;
      const int64_t count = args.channels - c < kPackChannels ? args.channels - c : kPackChannels;
      const int64_t b = t * lanes, left = args.batch - b, some = left < lanes ? left : lanes;
      const T* const x = static_cast<const T*>(args.x) + b * s[0] + c * s[1];
      C* const out = packed + t * field.of_tile + c * field.plane;
      if (direct) {
        for (int64_t k = 0; k < count; ++k)
          pack_rows(x + k * s[1], s[0], some, args, out + k * field.plane);
        continue;
      }
      for (int64_t j = 0; j < classes; ++j)
        memset(out + j * field.of_class, 0, static_cast<size_t>(count * field.plane) * sizeof(C));
      if (flat) {
        for (int64_t k = 0; k < count; ++k)
          pack_flat(x + k * s[1], s[0], some, lanes, height, width, row_at.data(), column_at.data(),
                    out + k * field.plane);
        continue;
      }
      const bool channels_last = s[1] == 1 && lanes >= 4;
      for (int64_t h = 0; h < height; ++h)
        for (int64_t w = 0; row_at[h] >= 0 && w < width; ++w) {
          if (column_at[w] < 0) continue;
          C* const at = out + row_at[h] + column_at[w];
          const T* const pixel = x + h * s[2] + w * s[3];
          alignas(64) C turned[kSquare * kSquare];
          if (channels_last) turned_square(pixel, s[0], some, count, turned);
          for (int64_t k = 0; k < count; ++k)
            if (channels_last)
              put_lanes(turned + k * kSquare, lanes, at + k * field.plane);
            else
              copy_lanes(pixel + k * s[1], s[0], some, at + k * field.plane);
        }
    }
  });
  memset(packed + args.tiles * field.of_tile, 0,
         static_cast<size_t>(conv_slack(field)) * sizeof(C));
}

// ---- writing ----

// Results of a strip: element (i, r, q, b) of `from`, whose columns and lanes are side by side.
struct Strip {
  int64_t plane, row, planes, rows, columns, lanes, some;
};

template <typename T>
void write_strip(const Strip& strip, const compute_t<T>* from, T* y, const int64_t* s) {
  using C = compute_t<T>;
  const int64_t lanes = strip.lanes;
  alignas(64) C turned[kSquare * kSquare];
  if (s[1] == 1 && s[3] != 1 && lanes >= 4) {
    for (int64_t i = 0; i < strip.planes; i += kSquare) {
      const int64_t count = strip.planes - i < kSquare ? strip.planes - i : kSquare;
      for (int64_t r = 0; r < strip.rows; ++r)
        for (int64_t q = 0; q < strip.columns; ++q) {
          turned_square(from + i * strip.plane + r * strip.row + q * lanes, strip.plane, count,
                        kSquare, turned);
          T* const to = y + i + r * s[2] + q * s[3];
          for (int64_t b = 0; b < strip.some; ++b)
            if (count == kSquare) {
#pragma omp simd
              for (int k = 0; k < kSquare; ++k) narrow(turned[b * kSquare + k], to + b * s[0] + k);
            } else {
              for (int64_t k = 0; k < count; ++k)
                narrow(turned[b * kSquare + k], to + b * s[0] + k);
            }
        }
    }
    return;
  }
  for (int64_t i = 0; i < strip.planes; ++i)
    for (int64_t r = 0; r < strip.rows; ++r) {
      const C* const row = from + i * strip.plane + r * strip.row;
      T* const to = y + i * s[1] + r * s[2];
      if (lanes < 4) {
        for (int64_t b = 0; b < strip.some; ++b)
          for (int64_t q = 0; q < strip.columns; ++q)
            narrow(row[q * lanes + b], to + b * s[0] + q * s[3]);
        continue;
      }
      for (int64_t q = 0; q < strip.columns; q += kSquare) {
        const int64_t count = strip.columns - q < kSquare ? strip.columns - q : kSquare;
        if constexpr (std::is_same_v<T, C>)
          if (count == kSquare && lanes == kSquare && strip.some == kSquare && s[3] == 1) {
            transpose_square(reinterpret_cast<const C(*)[kSquare]>(row + q * kSquare), s[0],
                             to + q);
            continue;
          }
        turned_square(row + q * lanes, lanes, count, kSquare, turned);
        for (int64_t b = 0; b < strip.some; ++b) {
          T* const out = to + b * s[0] + q * s[3];
          if (s[3] == 1 && count == kSquare) {
#pragma omp simd
            for (int k = 0; k < kSquare; ++k) narrow(turned[b * kSquare + k], out + k);
          } else {
            for (int64_t k = 0; k < count; ++k) narrow(turned[b * kSquare + k], out + k * s[3]);
          }
        }
      }
    }
}

// out[2 k] ← a[k], out[2 k + 1] ← b[k] of kSquare elements each.
inline void interleave(const float* a, const float* b, float* out) {
  using V [[gnu::vector_size(16)]] = float;
  using I [[gnu::vector_size(16)]] = int32_t;
  constexpr I low = {0, 4, 1, 5}, high = {2, 6, 3, 7};
  for (int k = 0; k < kSquare; k += 4) {
    V x, y;
    memcpy(&x, a + k, sizeof(V));
    memcpy(&y, b + k, sizeof(V));
    const V pairs[2] = {__builtin_shuffle(x, y, low), __builtin_shuffle(x, y, high)};
    memcpy(out + 2 * k, pairs, sizeof(pairs));
  }
}
inline void interleave(const double* a, const double* b, double* out) {
  for (int k = 0; k < kSquare; ++k) {
    out[2 * k] = a[k];
    out[2 * k + 1] = b[k];
  }
}

// Columns of `from` and `behind` in turns, which follow one another in y.
template <typename T>
void write_pairs(const Strip& strip, const compute_t<T>* from, const compute_t<T>* behind, T* y,
                 const int64_t* s) {
  using C = compute_t<T>;
  alignas(64) C first[kSquare * kSquare], second[kSquare * kSquare], both[2 * kSquare];
  for (int64_t i = 0; i < strip.planes; ++i)
    for (int64_t r = 0; r < strip.rows; ++r)
      for (int64_t q = 0; q < strip.columns; q += kSquare) {
        const int64_t at = i * strip.plane + r * strip.row + q * strip.lanes;
        const int64_t count = strip.columns - q < kSquare ? strip.columns - q : kSquare;
        turned_square(from + at, strip.lanes, count, kSquare, first);
        turned_square(behind + at, strip.lanes, count, kSquare, second);
        T* const to = y + i * s[1] + r * s[2] + 2 * q;
        for (int64_t b = 0; b < strip.some; ++b) {
          T* const out = to + b * s[0];
          if constexpr (std::is_same_v<T, C>)
            if (count == kSquare) {
              interleave(first + b * kSquare, second + b * kSquare, out);
              continue;
            }
          interleave(first + b * kSquare, second + b * kSquare, both);
          if (count == kSquare) {
#pragma omp simd
            for (int k = 0; k < 2 * kSquare; ++k) narrow(both[k], out + k);
          } else {
            for (int64_t k = 0; k < 2 * count; ++k) narrow(both[k], out + k);
          }
        }
      }
}

// With `behind`, two strips whose columns are written in turns.
template <typename C>
void write(const ConvGatherArgs& args, const Strip& strip, const C* from, int64_t offset,
           const C* behind = nullptr) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(compute_t<T>) == sizeof(C)) {
      T* const y = static_cast<T*>(args.y) + offset;
      if (behind != nullptr)
        write_pairs(strip, from, behind, y, args.strides);
      else
        write_strip(strip, from, y, args.strides);
    }
  });
}

// ---- sums ----

template <typename C, int R>
struct Tile {
  static constexpr int kWidth = kConvTile<C> / R;
  static constexpr int kLanes = kRegisterLanes<C>;
  static constexpr int kInRow = kWidth / kLanes, kCount = kConvTile<C> / kLanes;
  static_assert(kInRow > 0);
};

template <typename C, int R>
inline void ask_for(const C* at, int64_t row) {
  constexpr int kBytes = Tile<C, R>::kWidth * static_cast<int>(sizeof(C));
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < kBytes; i += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(at + r * row) + i);
}

// Σ_e w_e in[shift_e + ·] of a tile: all sums in registers.
template <typename C, int R>
inline void sum_tile(const C* in, int64_t row, const int64_t* shift, const C* weight, int64_t count,
                     int64_t out_row, C* out) {
  using G = Tile<C, R>;
  Register<C> sums[G::kCount] = {};
  for (int64_t e = 0; e < count; ++e) {
    const C w = weight[e];
    const C* const x = in + shift[e];
    if (e + kAhead < count) ask_for<C, R>(in + shift[e + kAhead], row);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < G::kInRow; ++v)
        sums[r * G::kInRow + v] += w * load_register(x + r * row + v * G::kLanes);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < G::kInRow; ++v)
      store_register(out + r * out_row + v * G::kLanes, sums[r * G::kInRow + v]);
}

template <typename C, int R>
void gather(const ConvGatherArgs& args) {
  constexpr int kWidth = Tile<C, R>::kWidth;
  constexpr int64_t kRow = 4 * kWidth;
  const ConvField& field = args.field;
  const ConvList& list = args.list;
  const int64_t strip_columns = conv_strip_columns(field.lanes, kConvTile<C>, R);
  const int64_t strips = (args.columns + strip_columns - 1) / strip_columns;
  const int64_t groups = (args.rows + R - 1) / R;
  const int64_t pieces = (args.planes + kPlanes - 1) / kPlanes;
  const C* const weight = static_cast<const C*>(list.weight);
  const C* const bias = static_cast<const C*>(args.bias);
  const bool rectified = args.activation == Activation::relu;
  const bool plain = bias == nullptr && !rectified;
  parallel_for(args.tiles * groups * strips * pieces, 1, [&](int64_t from, int64_t to) {
    const Scratch<C> results(kPlanes * R * kRow);
    for (int64_t unit = from; unit < to; ++unit) {
      const int64_t first = unit % pieces * kPlanes, strip = unit / pieces % strips;
      const int64_t group = unit / pieces / strips % groups, t = unit / pieces / strips / groups;
      const int64_t count = args.planes - first < kPlanes ? args.planes - first : kPlanes;
      const int64_t r = group * R, q = strip * strip_columns, b = t * field.lanes;
      const int64_t rows = args.rows - r < R ? args.rows - r : R;
      const int64_t columns = args.columns - q < strip_columns ? args.columns - q : strip_columns;
      const C* const in =
          static_cast<const C*>(args.in) + t * field.of_tile + r * field.row + q * field.lanes;
      for (int64_t k = 0; k < columns * field.lanes; k += kWidth)
        for (int64_t i = 0; i < count; ++i) {
          const int64_t begin = list.begin[first + i], end = list.end[first + i];
          C* const out = results.data() + i * R * kRow + k;
          sum_tile<C, R>(in + k, field.row, list.shift + begin, weight + begin, end - begin, kRow,
                         out);
          if (plain) continue;
          const C own = bias != nullptr ? bias[first + i] : C(0);
          for (int j = 0; j < R; ++j) {
            C* const row = out + j * kRow;
#pragma omp simd
            for (int l = 0; l < kWidth; ++l) {
              const C z = row[l] + own;
              row[l] = rectified ? activated<Activation::relu>(z) : z;
            }
          }
        }
      const int64_t left = args.batch - b, some = left < field.lanes ? left : field.lanes;
      const int64_t* const s = args.strides;
      write(args, Strip{R * kRow, kRow, count, rows, columns, field.lanes, some}, results.data(),
            b * s[0] + first * s[1] + r * s[2] + q * s[3]);
    }
  });
}

// Of a tile: Σ_e w_e g[shift_e + ·], and the products of x and g[shift_e + ·] added to the lanes of
// the entries.
template <typename C, int R, bool kDx>
inline void both_of_tile(const C* x, const C* g, int64_t row, const int64_t* shift, const C* weight,
                         int64_t count, C* lanes, int64_t out_row, C* out) {
  using G = Tile<C, R>;
  constexpr int kDots = kBatchLanes / G::kLanes;
  Register<C> sums[G::kCount] = {};
  for (int64_t e = 0; e < count; ++e) {
    const C* const at = g + shift[e];
    C* const own = lanes + e * kBatchLanes;
    if (e + kAhead < count) ask_for<C, R>(g + shift[e + kAhead], row);
    const C w = kDx ? weight[e] : C(0);
    Register<C> dots[kDots];
    for (int i = 0; i < kDots; ++i) dots[i] = load_register(own + i * G::kLanes);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < G::kInRow; ++v) {
        const int k = r * G::kInRow + v;
        const Register<C> part = load_register(at + r * row + v * G::kLanes);
        if (kDx) sums[k] += w * part;
        dots[k % kDots] += load_register(x + k * G::kLanes) * part;
      }
    for (int i = 0; i < kDots; ++i) store_register(own + i * G::kLanes, dots[i]);
  }
  if (kDx)
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < G::kInRow; ++v)
        store_register(out + r * out_row + v * G::kLanes, sums[r * G::kInRow + v]);
}

template <typename C>
inline C folded(const C* lanes) {
  C part[kBatchLanes];
  memcpy(part, lanes, sizeof(part));
  for (int half = kBatchLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

template <typename C, int R, bool kDx>
void sample(const ConvSampleArgs& all) {
  constexpr int kWidth = Tile<C, R>::kWidth;
  constexpr int64_t kRow = 4 * kWidth;
  const ConvGatherArgs& args = all.gather;
  const ConvField& field = args.field;
  const int64_t lanes = field.lanes;
  const int64_t strip_columns = conv_strip_columns(lanes, kConvTile<C>, R);
  const int64_t* const shift = args.list.shift;
  const C* const weight = static_cast<const C*>(args.list.weight);
  C* const dvalues = static_cast<C*>(all.dvalues);
  const ConvTwin classes[2] = {{args.list.begin, args.list.end, args.in, all.x},
                               all.twin != nullptr ? *all.twin : ConvTwin{}};
  const int count_classes = all.twin != nullptr ? 2 : 1;
  const int64_t some_planes = kPlanes / count_classes;
  constexpr int64_t kResults = R * kRow;
  // A thread has planes of x, and all entries that belong to them.
  parallel_for(args.planes, 1, [&](int64_t from, int64_t to) {
    const Scratch<C> results(kDx ? kPlanes * kResults : 0);
    const int64_t own_planes = to - from;
    const Scratch<int64_t> own(count_classes * own_planes);
    int64_t entries = 0;
    for (int j = 0; j < count_classes; ++j)
      for (int64_t c = from; c < to; ++c) {
        own[j * own_planes + c - from] = entries;
        entries += classes[j].end[c] - classes[j].begin[c];
      }
    const Scratch<C> sums(entries * kBatchLanes);
    const auto tiles_of = [&](int j, int64_t t, int64_t r, int64_t q, int64_t rows, int64_t length,
                              int64_t first, int64_t count, C* out) {
      const ConvTwin& of = classes[j];
      const int64_t at = r * field.row + q * lanes;
      const int64_t x_at = r * all.of_x.row + q * lanes;
      const C* const g = static_cast<const C*>(of.in) + t * field.of_tile + at;
      const C* const x = static_cast<const C*>(of.x) + t * all.of_x.of_tile + x_at;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t c = first + i, begin = of.begin[c];
        for (int64_t k = 0; k < length; k += kWidth) {
          // What is behind the row adds zeros.
          alignas(64) C tile[kConvTile<C>];
          const int64_t some = length - k < kWidth ? length - k : kWidth;
          const C* const at_c = x + c * all.of_x.plane + k;
          for (int i_row = 0; i_row < R; ++i_row) {
            C* const to_row = tile + i_row * kWidth;
            memcpy(to_row, at_c + i_row * all.of_x.row, kWidth * sizeof(C));
            for (int64_t l = i_row < rows ? some : 0; l < kWidth; ++l) to_row[l] = C(0);
          }
          both_of_tile<C, R, kDx>(tile, g + k, field.row, shift + begin,
                                  kDx ? weight + begin : nullptr, of.end[c] - begin,
                                  sums.data() + own[j * own_planes + c - from] * kBatchLanes, kRow,
                                  kDx ? out + i * kResults + k : nullptr);
        }
      }
    };
    const auto strip_of = [&](int64_t t, int64_t r, int64_t q, int64_t first, int64_t count) {
      const int64_t rows = args.rows - r < R ? args.rows - r : R;
      const int64_t columns = args.columns - q < strip_columns ? args.columns - q : strip_columns;
      C* const behind = all.twin != nullptr ? results.data() + some_planes * kResults : nullptr;
      tiles_of(0, t, r, q, rows, columns * lanes, first, count, results.data());
      if (all.twin != nullptr) tiles_of(1, t, r, q, rows, columns * lanes, first, count, behind);
      if (!kDx) return;
      const int64_t b = t * lanes, left = args.batch - b, some = left < lanes ? left : lanes;
      const int64_t* const s = args.strides;
      write(args, Strip{kResults, kRow, count, rows, columns, lanes, some}, results.data(),
            b * s[0] + first * s[1] + r * s[2] + q * count_classes * s[3], behind);
    };
    for (int64_t t = 0; t < args.tiles; ++t) {
      memset(sums.data(), 0, static_cast<size_t>(entries * kBatchLanes) * sizeof(C));
      for (int64_t r = 0; r < args.rows; r += R)
        for (int64_t q = 0; q < args.columns; q += strip_columns)
          for (int64_t first = from; first < to; first += some_planes)
            strip_of(t, r, q, first, to - first < some_planes ? to - first : some_planes);
      for (int j = 0; j < count_classes; ++j)
        for (int64_t c = from; c < to; ++c) {
          const C* sum_of = sums.data() + own[j * own_planes + c - from] * kBatchLanes;
          for (int64_t e = classes[j].begin[c]; e < classes[j].end[c]; ++e, sum_of += kBatchLanes) {
            C* const sum = dvalues + args.list.place[e];
            *sum = (t > 0 || all.add ? *sum : C(0)) + folded(sum_of);
          }
        }
    }
  });
}

// ---- entries ----

template <typename C>
void entries_by_rows(const ConvEntriesArgs& args) {
  const ConvShape& shape = args.shape;
  const ConvField& field = args.field;
  const int64_t in_group = shape.channels / shape.groups, taps = shape.taps();
  const int64_t columns = in_group * taps;
  // Of each column of W.
  const Scratch<int64_t> shift(columns);
  for (int64_t j = 0; j < columns; ++j) {
    const int64_t y = j % taps / shape.columns.taps, x = j % shape.columns.taps;
    shift[j] = shape.class_of(y, x) * field.of_class + j / taps * field.plane +
               shape.rows.shift_of(y) * field.row + shape.columns.shift_of(x) * field.lanes;
  }
  parallel_for(shape.outputs, 64, [&](int64_t from, int64_t to) {
    for (int64_t o = from; o < to; ++o) {
      const int64_t group = o / (shape.outputs / shape.groups);
      for (int64_t e = args.view.offsets[o]; e < args.view.offsets[o + 1]; ++e)
        args.shift[e] = shift[args.view.index[e]] + group * in_group * field.plane;
    }
  });
}

template <typename C>
void entries_by_columns(const ConvEntriesArgs& args) {
  const ConvShape& shape = args.shape;
  const ConvField& field = args.field;
  const SparseView& view = args.view;
  const int64_t in_group = shape.channels / shape.groups, taps = shape.taps();
  const int64_t rows_in_group = shape.outputs / shape.groups;
  const C* const values = static_cast<const C*>(args.values);
  C* const weight = static_cast<C*>(args.weight);
  parallel_for(in_group, 16, [&](int64_t from, int64_t to) {
    for (int64_t ci = from; ci < to; ++ci) {
      int64_t at = view.offsets[ci * taps];
      for (int64_t group = 0; group < shape.groups; ++group)
        for (int64_t j = 0; j < shape.classes(); ++j) {
          const int64_t plane = j * shape.channels + group * in_group + ci;
          args.begin[plane] = at;
          for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t y = tap / shape.columns.taps, x = tap % shape.columns.taps;
            if (shape.class_of(y, x) != j) continue;
            const int64_t shift =
                shape.rows.shift_of(y) * field.row + shape.columns.shift_of(x) * field.lanes;
            const int64_t column = ci * taps + tap;
            const int64_t last = first_of_row(view, column, (group + 1) * rows_in_group);
            for (int64_t e = first_of_row(view, column, group * rows_in_group); e < last; ++e) {
              args.shift[at] = view.index[e] * field.plane - shift;
              args.place[at] = view.order[e];
              if (values != nullptr) weight[at] = values[view.order[e]];
              ++at;
            }
          }
          args.end[plane] = at;
        }
    }
  });
}

// call(rows read together) as a constant, for a compute type.
template <typename C, typename Call>
inline void with_rows(const ConvGatherArgs& args, const Call& call) {
  const int64_t length = args.columns * args.field.lanes;
  switch (conv_rows_at_once(args.rows, length, kConvTile<C>)) {
    case 1:
      return call(std::integral_constant<int, 1>());
    case 2:
      return call(std::integral_constant<int, 2>());
    default:
      return call(std::integral_constant<int, 4>());
  }
}

template <typename C>
void gather_of(const ConvGatherArgs& args) {
  with_rows<C>(args, [&](auto rows) { gather<C, decltype(rows)::value>(args); });
}

template <typename C>
void sample_of(const ConvSampleArgs& args) {
  with_rows<C>(args.gather, [&](auto rows) {
    constexpr int R = decltype(rows)::value;
    if (args.gather.y != nullptr)
      sample<C, R, true>(args);
    else
      sample<C, R, false>(args);
  });
}

}  // namespace

void sparse_conv_pack(const ConvPackArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { pack<decltype(zero)>(args); });
}

void sparse_conv_entries(const ConvEntriesArgs& args, Context) {
  if (!args.by_columns)
    entries_by_rows<float>(args);
  else if (args.wide)
    entries_by_columns<double>(args);
  else
    entries_by_columns<float>(args);
}

void sparse_conv_gather(const ConvGatherArgs& args, Context) {
  if (args.dtype == Dtype::float64)
    gather_of<double>(args);
  else
    gather_of<float>(args);
}

void sparse_conv_sample(const ConvSampleArgs& args, Context) {
  if (args.gather.dtype == Dtype::float64)
    sample_of<double>(args);
  else
    sample_of<float>(args);
}

}  // namespace regkern::REGKERN_ISA
