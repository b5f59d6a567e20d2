#include "masks/mix.h"

#include <cstring>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

// a x + (1 − a) o, in blocks.
template <typename T>
void blend(const T* x, const T* o, T* y, int64_t n, double weight, bool streaming) {
  using C = compute_t<T>;
  const C a = static_cast<C>(weight), b = C(1) - a;
  C u[kBlock], v[kBlock];
  alignas(64) T block[kBlock];
  int64_t i = 0;
  const auto one = [&] { narrow(a * widen(x[i]) + b * widen(o[i]), y + i); };
  if (streaming)
    for (; i < n && reinterpret_cast<uintptr_t>(y + i) % 64 != 0; ++i) one();
  for (; i + kBlock <= n; i += kBlock) {
    load_block(x + i, u);
    load_block(o + i, v);
#pragma omp simd
    for (int j = 0; j < kBlock; ++j) u[j] = a * u[j] + b * v[j];
    store_block(u, streaming ? block : y + i);
    if (streaming) stream_block(block, y + i);
  }
  for (; i < n; ++i) one();
}

// Calls inside(begin, end) for the box rows of one plane and outside(begin, end) for what is
// between them, in memory order; neighbouring pieces outside are one.
template <typename Inside, typename Outside>
void walk_plane(const Images& m, const Box& box, Inside&& inside, Outside&& outside) {
  const int64_t row = m.width * m.inner;
  int64_t done = 0;
  if (box.x0 < box.x1) {
    const bool whole = box.x0 == 0 && box.x1 == m.width;
    for (int64_t y = box.y0; y < box.y1; y = whole ? box.y1 : y + 1) {
      const int64_t begin = y * row + box.x0 * m.inner;
      const int64_t end = (whole ? box.y1 - 1 : y) * row + box.x1 * m.inner;
      if (done < begin) outside(done, begin);
      inside(begin, end);
      done = end;
    }
  }
  if (done < m.height * row) outside(done, m.height * row);
}

// A plane is worth a thread from about 2¹⁵ elements on.
int64_t plane_grain(const Images& m) {
  return 1 + (int64_t{1} << 15) / (m.height * m.width * m.inner + 1);
}

template <typename T>
void mix_planes(const MixArgs& args, int64_t begin, int64_t end) {
  const Images& m = args.images;
  const int64_t plane = m.height * m.width * m.inner;
  const T* x = static_cast<const T*>(args.x);
  const T* other = static_cast<const T*>(args.other);
  T* y = static_cast<T*>(args.y);
  const bool streaming =
      m.batch * sample_size(m) * static_cast<int64_t>(sizeof(T)) > kStreamingBytes;
  const auto copy = [&](const T* from, T* to, int64_t n) {
    copy_bytes(from, to, n * static_cast<int64_t>(sizeof(T)), streaming);
  };
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / m.outer, o = i % m.outer;
    const double weight = weight_at(args.weight, b);
    const T* own = x + i * plane;
    const T* theirs = other + (args.partner[b] * m.outer + o) * plane;
    T* out = y + i * plane;
    const Box box = weight == 1.0 ? Box{0, 0, 0, 0} : box_at(args.boxes, m, b);
    walk_plane(
        m, box,
        [&](int64_t from, int64_t to) {
          if (weight == 0.0)
            copy(theirs + from, out + from, to - from);
          else
            blend(own + from, theirs + from, out + from, to - from, weight, streaming);
        },
        [&](int64_t from, int64_t to) { copy(own + from, out + from, to - from); });
  }
  if (streaming) stream_fence();
}

// sum += a g, or sum = a g.
template <bool kAdd, typename T>
void scaled(const T* g, compute_t<T>* sum, int64_t n, compute_t<T> a) {
  using C = compute_t<T>;
  C v[kBlock];
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    load_block(g + i, v);
#pragma omp simd
    for (int j = 0; j < kBlock; ++j) sum[i + j] = (kAdd ? sum[i + j] : C(0)) + a * v[j];
  }
  for (; i < n; ++i) sum[i] = (kAdd ? sum[i] : C(0)) + a * widen(g[i]);
}

