#include "spectral/power_iteration.h"

#include <cstring>
#include <type_traits>

#include "core/fetch.h"
#include "core/parallel.h"
#include "core/registers.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

constexpr int kRowBlock = 4;  // rows that share what t is read and written for

constexpr int64_t kAhead = 1024;  // elements that are fetched ahead

int64_t padded(int64_t n) { return (n + kStripe - 1) / kStripe * kStripe; }

// Numbers of a register. As a loop over lanes, the sums below have 64 pointers, most of them in
// memory; with constant offsets from one they have two.
template <typename A>
constexpr int kWidth = kRegisterBytes / static_cast<int>(sizeof(A));
template <typename C, int N>
struct VectorOf {
  typedef C type __attribute__((vector_size(N * sizeof(C))));
  typedef C Unaligned __attribute__((vector_size(N * sizeof(C)), aligned(alignof(C)), may_alias));
};

template <typename A, typename C>
inline typename VectorOf<A, kWidth<A>>::type load_as(const C* from) {
  const auto x = *reinterpret_cast<const typename VectorOf<C, kWidth<A>>::Unaligned*>(from);
  if constexpr (std::is_same_v<A, C>)
    return x;
  else
    return __builtin_convertvector(x, typename VectorOf<A, kWidth<A>>::type);
}
template <typename A>
inline void add_to(A* to, const typename VectorOf<A, kWidth<A>>::type& x) {
  *reinterpret_cast<typename VectorOf<A, kWidth<A>>::Unaligned*>(to) += x;
}

// Sums of products and of squares.
template <typename V>
struct Sums {
  V dot, square;
};
template <typename V>
inline Sums<V> operator+(const Sums<V>& a, const Sums<V>& b) {
  return {a.dot + b.dot, a.square + b.square};
}

// lanes ← lanes + products of a segment of S stripes; squares ← squares + w².
template <int S, bool kSquares, typename A, typename C>
inline void add_segment(const C* w, const C* v, A* lanes, A* squares) {
  using V = typename VectorOf<A, kWidth<A>>::type;
#pragma GCC unroll 16
  for (int j = 0; j < kDotLanes; j += kWidth<A>) {
    const auto group = [=](int g) {
      Sums<V> sums{};
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        const int at = s * kStripe + g * kDotLanes + j;
        const V x = load_as<A>(w + at), product = x * load_as<A>(v + at);
        sums.dot = s == 0 ? product : sums.dot + product;
        if constexpr (kSquares) sums.square = s == 0 ? x * x : sums.square + x * x;
      }
      return sums;
    };
    const Sums<V> sums = ((group(0) + group(1)) + (group(2) + group(3))) +
                         ((group(4) + group(5)) + (group(6) + group(7)));
    add_to(lanes + j, sums.dot);
    if constexpr (kSquares) add_to(squares + j, sums.square);
  }
}

// w and v are padded with zeros to whole stripes.
template <bool kSquares, typename A, typename C>
inline void add_tail(int64_t columns, const C* w, const C* v, A* lanes, A* squares) {
  const int64_t stripes = (columns + kStripe - 1) / kStripe;
  if (stripes == 1) add_segment<1, kSquares>(w, v, lanes, squares);
  if (stripes == 2) add_segment<2, kSquares>(w, v, lanes, squares);
  if (stripes == 3) add_segment<3, kSquares>(w, v, lanes, squares);
  if (stripes == 4) add_segment<4, kSquares>(w, v, lanes, squares);
}

