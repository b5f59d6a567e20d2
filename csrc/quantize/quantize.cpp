#include "quantize/quantize.h"

#include "core/parallel.h"
#include "core/vec.h"
#include "quantize/range.h"
#include "quantize/thresholds.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

constexpr int kStep = kRandomBlock;  // elements that are rounded at once
static_assert(kStep == 2 * kBlock && kTile % kStep == 0);
constexpr int kPadded = kTile + kStep;

// ---- a tile's elements to and from the compute type ----

template <typename C>
void load_as(Dtype dtype, const void* x, int64_t e, int n, C* out) {
  dispatch_floating(dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(compute_t<T>) == sizeof(C))
      load_elements(static_cast<const T*>(x) + e, n, out);
  });
}

// n results to y, past the cache where `streaming`.
template <typename T, typename C>
void store_as(const C* in, int n, T* y, bool streaming) {
  if (!streaming) return store_elements(in, n, y);
  alignas(64) T out[kPadded];
  store_elements(in, n, out);
  copy_bytes(out, y, n * static_cast<int64_t>(sizeof(T)), true);
}

inline void store_codes(const QuantizeArgs& args, const float* in, int64_t e, int n) {
  const Grid& g = args.rounder.grid;
  uint32_t code[kPadded];
  if (g.kind == Kind::integer) {
#pragma omp simd
    for (int i = 0; i < n; ++i)
      code[i] = static_cast<uint32_t>(static_cast<int32_t>(in[i] == in[i] ? in[i] : 0.0f));
  } else {
#pragma omp simd
    for (int i = 0; i < n; ++i) code[i] = encode(in[i], g);
  }
  if (args.store == Store::code16) {
    auto* y = static_cast<uint16_t*>(args.y) + e;
    for (int i = 0; i < n; ++i) y[i] = static_cast<uint16_t>(code[i]);
  } else if (args.store == Store::code8) {
    auto* y = static_cast<uint8_t*>(args.y) + e;
    for (int i = 0; i < n; ++i) y[i] = static_cast<uint8_t>(code[i]);
  } else {
    // Two neighbours share a byte; a tile starts and ends at an even element, or at the last one.
    auto* y = static_cast<uint8_t*>(args.y) + e / 2;
    for (int i = 0; i < n; i += 2)
      y[i / 2] = static_cast<uint8_t>((code[i] & 15u) | (i + 1 < n ? code[i + 1] << 4 : 0u));
  }
}
// Codes are of float inputs: double has none.
inline void store_codes(const QuantizeArgs&, const double*, int64_t, int) {}

template <typename C>
void store_tile(const QuantizeArgs& args, const C* in, int64_t e, int n, bool streaming) {
  switch (args.store) {
    case Store::float32:
      if constexpr (sizeof(C) == 4) {
        return store_as(in, n, static_cast<float*>(args.y) + e, streaming);
      } else {
        auto* y = static_cast<float*>(args.y) + e;
        for (int i = 0; i < n; ++i) y[i] = static_cast<float>(in[i]);
        return;
      }
    case Store::float64:
      if constexpr (sizeof(C) == 8)
        return store_as(in, n, static_cast<double*>(args.y) + e, streaming);
      return;
    case Store::bfloat16:
      if constexpr (sizeof(C) == 4)
        return store_as(in, n, static_cast<bfloat16*>(args.y) + e, streaming);
      return;
    case Store::float16:
      if constexpr (sizeof(C) == 4)
        return store_as(in, n, static_cast<float16*>(args.y) + e, streaming);
      return;
    default:
      return store_codes(args, in, e, n);
  }
}

// ---- rounding of a tile ----

// Scale and zero point of every element of a tile.
template <typename C>
struct Scales {
  alignas(64) C inverse[kPadded], scale[kPadded], zero_point[kPadded];

  void fill(int begin, int end, const Scale<C>& s, bool zero_points) {
    const C i = s.inverse, f = s.scale, z = s.zero_point;
#pragma omp simd
    for (int k = begin; k < end; ++k) {
      inverse[k] = i;
      scale[k] = f;
    }
    if (!zero_points) return;
#pragma omp simd
    for (int k = begin; k < end; ++k) zero_point[k] = z;
  }
};