template <typename T>
void store_run(const compute_t<T>* in, T* out, int64_t n, bool streaming) {
  alignas(64) T block[kBlock];
  int64_t i = 0;
  if (streaming)
    for (; i < n && reinterpret_cast<uintptr_t>(out + i) % 64 != 0; ++i) narrow(in[i], out + i);
  for (; i + kBlock <= n; i += kBlock) {
    store_block(in + i, streaming ? block : out + i);
    if (streaming) stream_block(block, out + i);
  }
  for (; i < n; ++i) narrow(in[i], out + i);
}

template <typename T>
void adjoint_rows(const MixAdjointArgs& args, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const Images& m = args.images;
  const int64_t row = m.width * m.inner, rows = m.outer * m.height;
  const T* g = static_cast<const T*>(args.g);
  T* out = static_cast<T*>(args.out);
  Scratch<C> sum(row);
  const int64_t outputs = args.own ? m.batch : args.others;
  const bool streaming = outputs * rows * row * static_cast<int64_t>(sizeof(T)) > kStreamingBytes;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t j = r / rows, within = r % rows, y = within % m.height;
    if (!args.own) std::memset(sum.data(), 0, static_cast<size_t>(row) * sizeof(C));
    // The weight 1 outside a box is the whole row less what stands inside.
    if (args.own) {
      const T* source = g + r * row;
      const Box box = box_at(args.boxes, m, j);
      const double a = weight_at(args.weight, j);
      const bool hit = y >= box.y0 && y < box.y1 && box.x0 < box.x1 && a != 1.0;
      const int64_t x0 = hit ? box.x0 * m.inner : row, x1 = hit ? box.x1 * m.inner : row;
      scaled<false>(source, sum.data(), x0, C(1));
      if (hit && a != 0.0)
        scaled<false>(source + x0, sum.data() + x0, x1 - x0, static_cast<C>(a));
      else
        std::memset(sum.data() + x0, 0, static_cast<size_t>(x1 - x0) * sizeof(C));
      scaled<false>(source + x1, sum.data() + x1, row - x1, C(1));
    }
    if (args.from_partner) {
      for (int64_t i = args.head[j]; i >= 0; i = args.next[i]) {
        const Box box = box_at(args.boxes, m, i);
        const double a = weight_at(args.weight, i);
        if (y < box.y0 || y >= box.y1 || box.x0 >= box.x1 || a == 1.0) continue;
        const int64_t x0 = box.x0 * m.inner;
        scaled<true>(g + (i * rows + within) * row + x0, sum.data() + x0,
                     (box.x1 - box.x0) * m.inner, C(1) - static_cast<C>(a));
      }
    }
    store_run(sum.data(), out + r * row, row, streaming);
  }
  if (streaming) stream_fence();
}

template <typename T>
double dot_segment(const MixDotArgs& args, int64_t b, int64_t segment) {
  const Images& m = args.images;
  const int64_t size = sample_size(m), row = m.width * m.inner;
  const int64_t begin = segment * kDotSegment;
  const int64_t end = begin + kDotSegment < size ? begin + kDotSegment : size;
  const Box box = box_at(args.boxes, m, b);
  const T* g = static_cast<const T*>(args.g) + b * size;
  const T* x = static_cast<const T*>(args.x) + b * size;
  const T* o = static_cast<const T*>(args.other) + args.partner[b] * size;
  double lanes[kDotLanes] = {};
  if (box.x0 >= box.x1) return 0.0;
  for (int64_t r = begin / row; r * row < end; ++r) {
    const int64_t y = r % m.height;
    if (y < box.y0 || y >= box.y1) continue;
    int64_t from = r * row + box.x0 * m.inner, to = r * row + box.x1 * m.inner;
    from = from > begin ? from : begin;
    to = to < end ? to : end;
    for (int64_t e = from; e < to;) {
      // begin is a multiple of kDotLanes, so the lane of e is its low bits.
      const int64_t lane = e % kDotLanes;
      const int64_t n = to - e < kDotLanes - lane ? to - e : kDotLanes - lane;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i)
        lanes[lane + i] +=
            static_cast<double>(widen(g[e + i])) *
            (static_cast<double>(widen(x[e + i])) - static_cast<double>(widen(o[e + i])));
      e += n;
    }
  }
  for (int width = kDotLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

}  // namespace