template <typename A>
inline A fold_dot(A* lanes) {
  for (int half = kDotLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  return lanes[0];
}

// Σ w v over n columns, and Σ w². v is padded; w is where `whole`.
template <bool kSquares, typename A, typename C>
inline A row_dot(const C* w, const C* v, int64_t n, bool whole, A* square) {
  A lanes[kDotLanes] = {}, squares[kDotLanes] = {};
  int64_t c = 0;
  for (; c + kSegmentColumns <= n; c += kSegmentColumns) {
    // Lines are not read in order, so the hardware does not foresee them: 6.5 instead of 7.7 ms
    // for 4096 x 4096.
    fetch<false>(w + c + kAhead, kSegmentColumns, kSegmentColumns);
    add_segment<kStripes, kSquares>(w + c, v + c, lanes, squares);
  }
  if (c < n && (whole || (n - c) % kStripe == 0)) {
    add_tail<kSquares>(n - c, w + c, v + c, lanes, squares);
  } else if (c < n) {
    C tail[kSegmentColumns];
    memset(tail, 0, static_cast<size_t>(padded(n - c)) * sizeof(C));
    memcpy(tail, w + c, static_cast<size_t>(n - c) * sizeof(C));
    add_tail<kSquares>(n - c, tail, v + c, lanes, squares);
  }
  if constexpr (kSquares) *square = fold_dot(squares);
  return fold_dot(lanes);
}

// t ← (first ? 0 : t) + Σ y_k w_k over four rows in order. They are in the cache; of the `left`
// elements that follow from `next` on, the first two rows are asked for meanwhile.
template <bool kFirst, typename C>
inline void add_rows(const C* const* w, const C* y, int64_t n, C* t, const C* next, int64_t left) {
  constexpr int64_t kStrip = 256;
  const C y0 = y[0], y1 = y[1], y2 = y[2], y3 = y[3];
  const C *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
  for (int64_t begin = 0; begin < n; begin += kStrip) {
    const int64_t end = begin + kStrip < n ? begin + kStrip : n;
    fetch<false>(next + 2 * begin, 2 * (end - begin), left - 2 * begin);
#pragma omp simd
    for (int64_t c = begin; c < end; ++c) {
      const C sum = kFirst ? C(0) : t[c];
      t[c] = (((sum + y0 * w0[c]) + y1 * w1[c]) + y2 * w2[c]) + y3 * w3[c];
    }
  }
}

template <typename C>
inline void add_row(const C* w, C y, C scale, int64_t n, C* t) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) t[c] = t[c] * scale + y * w[c];
}

template <typename C>
inline void add_scaled(C* sum, C sum_scale, const C* term, C term_scale, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) sum[c] = sum[c] * sum_scale + term[c] * term_scale;
}

// Rows [begin, begin + count) of any layout as padded rows of the compute type.
template <typename T, typename C>
inline void pack_rows(const Matrix& m, int64_t begin, int64_t count, int64_t stride, C* out) {
  const Strides s = strides_of(m);
  const T* const data = static_cast<const T*>(m.data) + begin * s.row;
  const int64_t n = columns_of(m);
  if (has_dense_rows(m)) {
    for (int64_t r = 0; r < count; ++r) {
      const T* const from = data + r * s.row;
      C* const to = out + r * stride;
      for (int64_t c = 0; c < n; ++c) to[c] = widen(from[c]);
    }
  } else if (m.layout == Layout::rows_last) {
    for (int64_t c = 0; c < n; ++c) {
      const T* const from = data + c * m.rows;
      for (int64_t r = 0; r < count; ++r) out[r * stride + c] = widen(from[r]);
    }
  } else {
    for (int64_t o = 0; o < m.n0; ++o)
      for (int64_t r = 0; r < count; ++r) {
        const T* const from = data + o * s.s0 + r * s.row;
        C* const to = out + r * stride + o * m.n1;
        for (int64_t i = 0; i < m.n1; ++i) to[i] = widen(from[i * s.s1]);
      }
  }
  for (int64_t r = 0; r < count; ++r)
    memset(out + r * stride + n, 0, static_cast<size_t>(stride - n) * sizeof(C));
}

// What a thread works in, for matrices of at most so many columns.
template <typename C>
struct Room {
  explicit Room(int64_t columns)
      : stride(padded(columns)), v(stride), chunk(stride), rows(stride * kChunkRows) {}
  int64_t stride;
  Scratch<C> v, chunk, rows;
};

template <typename T>
constexpr bool kWidened = !std::is_same_v<T, compute_t<T>>;