// What stochastic rounding draws for a tile: carries of a cut grid, else thresholds.
template <typename C>
struct Drawn {
  union {
    alignas(64) C threshold[kPadded + kStep];
    alignas(64) uint32_t carry[kPadded + kStep];
  };
};

// Whether n elements, scaled, are within the range of a grid. By itself: a loop that also writes
// bytes is unrolled to the width of those.
template <typename C>
void find_inside(const C* x, int n, const Scales<C>* scales, C max, uint8_t* inside) {
  if (scales != nullptr) {
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const C t = x[i] * scales->inverse[i];
      inside[i] = !(t > max || t < -max);
    }
  } else {
#pragma omp simd
    for (int i = 0; i < n; ++i) inside[i] = !(x[i] > max || x[i] < -max);
  }
}

// x and y may be one. `codes`: the numbers of the grid itself, unscaled. `inside` may be null.
template <typename C, Kind kKind, Rounding kRounding, bool kScaled>
void round_tile(const QuantizeArgs& args, const C* x, int n, const Drawn<C>& drawn, int skip,
                const Scales<C>* scales, bool codes, C* y, uint8_t* inside) {
  const Rounder r = args.rounder;
  const Grid g = r.grid;
  const auto threshold_of = [&](int i) {
    return is_random(kRounding) ? drawn.threshold[skip + i] : fixed_threshold<C>(kRounding);
  };
  if constexpr (kKind == Kind::cut) {
    const int dropped = 23 - g.mantissa_bits;
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const uint32_t carry = kRounding == Rounding::stochastic ? drawn.carry[skip + i]
                                                               : fixed_carry(kRounding, dropped);
      y[i] = round_cut(x[i], g, kRounding, r.saturate, carry);
    }
    if (inside != nullptr) memset(inside, 1, static_cast<size_t>(n));
  } else if constexpr (kKind == Kind::floating) {
    const C rescale = codes ? C(0) : C(1);
    if (inside != nullptr)
      find_inside(x, n, kScaled ? scales : nullptr, static_cast<C>(g.max), inside);
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const C threshold = threshold_of(i);
      const C t = kScaled ? x[i] * scales->inverse[i] : x[i];
      const C v = round_floating(t, g, kRounding, r.saturate, threshold);
      y[i] = kScaled ? v * (rescale == C(0) ? C(1) : scales->scale[i]) : v;
    }
  } else {
    const C low = static_cast<C>(g.low), high = static_cast<C>(g.high);
    if (!codes && inside == nullptr) {
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const C q = round_integer(x[i] * scales->inverse[i], scales->zero_point[i], kRounding,
                                  threshold_of(i));
        y[i] = (clamped(q, low, high) - scales->zero_point[i]) * scales->scale[i];
      }
      return;
    }
#pragma omp simd
    for (int i = 0; i < n; ++i)
      y[i] = round_integer(x[i] * scales->inverse[i], scales->zero_point[i], kRounding,
                           threshold_of(i));
    if (inside != nullptr) {
#pragma omp simd
      for (int i = 0; i < n; ++i) inside[i] = !(y[i] < low || y[i] > high);
    }
    if (codes) {
#pragma omp simd
      for (int i = 0; i < n; ++i) y[i] = clamped(y[i], low, high);
    } else {
#pragma omp simd
      for (int i = 0; i < n; ++i)
        y[i] = (clamped(y[i], low, high) - scales->zero_point[i]) * scales->scale[i];
    }
  }
}

template <typename C>
using TileFunction = void (*)(const QuantizeArgs&, const C*, int, const Drawn<C>&, int,
                              const Scales<C>*, bool, C*, uint8_t*);