void mix(const MixArgs& args, Context) {
  const Images& m = args.images;
  const int64_t planes = m.batch * m.outer;
  parallel_for(planes, plane_grain(m), [&](int64_t begin, int64_t end) {
    if (args.weight.data != nullptr)
      return dispatch_floating_or_byte(
          args.dtype, [&](auto zero) { mix_planes<decltype(zero)>(args, begin, end); });
    // Nothing but whole elements moves: take them as bytes.
    MixArgs bytes = args;
    bytes.images.inner *= args.itemsize;
    mix_planes<uint8_t>(bytes, begin, end);
  });
}

void mix_adjoint(const MixAdjointArgs& args, Context) {
  const Images& m = args.images;
  const int64_t outputs = args.own ? m.batch : args.others;
  if (args.from_partner) {
    for (int64_t j = 0; j < args.others; ++j) args.head[j] = -1;
    for (int64_t i = m.batch - 1; i >= 0; --i) {
      args.next[i] = args.head[args.partner[i]];
      args.head[args.partner[i]] = i;
    }
  }
  const int64_t grain = 1 + (int64_t{1} << 15) / (m.width * m.inner + 1);
  parallel_for(outputs * m.outer * m.height, grain, [&](int64_t begin, int64_t end) {
    dispatch_floating(args.dtype,
                      [&](auto zero) { adjoint_rows<decltype(zero)>(args, begin, end); });
  });
}

void mix_dot(const MixDotArgs& args, Context) {
  const Images& m = args.images;
  const int64_t segments = (sample_size(m) + kDotSegment - 1) / kDotSegment;
  parallel_for(m.batch * segments, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      dispatch_floating(args.dtype, [&](auto zero) {
        args.segments[i] = dot_segment<decltype(zero)>(args, i / segments, i % segments);
      });
  });
  for (int64_t b = 0; b < m.batch; ++b) {
    double sum = 0.0;
    for (int64_t s = 0; s < segments; ++s) sum += args.segments[b * segments + s];
    args.out[b] = sum;
  }
}

void mix_labels(const MixLabelsArgs& args, Context) {
  const int64_t k = args.classes, grain = 1 + (int64_t{1} << 15) / (k + 1);
  parallel_for(args.batch, grain, [&](int64_t begin, int64_t end) {
    dispatch_floating(args.dtype, [&](auto zero) {
      using T = decltype(zero);
      using C = compute_t<T>;
      const C off = static_cast<C>(args.smoothing / static_cast<double>(k));
      const C on = static_cast<C>(1.0 - args.smoothing);
      for (int64_t b = begin; b < end; ++b) {
        T* row = static_cast<T*>(args.out) + b * k;
        const T fill = narrowed<T>(off);
        for (int64_t i = 0; i < k; ++i) row[i] = fill;
        const C lam = static_cast<C>(args.lam[b]);
        const int64_t own = args.labels[b], theirs = args.other_labels[args.partner[b]];
        if (own == theirs) {
          row[own] = narrowed<T>(off + on);
        } else {
          row[own] = narrowed<T>(off + on * lam);
          row[theirs] = narrowed<T>(off + on * (C(1) - lam));
        }
      }
    });
  });
}

}  // namespace regkern::REGKERN_ISA