// y, and the partial of t, of a span of rows.
template <typename T, bool kSquares, bool kProducts>
void add_span(const PowerArgs& args, const PowerRow& row, bool first, int64_t span,
              const Room<compute_t<T>>& room) {
  using C = compute_t<T>;
  const Matrix& m = row.w;
  const int64_t n = columns_of(m), stride = padded(n);
  const bool packed = kWidened<T> || !has_dense_rows(m);
  // What is only widened is packed by row blocks, what is gathered by chunks: whole cache lines.
  const int64_t at_once = has_dense_rows(m) ? kRowBlock : kChunkRows;
  const C* const given = static_cast<const C*>(first ? row.v : row.v_out);
  C* const v = room.v.data();
  memcpy(v, given, static_cast<size_t>(n) * sizeof(C));
  memset(v + n, 0, static_cast<size_t>(stride - n) * sizeof(C));
  C* const y_out = static_cast<C*>(row.u_out);
  const int64_t spans = span_count_of(m), from = span * kSpanRows;
  const int64_t to = from + kSpanRows < m.rows ? from + kSpanRows : m.rows;
  // The only span of a matrix is all of t.
  C* const sum = spans == 1 ? static_cast<C*>(row.v_out)
                            : static_cast<C*>(args.partials) + row.partial + span * n;
  int32_t sum_exponent = kNoExponent;
  double squares = 0.0;
  for (int64_t chunk = from; chunk < to; chunk += kChunkRows) {
    const int64_t end = chunk + kChunkRows < to ? chunk + kChunkRows : to;
    C* const t = room.chunk.data();
    int32_t exponent = kNoExponent;
    double chunk_squares = 0.0;
    for (int64_t r = chunk; r < end; r += kRowBlock) {
      const int64_t count = end - r < kRowBlock ? end - r : kRowBlock;
      if (packed && (r - chunk) % at_once == 0)
        pack_rows<T>(m, r, end - r < at_once ? end - r : at_once, stride, room.rows.data());
      const C* w[kRowBlock];
      C y[kRowBlock] = {}, scaled[kRowBlock] = {}, factor[kRowBlock];
      bool plain = count == kRowBlock;
      for (int64_t k = 0; k < count; ++k) {
        if (packed)
          w[k] = room.rows.data() + (r + k - chunk) % at_once * stride;
        else
          w[k] = static_cast<const C*>(m.data) + (r + k) * n;
        C square = C(0);
        y[k] = row_dot<kSquares, C>(w[k], v, n, packed, &square);
        if constexpr (kSquares) {
          double exact = static_cast<double>(square);
          if (!square_sum_holds(square)) row_dot<true, double>(w[k], v, n, packed, &exact);
          chunk_squares += exact;
        }
        const Scales<C> join = join_row(&exponent, y[k]);
        factor[k] = join.sum;
        scaled[k] = join.term;
        plain = plain && factor[k] == C(1);
        y_out[r + k] = y[k];
      }
      if constexpr (kProducts) {
        if (plain) {
          const C* const next = w[0] + kRowBlock * n;
          const int64_t left = packed ? 0 : (m.rows - r - kRowBlock) * n;
          if (r == chunk)
            add_rows<true>(w, scaled, n, t, next, left);
          else
            add_rows<false>(w, scaled, n, t, next, left);
        } else {
          if (r == chunk) memset(t, 0, static_cast<size_t>(n) * sizeof(C));
          for (int64_t k = 0; k < count; ++k) add_row(w[k], scaled[k], factor[k], n, t);
        }
      }
    }
    if constexpr (kProducts) {
      if (chunk == from) {
        memcpy(sum, t, static_cast<size_t>(n) * sizeof(C));
        sum_exponent = exponent;
      } else {
        const Scales<C> scales = follow_exponent<C>(&sum_exponent, exponent);
        add_scaled(sum, scales.sum, t, scales.term, n);
      }
    }
    squares += chunk_squares;
  }
  if constexpr (kProducts) args.exponents[row.chunk + span] = sum_exponent;
  if constexpr (kSquares) args.squares[row.chunk + span] = squares;
}

// Σ of f(i) in the order of core/list_sums.h.
template <typename F>
inline double lane_sum(int64_t n, F f) {
  double lanes[kTotalLanes] = {};
  int64_t i = 0;
  for (; i + kTotalLanes <= n; i += kTotalLanes) {
#pragma omp simd
    for (int k = 0; k < kTotalLanes; ++k) lanes[k] += f(i + k);
  }
  for (int64_t k = 0; i + k < n; ++k) lanes[k] += f(i + k);
  return sum_by_halves<kTotalLanes>(lanes);
}

template <typename C>
void give(const C* u, const C* v, const PowerRow& row, int64_t n) {
  const auto put = [](const C* from, void* to, int64_t count) {
    if (to != nullptr && to != from) memcpy(to, from, static_cast<size_t>(count) * sizeof(C));
  };
  put(u, row.u_out, row.w.rows);
  put(v, row.v_out, n);
}