template <typename C, Kind kKind, bool kScaled>
TileFunction<C> tile_function(Rounding rounding) {
  switch (rounding) {
    case Rounding::nearest_even:
      return round_tile<C, kKind, Rounding::nearest_even, kScaled>;
    case Rounding::nearest_away:
      return round_tile<C, kKind, Rounding::nearest_away, kScaled>;
    case Rounding::toward_zero:
      return round_tile<C, kKind, Rounding::toward_zero, kScaled>;
    case Rounding::floor:
      return round_tile<C, kKind, Rounding::floor, kScaled>;
    case Rounding::stochastic:
      return round_tile<C, kKind, Rounding::stochastic, kScaled>;
    case Rounding::noise:
      if constexpr (kKind == Kind::integer) return round_tile<C, kKind, Rounding::noise, kScaled>;
  }
  return nullptr;
}

template <typename C>
TileFunction<C> tile_function(const QuantizeArgs& args) {
  const Rounding rounding = args.rounder.rounding;
  const bool scaled = args.scale.rule != ScaleRule::none;
  if constexpr (sizeof(C) == 4)
    if (args.rounder.grid.kind == Kind::cut) return tile_function<C, Kind::cut, false>(rounding);
  if (args.rounder.grid.kind == Kind::integer)
    return tile_function<C, Kind::integer, true>(rounding);
  return scaled ? tile_function<C, Kind::floating, true>(rounding)
                : tile_function<C, Kind::floating, false>(rounding);
}

// The bits of n elements from e on. A word that a neighbouring run may share is changed atomically;
// all words are zero before.
void store_inside(const uint8_t* inside, int64_t e, int n, uint32_t* out) {
  for (int i = 0; i < n;) {
    const int64_t at = e + i;
    const int shift = static_cast<int>(at & 31);
    const int count = 32 - shift < n - i ? 32 - shift : n - i;
    uint32_t word = 0;
    if (count == 32) {
#pragma omp simd reduction(| : word)
      for (int k = 0; k < 32; ++k) word |= static_cast<uint32_t>(inside[i + k]) << k;
      out[at >> 5] = word;
    } else {
      for (int k = 0; k < count; ++k) word |= static_cast<uint32_t>(inside[i + k]) << (shift + k);
      __atomic_fetch_or(out + (at >> 5), word, __ATOMIC_RELAXED);
    }
    i += count;
  }
}

// ---- ranges ----

// The range of the columns of a tile. Where the largest magnitude is all that counts, that of its
// bits; else the least and the largest of range.h's keys, which lose no NaN.
template <typename C>
class Ranges {
  using Key = order_key_t<C>;
  static constexpr Key kMagnitude = static_cast<Key>(Layout<C>::kMagnitude);

 public:
  explicit Ranges(bool magnitude) : magnitude_(magnitude) {}

  void reset(int n) {
    for (int i = 0; i < n; ++i) {
      low_[i] = kLeastKey<C>;
      high_[i] = magnitude_ ? 0 : kLargestKey<C>;
    }
  }
  void add(const C* x, int n) {
    if (magnitude_) {
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const Key key = bit_cast<Key>(x[i]) & kMagnitude;
        high_[i] = key > high_[i] ? key : high_[i];
      }
      return;
    }
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const Key key = order_key(x[i]);
      low_[i] = key < low_[i] ? key : low_[i];
      high_[i] = key > high_[i] ? key : high_[i];
    }
  }
  // Of the columns [begin, end).
  void of(int begin, int end, C* low, C* high) const {
    Key least = kLeastKey<C>, most = high_[begin];
    if (!magnitude_) {
#pragma omp simd reduction(min : least)
      for (int i = begin; i < end; ++i) least = low_[i] < least ? low_[i] : least;
    }
#pragma omp simd reduction(max : most)
    for (int i = begin; i < end; ++i) most = high_[i] > most ? high_[i] : most;
    finish(least, most, low, high);
  }
  // Of n elements by themselves.
  void of(const C* x, int n, C* low, C* high) const {
    Key least = kLeastKey<C>, most = magnitude_ ? 0 : kLargestKey<C>;
    if (magnitude_) {
#pragma omp simd reduction(max : most)
      for (int i = 0; i < n; ++i) {
        const Key key = bit_cast<Key>(x[i]) & kMagnitude;
        most = key > most ? key : most;
      }
    } else {
#pragma omp simd reduction(min : least) reduction(max : most)
      for (int i = 0; i < n; ++i) {
        const Key key = order_key(x[i]);
        least = key < least ? key : least;
        most = key > most ? key : most;
      }
    }
    finish(least, most, low, high);
  }

 private:
  void finish(Key least, Key most, C* low, C* high) const {
    if (magnitude_) {
      *high = bit_cast<C>(most);
      *low = -*high;
      return;
    }
    Key minimum, maximum;
    finish_range<C>(least, most, &minimum, &maximum);
    *low = bit_cast<C>(minimum);
    *high = bit_cast<C>(maximum);
  }

  bool magnitude_;
  alignas(64) Key low_[kPadded], high_[kPadded];
};

