#include "masks/shapes.h"

#include <cstring>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

constexpr int64_t kDrawGrain = 64;  // samples

int64_t plane_grain(const Images& m) {
  return 1 + (int64_t{1} << 15) / (m.height * m.width * m.inner + 1);
}

// f(kept, begin, end) for the runs of equal bits among the first n.
template <typename F>
void walk_runs(const uint32_t* bits, int64_t n, F&& f) {
  for (int64_t i = 0; i < n;) {
    const bool kept = (bits[i / 32] >> (i % 32) & 1u) != 0;
    int64_t end = i;
    while (end < n) {
      // Ones where a bit differs from the run's.
      const uint32_t word = (kept ? ~bits[end / 32] : bits[end / 32]) >> (end % 32);
      if (word != 0) {
        end += __builtin_ctz(word);
        break;
      }
      end += 32 - end % 32;
    }
    end = end < n ? end : n;
    f(kept, i, end);
    i = end;
  }
}

void clear_bits(uint32_t* bits, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t within = begin % 32, left = 32 - within;
    const int64_t n = end - begin < left ? end - begin : left;
    bits[begin / 32] &= ~(low_bits(n) << within);
    begin += n;
  }
}

template <typename T>
void put_fill(const MaskMixArgs& args, int64_t outer, int64_t begin, int64_t end, T* y) {
  using C = compute_t<T>;
  const int64_t inner = args.images.inner;
  if (inner == 1 || args.value_count == 1) {
    const T value = narrowed<T>(static_cast<C>(fill_of(args, outer, 0)));
    for (int64_t e = begin * inner; e < end * inner; ++e) y[e] = value;
    return;
  }
  for (int64_t i = 0; i < inner; ++i) {
    const T value = narrowed<T>(static_cast<C>(fill_of(args, outer, i)));
    for (int64_t pixel = begin; pixel < end; ++pixel) y[pixel * inner + i] = value;
  }
}

template <typename T>
void mix_as(const MaskMixArgs& args) {
  const Images& m = args.images;
  const int64_t pixels = m.height * m.width, plane = pixels * m.inner, words = bit_words(pixels);
  const T* const x = static_cast<const T*>(args.x);
  T* const y = static_cast<T*>(args.y);
  const bool streaming =
      args.x != args.y &&
      m.batch * sample_size(m) * static_cast<int64_t>(sizeof(T)) > kStreamingBytes;
  const auto copy = [&](const T* from, T* to, int64_t n) {
    copy_bytes(from, to, n * static_cast<int64_t>(sizeof(T)), streaming);
  };
  parallel_for(m.batch * m.outer, plane_grain(m), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / m.outer, o = i % m.outer;
      const T* const own = x + i * plane;
      const T* const theirs =
          args.partner != nullptr ? x + (args.partner[b] * m.outer + o) * plane : nullptr;
      T* const out = y + i * plane;
      walk_runs(args.bits + b * words, pixels, [&](bool kept, int64_t from, int64_t to) {
        const int64_t at = from * m.inner, n = (to - from) * m.inner;
        if (kept) {
          if (own != out) copy(own + at, out + at, n);
        } else if (theirs != nullptr) {
          copy(theirs + at, out + at, n);
        } else {
          put_fill(args, o, from, to, out);
        }
      });
    }
    if (streaming) stream_fence();
  });
}

// sum += g.
template <typename T, typename C>
void add_run(const T* g, int64_t n, C* sum) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<C>(widen(g[i]));
}

// The entries of each target, in rising order.
void link(const int64_t* target, int64_t entries, int64_t targets, int64_t* head, int64_t* next) {
  for (int64_t j = 0; j < targets; ++j) head[j] = -1;
  for (int64_t i = entries - 1; i >= 0; --i) {
    next[i] = head[target[i]];
    head[target[i]] = i;
  }
}

template <typename T>
void adjoint_as(const MaskMixAdjointArgs& args) {
  using C = compute_t<T>;
  const Images& m = args.images;
  const int64_t pixels = m.height * m.width, plane = pixels * m.inner, words = bit_words(pixels);
  const T* const g = static_cast<const T*>(args.g);
  parallel_for(m.batch * m.outer, plane_grain(m), [&](int64_t begin, int64_t end) {
    Scratch<C> sum(plane);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t j = t / m.outer, o = t % m.outer;
      memset(sum.data(), 0, static_cast<size_t>(plane) * sizeof(C));
      const auto add = [&](int64_t i, bool wanted) {
        const T* const from = g + (i * m.outer + o) * plane;
        walk_runs(args.bits + i * words, pixels, [&](bool kept, int64_t a, int64_t z) {
          if (kept == wanted)
            add_run(from + a * m.inner, (z - a) * m.inner, sum.data() + a * m.inner);
        });
      };
      add(j, true);
      for (int64_t i = args.head[j]; i >= 0; i = args.next[i]) add(i, false);
      T* const out = static_cast<T*>(args.out) + t * plane;
      for (int64_t e = 0; e < plane; ++e) narrow(sum[e], out + e);
    }
  });
}