// Sums t over the spans, and ends the iteration.
template <typename C>
void end_matrix(const PowerArgs& args, const PowerRow& row, double* stats, bool first) {
  const Matrix& m = row.w;
  const int64_t n = columns_of(m), spans = span_count_of(m);
  if (first && args.frobenius)
    stats[kFrobenius] = sqrt(total_of_spans(args.squares + row.chunk, 0, spans, 1));
  if (m.rows == 0 || n == 0)
    return give(static_cast<const C*>(row.u), static_cast<const C*>(row.v), row, n);
  C* const y = static_cast<C*>(row.u_out);
  if (args.iterations == 0) {
    const C* const u = static_cast<const C*>(row.u);
    stats[kSigma] = lane_sum(
        m.rows, [=](int64_t i) { return static_cast<double>(u[i]) * static_cast<double>(y[i]); });
    return give(u, static_cast<const C*>(row.v), row, n);
  }
  C* const t = static_cast<C*>(row.v_out);
  int32_t exponent = kNoExponent;
  if (spans == 1) exponent = args.exponents[row.chunk];
  for (int64_t span = 0; spans > 1 && span < spans; ++span) {
    const C* const partial = static_cast<const C*>(args.partials) + row.partial + span * n;
    if (span == 0) {
      memcpy(t, partial, static_cast<size_t>(n) * sizeof(C));
      exponent = args.exponents[row.chunk];
    } else {
      const Scales<C> scales = follow_exponent<C>(&exponent, args.exponents[row.chunk + span]);
      add_scaled(t, scales.sum, partial, scales.term, n);
    }
  }
  const auto square_of = [](const C* x) {
    return [=](int64_t i) { return static_cast<double>(x[i]) * static_cast<double>(x[i]); };
  };
  const Ending end = end_iteration(lane_sum(m.rows, square_of(y)), lane_sum(n, square_of(t)),
                                   exponent, args.tolerance, args.eps, stats);
  if (!end.replaced)
    return give(static_cast<const C*>(row.u), static_cast<const C*>(row.v), row, n);
  const double by_y = 1.0 / end.y_norm, by_t = 1.0 / end.t_norm;
#pragma omp simd
  for (int64_t i = 0; i < m.rows; ++i) y[i] = static_cast<C>(static_cast<double>(y[i]) * by_y);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) t[i] = static_cast<C>(static_cast<double>(t[i]) * by_t);
}

template <typename T>
void iterate(const PowerArgs& args, int64_t begin, int64_t end, bool first) {
  using C = compute_t<T>;
  // Spans in a row, numbered by their elements: threads get the same amount of work.
  int64_t elements = 0, widest = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Matrix& m = args.rows[i].w;
    elements += m.rows * columns_of(m);
    widest = columns_of(m) > widest ? columns_of(m) : widest;
  }
  parallel_for(elements, int64_t{1} << 15, [&](int64_t from, int64_t to) {
    const Room<C> room(widest);
    int64_t at = 0;
    for (int64_t i = begin; i < end && at < to; ++i) {
      const PowerRow& row = args.rows[i];
      const int64_t n = columns_of(row.w);
      const bool done = args.stats[i * kStats + kDone] != 0.0;
      for (int64_t span = 0; span < span_count_of(row.w); ++span, at += kSpanRows * n) {
        // A span belongs to the thread that has its first element.
        if (done || at < from || at >= to) continue;
        if (args.iterations == 0) {
          args.frobenius ? add_span<T, true, false>(args, row, first, span, room)
                         : add_span<T, false, false>(args, row, first, span, room);
        } else {
          first&& args.frobenius ? add_span<T, true, true>(args, row, first, span, room)
                                 : add_span<T, false, true>(args, row, first, span, room);
        }
      }
      at += row.w.rows * n - span_count_of(row.w) * kSpanRows * n;
    }
  });
  parallel_for(end - begin, 8, [&](int64_t from, int64_t to) {
    for (int64_t i = begin + from; i < begin + to; ++i) {
      double* const stats = args.stats + i * kStats;
      if (stats[kDone] == 0.0) end_matrix<C>(args, args.rows[i], stats, first);
    }
  });
}

template <typename T>
void power_iteration_as(const PowerArgs& args) {
  using C = compute_t<T>;
  memset(args.stats, 0, static_cast<size_t>(args.count * kStats) * sizeof(double));
  if (args.iterations <= 1) {
    iterate<T>(args, 0, args.count, true);
  } else {
    // Matrix by matrix: most stay in the cache from one iteration to the next.
    for (int64_t i = 0; i < args.count; ++i)
      for (int64_t k = 0; k < args.iterations && args.stats[i * kStats + kDone] == 0.0; ++k)
        iterate<T>(args, i, i + 1, k == 0);
  }
  for (int64_t i = 0; i < args.count; ++i) {
    const PowerRow& row = args.rows[i];
    for (int k = 0; k < kDone; ++k)
      static_cast<C*>(args.numbers)[k * args.count + i] =
          static_cast<C>(args.stats[i * kStats + k]);
    if (row.u_too != nullptr)
      memcpy(row.u_too, row.u_out, static_cast<size_t>(row.w.rows) * sizeof(C));
    if (row.v_too != nullptr)
      memcpy(row.v_too, row.v_out, static_cast<size_t>(columns_of(row.w)) * sizeof(C));
  }
}

}  // namespace

void power_iteration(const PowerArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { power_iteration_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