// ---- the walk over the tensor ----

template <typename C>
class Walk {
 public:
  explicit Walk(const QuantizeArgs& args) : args_(args), b_(args.blocks) {
    round_ = tile_function<C>(args);
    random_ = is_random(args.rounder.rounding);
    codes_ =
        args.store == Store::code8 || args.store == Store::code4 || args.store == Store::code16;
    searching_ = is_computed(args.scale.rule) && args.minimum == nullptr;
    zero_points_ = args.scale.rule == ScaleRule::asymmetric || args.scale.zero_point != nullptr;
    const int64_t width = args.store == Store::float64                                    ? 8
                          : args.store == Store::float32                                  ? 4
                          : args.store == Store::bfloat16 || args.store == Store::float16 ? 2
                                                                                          : 1;
    // A whole line at least per row, or streaming would write the same line twice.
    streaming_ = !codes_ && args.x != args.y && args.numel * width > kStreamingBytes &&
                 reinterpret_cast<uintptr_t>(args.y) % 64 == 0 && b_.cols >= 256;
    same_ = args.dtype == (sizeof(C) == 8 ? Dtype::float64 : Dtype::float32);
    direct_ = !streaming_ && args.store == (sizeof(C) == 8 ? Store::float64 : Store::float32);
    // A piece is a range of columns that is whole blocks, or a part of one.
    if (b_.block_cols <= kTile) {
      width_ = kTile / b_.block_cols * b_.block_cols;
      pieces_ = (b_.cols + width_ - 1) / width_;
    } else {
      per_block_ = (b_.block_cols + kTile - 1) / kTile;
      pieces_ = blocks_across(b_) * per_block_;
    }
    // With ranges to be found the rows of a block belong together.
    rows_ = searching_ || b_.block_rows < 64 ? b_.block_rows : 64;
    per_block_rows_ = (b_.block_rows + rows_ - 1) / rows_;
  }

  int64_t items() const { return b_.outer * blocks_down(b_) * per_block_rows_ * pieces_; }
  int64_t item_elements() const {
    const int64_t rows = rows_ < b_.rows ? rows_ : b_.rows;
    const int64_t cols = b_.cols < kTile ? b_.cols : kTile;
    return rows * cols;
  }