template <typename T>
void mosaic_as(const MosaicArgs& args) {
  const Images& m = args.images;
  const int64_t plane = m.height * m.width * m.inner;
  const T* const x = static_cast<const T*>(args.x);
  const bool streaming =
      m.batch * sample_size(m) * static_cast<int64_t>(sizeof(T)) > kStreamingBytes;
  parallel_for(m.batch * m.outer, plane_grain(m), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / m.outer, o = i % m.outer;
      T* const out = static_cast<T*>(args.y) + i * plane;
      for (int q = 0; q < 4; ++q) {
        const Quadrant a = quadrant_of(args, b, q);
        const T* const from = x + (args.partner[4 * b + q] * m.outer + o) * plane;
        const int64_t n = (a.box.x1 - a.box.x0) * m.inner;
        for (int64_t row = a.box.y0; row < a.box.y1; ++row)
          copy_bytes(from + ((row + a.dy) * m.width + a.box.x0 + a.dx) * m.inner,
                     out + (row * m.width + a.box.x0) * m.inner,
                     n * static_cast<int64_t>(sizeof(T)), streaming);
      }
    }
    if (streaming) stream_fence();
  });
}

template <typename T>
void mosaic_adjoint_as(const MosaicArgs& args) {
  using C = compute_t<T>;
  const Images& m = args.images;
  const int64_t plane = m.height * m.width * m.inner;
  const T* const g = static_cast<const T*>(args.x);
  parallel_for(m.batch * m.outer, plane_grain(m), [&](int64_t begin, int64_t end) {
    Scratch<C> sum(plane);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t j = t / m.outer, o = t % m.outer;
      memset(sum.data(), 0, static_cast<size_t>(plane) * sizeof(C));
      for (int64_t i = args.head[j]; i >= 0; i = args.next[i]) {
        const Quadrant a = quadrant_of(args, i / 4, static_cast<int>(i % 4));
        const T* const from = g + (i / 4 * m.outer + o) * plane;
        for (int64_t row = a.box.y0; row < a.box.y1; ++row)
          add_run(from + (row * m.width + a.box.x0) * m.inner, (a.box.x1 - a.box.x0) * m.inner,
                  sum.data() + ((row + a.dy) * m.width + a.box.x0 + a.dx) * m.inner);
      }
      T* const out = static_cast<T*>(args.y) + t * plane;
      for (int64_t e = 0; e < plane; ++e) narrow(sum[e], out + e);
    }
  });
}

}  // namespace

void shape_bits(const ShapeBitsArgs& args, Context) {
  const int64_t pixels = args.height * args.width, words = bit_words(pixels);
  parallel_for(args.batch, 1 + 8192 / (pixels + 1), [&](int64_t begin, int64_t end) {
    Scratch<int64_t> runs(args.width + 1);  // where hidden ones begin and end
    for (int64_t b = begin; b < end; ++b) {
      ShapeRow row(args, b);
      uint32_t* const bits = args.bits + b * words;
      memset(bits, 0xFF, static_cast<size_t>(words) * sizeof(uint32_t));
      if (pixels % 32 != 0) bits[words - 1] = low_bits(pixels % 32);
      int64_t count = 0, kind = -1, kept = pixels;
      for (int64_t y = 0; y < args.height; ++y) {
        if (row.kind_of(y) != kind) {
          kind = row.kind_of(y);
          count = 0;
          bool before = true;
          for (int64_t x = 0; x < args.width; ++x) {
            const bool keeps = row.keeps(y, x);
            if (keeps != before) runs[count++] = x;
            before = keeps;
          }
          if (!before) runs[count++] = args.width;
        }
        for (int64_t k = 0; k < count; k += 2) {
          clear_bits(bits, y * args.width + runs[k], y * args.width + runs[k + 1]);
          kept -= runs[k + 1] - runs[k];
        }
      }
      args.kept[b] = static_cast<int32_t>(kept);
    }
  });
}

void bands(const BandsArgs& args, Context) {
  parallel_for(args.batch, kDrawGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) draw_bands(args, b);
  });
}

void mask_mix(const MaskMixArgs& args, Context) {
  dispatch_floating_or_byte(args.dtype, [&](auto zero) { mix_as<decltype(zero)>(args); });
}

void mask_mix_adjoint(const MaskMixAdjointArgs& args, Context) {
  link(args.partner, args.images.batch, args.images.batch, args.head, args.next);
  dispatch_floating(args.dtype, [&](auto zero) { adjoint_as<decltype(zero)>(args); });
}

void mosaic(const MosaicArgs& args, Context) {
  dispatch_floating_or_byte(args.dtype, [&](auto zero) { mosaic_as<decltype(zero)>(args); });
}

void mosaic_adjoint(const MosaicArgs& args, Context) {
  link(args.partner, 4 * args.images.batch, args.images.batch, args.head, args.next);
  dispatch_floating(args.dtype, [&](auto zero) { mosaic_adjoint_as<decltype(zero)>(args); });
}

void mosaic_params(const MosaicParamsArgs& args, Context) {
  parallel_for(args.batch, kDrawGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) draw_mosaic(args, b);
  });
}

}  // namespace regkern::REGKERN_ISA