  void run(int64_t begin, int64_t end) {
    Scales<C> scales;
    Ranges<C> ranges(args_.scale.rule != ScaleRule::asymmetric);
    Drawn<C> drawn;
    alignas(64) C buffer[kPadded];
    uint8_t inside[kPadded];
    const bool scaled = args_.scale.rule != ScaleRule::none;
    if (!zero_points_) memset(scales.zero_point, 0, sizeof(scales.zero_point));
    int64_t filled = -1;  // the piece whose scales stand in `scales`
    for (int64_t item = begin; item < end; ++item) {
      const int64_t piece = item % pieces_, row_piece = item / pieces_;
      const int64_t down = blocks_down(b_) * per_block_rows_;
      const int64_t o = row_piece / down, band = row_piece % down;
      const int64_t block_row = band / per_block_rows_;
      const int64_t first_row = block_row * b_.block_rows + band % per_block_rows_ * rows_;
      const int64_t block_end = (block_row + 1) * b_.block_rows;
      int64_t last_row = first_row + rows_;
      last_row = last_row < block_end ? last_row : block_end;
      last_row = last_row < b_.rows ? last_row : b_.rows;
      int64_t c0, c1, block;
      columns(piece, &c0, &c1, &block);
      const int n = static_cast<int>(c1 - c0);
      if (n <= 0) continue;
      const int64_t origin = o * b_.rows * b_.cols + c0;
      const bool single = last_row - first_row == 1;
      if (searching_ && !single) {
        ranges.reset(n);
        for (int64_t r = first_row; r < last_row; ++r)
          ranges.add(input(origin + r * b_.cols, n, buffer), n);
      }
      const int64_t first_block =
          ((b_.shared ? 0 : o) * blocks_down(b_) + block_row) * blocks_across(b_) + block;
      const C* x = single ? input(origin + first_row * b_.cols, n, buffer) : nullptr;
      if (scaled && (searching_ || filled != first_block || per_block_ == 0)) {
        fill(scales, ranges, searching_ && single ? x : nullptr, first_block, c0, n,
             first_row == block_row * b_.block_rows && (!b_.shared || o == 0));
        filled = first_block;
      }
      for (int64_t r = first_row; r < last_row; ++r) {
        const int64_t e = origin + r * b_.cols;
        if (!single) x = input(e, n, buffer);
        const int skip = random_ ? static_cast<int>(e % kStep) : 0;
        if (random_) draw(e - skip, skip + n, drawn);
        C* y = direct_ ? static_cast<C*>(args_.y) + e : buffer;
        round_(args_, x, n, drawn, skip, &scales, codes_, y,
               args_.inside != nullptr ? inside : nullptr);
        if (!direct_) store_tile(args_, buffer, e, n, streaming_);
        if (args_.inside != nullptr) store_inside(inside, e, n, args_.inside);
      }
    }
    if (streaming_) stream_fence();
  }

 private:
  void columns(int64_t piece, int64_t* c0, int64_t* c1, int64_t* block) const {
    if (per_block_ == 0) {
      *c0 = piece * width_;
      *c1 = *c0 + width_;
      *block = *c0 / b_.block_cols;
    } else {
      *block = piece / per_block_;
      *c0 = *block * b_.block_cols + piece % per_block_ * kTile;
      *c1 = *c0 + kTile;
      const int64_t end = (*block + 1) * b_.block_cols;
      *c1 = *c1 < end ? *c1 : end;
    }
    *c1 = *c1 < b_.cols ? *c1 : b_.cols;
  }

  // The n elements from e on: where they lie, or converted.
  const C* input(int64_t e, int n, C* buffer) const {
    if (same_) return static_cast<const C*>(args_.x) + e;
    load_as(args_.dtype, args_.x, e, n, buffer);
    return buffer;
  }

  void draw(int64_t first, int n, Drawn<C>& drawn) const {
    const Seed seed = load_seed(args_.seed);
    if (sizeof(C) == 4 && args_.rounder.grid.kind == Kind::cut)
      draw_carries(args_.rounder, seed, first, n, drawn.carry);
    else
      draw_thresholds(args_.rounder, seed, first, n, drawn.threshold);
  }

  // The scales of the blocks of a tile, block by block, then element by element. `x`: look for the
  // ranges there. `first`: no other piece of rows reports them.
  void fill(Scales<C>& scales, const Ranges<C>& ranges, const C* x, int64_t block, int64_t c0,
            int n, bool first) const {
    const int64_t width = b_.block_cols;
    const int offset = static_cast<int>(c0 % width);
    const int blocks = static_cast<int>((offset + n + width - 1) / width);
    const auto end_of = [&](int k) {
      const int64_t end = (k + 1) * width - offset;
      return end < n ? static_cast<int>(end) : n;
    };
    alignas(64) C low[kPadded], high[kPadded], inverse[kPadded], scale[kPadded], zero[kPadded];
    if (args_.scale.rule == ScaleRule::given) {
      for (int k = 0; k < blocks; ++k) {
        const Scale<C> s = given_scale<C>(args_.scale, block + k);
        inverse[k] = s.inverse;
        scale[k] = s.scale;
        zero[k] = s.zero_point;
      }
    } else {
      for (int k = 0, begin = 0; k < blocks; begin = end_of(k++)) {
        if (x != nullptr) {
          ranges.of(x + begin, end_of(k) - begin, low + k, high + k);
        } else if (searching_) {
          ranges.of(begin, end_of(k), low + k, high + k);
        } else {
          low[k] = static_cast<const C*>(args_.minimum)[block + k];
          high[k] = static_cast<const C*>(args_.maximum)[block + k];
        }
      }
      compute(args_.scale.rule, blocks, low, high, inverse, scale, zero);
      // Pieces of one block agree, so any may write; one does.
      if (first)
        report(block + (offset != 0), blocks - (offset != 0), scale + (offset != 0),
               zero + (offset != 0));
    }
    if (width == 1) {
      memcpy(scales.inverse, inverse, static_cast<size_t>(n) * sizeof(C));
      memcpy(scales.scale, scale, static_cast<size_t>(n) * sizeof(C));
      memcpy(scales.zero_point, zero, static_cast<size_t>(n) * sizeof(C));
      return;
    }
    for (int k = 0, begin = 0; k < blocks; begin = end_of(k++))
      scales.fill(begin, end_of(k), {scale[k], inverse[k], zero[k]}, zero_points_);
  }

  void compute(ScaleRule rule, int blocks, const C* low, const C* high, C* inverse, C* scale,
               C* zero) const {
    const ScaleOptions o = args_.scale;
    const Grid g = args_.rounder.grid;
    const C tensor = tensor_scale();
    const auto all = [&](auto constant) {
#pragma omp simd
      for (int k = 0; k < blocks; ++k) {
        const Scale<C> s = computed_scale(decltype(constant)::value, o, g, low[k], high[k], tensor);
        inverse[k] = s.inverse;
        scale[k] = s.scale;
        zero[k] = s.zero_point;
      }
    };
    if (rule == ScaleRule::mx)
      all(std::integral_constant<ScaleRule, ScaleRule::mx>{});
    else if (rule == ScaleRule::nvfp4)
      all(std::integral_constant<ScaleRule, ScaleRule::nvfp4>{});
    else if (rule == ScaleRule::symmetric)
      all(std::integral_constant<ScaleRule, ScaleRule::symmetric>{});
    else
      all(std::integral_constant<ScaleRule, ScaleRule::asymmetric>{});
  }

  C tensor_scale() const {
    return args_.scale.tensor_scale != nullptr ? static_cast<C>(*args_.scale.tensor_scale) : C(1);
  }

  void report(int64_t block, int blocks, const C* scale, const C* zero) const {
    for (int k = 0; k < blocks; ++k) {
      if (args_.scale_out != nullptr) static_cast<C*>(args_.scale_out)[block + k] = scale[k];
      if (args_.zero_point_out != nullptr)
        static_cast<C*>(args_.zero_point_out)[block + k] = zero[k];
    }
    if (args_.scale_code == nullptr) return;
    const QuantizeArgs args = args_;
    const C tensor = tensor_scale();
    uint32_t codes[kPadded];
#pragma omp simd
    for (int k = 0; k < blocks; ++k) codes[k] = scale_code(args, scale[k], tensor);
    for (int k = 0; k < blocks; ++k) args_.scale_code[block + k] = static_cast<uint8_t>(codes[k]);
  }

  const QuantizeArgs& args_;
  const Blocks& b_;
  TileFunction<C> round_;
  bool random_, codes_, searching_, zero_points_, streaming_, same_, direct_;
  int64_t width_ = 0, pieces_, per_block_ = 0;
  int64_t rows_, per_block_rows_;
};

}  // namespace

void quantize(const QuantizeArgs& args, Context) {
  const auto run = [&]<typename C>(C) {
    Walk<C> walk(args);
    const int64_t grain = 1 + (int64_t{1} << 15) / (walk.item_elements() + 1);
    parallel_for(walk.items(), grain, [&](int64_t begin, int64_t end) { walk.run(begin, end); });
  };
  if (args.dtype == Dtype::float64)
    run(double{});
  else
    run(float{});
}

}  // namespace regkern::REGKERN_ISA
