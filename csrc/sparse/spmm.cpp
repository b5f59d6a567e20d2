#include "sparse/spmm.h"

#include "core/parallel.h"
#include "core/transpose.h"
#include "core/vec.h"
#include "core/vectors.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace sparse;

// Features that are packed at once, and rows whose results are written together.
constexpr int64_t kPackFeatures = 64;
constexpr int kRowGroup = kSquare;
// Entries of a piece of work. It is a multiple of no tile, row or number of threads.
constexpr int64_t kPieceEntries = int64_t{1} << 13;
// Few entries are as many pieces all the same, for as many threads, if these do not get too small.
constexpr int64_t kLeastPieces = 16, kLeastEntries = int64_t{1} << 11;
// How far ahead of an entry the vectors that it needs are asked for.
constexpr int64_t kAhead = 8;

// (tile, kSquare features) ← x, whose element (b, f) is at b · row + f.
template <typename T, typename C>
void pack_rows(const T* x, int64_t row, int64_t batch, int64_t features, int tile, C* out) {
  for (int64_t f = 0; f < features; f += kSquare) {
    const int64_t width = f + kSquare < features ? kSquare : features - f;
    for (int b = 0; b < tile; b += kSquare) {
      C square[kSquare][kSquare];
      if (width == kSquare && b + kSquare <= batch) {
        for (int k = 0; k < kSquare; ++k) {
          const T* const from = x + (b + k) * row + f;
#pragma omp simd
          for (int i = 0; i < kSquare; ++i) square[k][i] = widen(from[i]);
        }
        transpose_square(square, tile, out + f * tile + b);
        continue;
      }
      for (int64_t i = 0; i < width; ++i)
        for (int k = 0; k < kSquare; ++k)
          out[(f + i) * tile + b + k] = b + k < batch ? widen(x[(b + k) * row + f + i]) : C(0);
    }
  }
}

template <typename T>
void pack(const PackArgs& args) {
  using C = compute_t<T>;
  const T* const x = static_cast<const T*>(args.x);
  C* const out = static_cast<C*>(args.tiles);
  const int64_t tiles = (args.batch + args.tile - 1) / args.tile;
  const int64_t blocks = (args.features + kPackFeatures - 1) / kPackFeatures;
  parallel_for(tiles * blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t t = unit / blocks, f = unit % blocks * kPackFeatures;
      const int64_t b = t * args.tile, left = args.batch - b;
      const int64_t some = left < args.tile ? left : args.tile;
      const int64_t width = args.features - f < kPackFeatures ? args.features - f : kPackFeatures;
      C* const to = out + (t * args.features + f) * args.tile;
      if (!args.feature_major) {
        pack_rows(x + b * args.features + f, args.features, some, width, args.tile, to);
        continue;
      }
      for (int64_t i = 0; i < width; ++i) {
        const T* const from = x + (f + i) * args.batch + b;
        for (int64_t k = 0; k < some; ++k) to[i * args.tile + k] = widen(from[k]);
        for (int64_t k = some; k < args.tile; ++k) to[i * args.tile + k] = C(0);
      }
    }
  });
}

// Rows of results (kRowGroup, BT), written to where y has them: `some` of the batch from b on and
// `count` features from r on.
template <typename T, int BT>
inline void write_rows(const compute_t<T> (*rows)[BT], bool feature_major, int64_t batch,
                       int64_t features, int64_t b, int64_t some, int64_t r, int64_t count, T* y) {
  using C = compute_t<T>;
  if (feature_major) {
    for (int64_t i = 0; i < count; ++i) {
      T* const to = y + (r + i) * batch + b;
#pragma omp simd
      for (int64_t k = 0; k < some; ++k) narrow(rows[i][k], to + k);
    }
    return;
  }
  if (count == kRowGroup && some == BT) {
    for (int k = 0; k < BT; k += kSquare) {
      C square[kSquare][kSquare], turned[kSquare][kSquare];
      for (int i = 0; i < kSquare; ++i) memcpy(square[i], &rows[i][k], sizeof(square[i]));
      transpose_square(square, kSquare, turned[0]);
      for (int j = 0; j < kSquare; ++j) {
        T* const to = y + (b + k + j) * features + r;
#pragma omp simd
        for (int i = 0; i < kSquare; ++i) narrow(turned[j][i], to + i);
      }
    }
    return;
  }
  for (int64_t k = 0; k < some; ++k)
    for (int64_t i = 0; i < count; ++i) narrow(rows[i][k], y + (b + k) * features + r + i);
}

// Pieces of rows with about as many entries each, whole groups of rows. The first row of piece p of
// `pieces`.
int64_t piece_begin(const SparseView& view, int64_t p, int64_t pieces) {
  if (p == 0) return 0;
  if (p == pieces) return view.rows;
  const int64_t target = view.nnz / pieces * p;
  int64_t low = 0, high = view.rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (view.offsets[middle] < target)
      low = middle + 1;
    else
      high = middle;
  }
  return low / kRowGroup * kRowGroup;
}

// Empty rows are work as well: their results are zeros, or the bias.
int64_t count_pieces(const SparseView& view) {
  const int64_t by_entries = view.nnz / kPieceEntries, small = view.nnz / kLeastEntries;
  const int64_t least = small < kLeastPieces ? small : kLeastPieces;
  const int64_t most = (view.rows + kRowGroup - 1) / kRowGroup;
  const int64_t wanted = by_entries > least ? by_entries : least > 0 ? least : 1;
  return wanted < most ? wanted : most > 0 ? most : 1;
}

template <int BT, typename C>
inline void prefetch(const C* from) {
  for (int i = 0; i < BT * static_cast<int>(sizeof(C)); i += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(from) + i);
}

// Σ_e w_e x_e of a row: all sums in registers. Entries from `known` on are not looked ahead to.
template <int BT, typename C, bool kOrdered>
inline void sum_row(const C* tile, int64_t pitch, const SparseView& view, const C* values,
                    int64_t begin, int64_t end, int64_t known, C* out) {
  constexpr int kCount = BT / kRegisterLanes<C>;
  Register<C> sums[kCount] = {};
  for (int64_t e = begin; e < end; ++e) {
    const C w = values[kOrdered ? view.order[e] : e];
    const C* const x = tile + view.index[e] * pitch;
    if (e + kAhead < known) prefetch<BT>(tile + view.index[e + kAhead] * pitch);
    for (int v = 0; v < kCount; ++v) sums[v] += w * load_register(x + v * kRegisterLanes<C>);
  }
  for (int v = 0; v < kCount; ++v) store_register(out + v * kRegisterLanes<C>, sums[v]);
}

// Each row (BT) plus its bias, kept in `z` if that is asked for, and activated.
template <int BT, Activation kActivation, typename C>
inline void finish_rows(int64_t count, const C* bias, C (*rows)[BT], C (*z)[BT]) {
  for (int64_t i = 0; i < count; ++i) {
    C* const row = rows[i];
    if (bias != nullptr) {
      const C own = bias[i];
#pragma omp simd
      for (int k = 0; k < BT; ++k) row[k] = row[k] + own;
    }
    if (z != nullptr) memcpy(z[i], row, BT * sizeof(C));
    if constexpr (kActivation != Activation::none) {
#pragma omp simd
      for (int k = 0; k < BT; ++k) row[k] = activated<kActivation>(row[k]);
    }
  }
}

template <typename T, int BT>
void spmm_tiles(const SpmmArgs& args) {
  using C = compute_t<T>;
  const SparseView& view = args.view;
  const C* const values = static_cast<const C*>(args.values);
  const C* const bias = static_cast<const C*>(args.bias);
  T* const y = static_cast<T*>(args.y);
  const int64_t tiles = (args.batch + BT - 1) / BT, pieces = count_pieces(view);
  // Tile by tile, so that one stays in the cache.
  parallel_for(tiles * pieces, 1, [&](int64_t from, int64_t to) {
    for (int64_t unit = from; unit < to; ++unit) {
      const int64_t t = unit / pieces, p = unit % pieces;
      const C* const tile = static_cast<const C*>(args.x.data) + t * args.x.stride;
      const int64_t b = t * BT, left = args.batch - b, some = left < BT ? left : BT;
      const int64_t last = piece_begin(view, p + 1, pieces);
      for (int64_t r = piece_begin(view, p, pieces); r < last; r += kRowGroup) {
        const int64_t count = last - r < kRowGroup ? last - r : kRowGroup;
        alignas(64) C rows[kRowGroup][BT], z[kRowGroup][BT];
        for (int64_t i = 0; i < count; ++i) {
          const int64_t begin = view.offsets[r + i], end = view.offsets[r + i + 1];
          if (view.order != nullptr)
            sum_row<BT, C, true>(tile, args.x.pitch, view, values, begin, end, view.nnz, rows[i]);
          else
            sum_row<BT, C, false>(tile, args.x.pitch, view, values, begin, end, view.nnz, rows[i]);
        }
        with_activation(args.activation, [&](auto activation) {
          finish_rows<BT, decltype(activation)::value>(count, bias != nullptr ? bias + r : nullptr,
                                                       rows, args.z != nullptr ? z : nullptr);
        });
        write_rows<T, BT>(rows, args.feature_major, args.batch, view.rows, b, some, r, count, y);
        if (args.z != nullptr)
          write_rows<T, BT>(z, args.feature_major, args.batch, view.rows, b, some, r, count,
                            static_cast<T*>(args.z));
      }
    }
  });
}

// The first halvings of kBatchLanes lanes, down to four: between registers, and within one.
constexpr int kQuad = 4;
template <typename C, int kCount>
inline void fold_to_quad(const Register<C> (&lanes)[kCount], C* quad) {
  static_assert(kCount * kRegisterLanes<C> == kBatchLanes);
  Register<C> all[kCount];
  for (int v = 0; v < kCount; ++v) all[v] = lanes[v];
  int count = kCount;
  for (; count > 1 && count * kRegisterLanes<C> > kQuad; count /= 2)
    for (int v = 0; v < count / 2; ++v) all[v] += all[v + count / 2];
  if constexpr (kRegisterLanes<C> == 16) {
    const auto r = all[0];
    const auto half = __builtin_shufflevector(r, r, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(r, r, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto last = __builtin_shufflevector(half, half, 0, 1, 2, 3) +
                      __builtin_shufflevector(half, half, 4, 5, 6, 7);
    memcpy(quad, &last, sizeof(last));
  } else if constexpr (kRegisterLanes<C> == 8) {
    const auto r = all[0];
    const auto last =
        __builtin_shufflevector(r, r, 0, 1, 2, 3) + __builtin_shufflevector(r, r, 4, 5, 6, 7);
    memcpy(quad, &last, sizeof(last));
  } else {
    memcpy(quad, all, kQuad * sizeof(C));
  }
}

// out_j += the last two halvings of quads[j].
inline void add_quads(const float (*quads)[kQuad], float* out) {
  using V [[gnu::vector_size(16)]] = float;
  V q[kQuad], sum;
  memcpy(q, quads, sizeof(q));
  const V low01 = __builtin_shufflevector(q[0], q[1], 0, 1, 4, 5);
  const V low23 = __builtin_shufflevector(q[2], q[3], 0, 1, 4, 5);
  const V high01 = __builtin_shufflevector(q[0], q[1], 2, 3, 6, 7);
  const V high23 = __builtin_shufflevector(q[2], q[3], 2, 3, 6, 7);
  const V pairs01 = low01 + high01, pairs23 = low23 + high23;
  memcpy(&sum, out, sizeof(sum));
  sum += __builtin_shufflevector(pairs01, pairs23, 0, 2, 4, 6) +
         __builtin_shufflevector(pairs01, pairs23, 1, 3, 5, 7);
  memcpy(out, &sum, sizeof(sum));
}
inline void add_quads(const double (*quads)[kQuad], double* out) {
  for (int j = 0; j < kQuad; ++j)
    out[j] += (quads[j][0] + quads[j][2]) + (quads[j][1] + quads[j][3]);
}

// Entries whose products are taken together: as many as their lanes fit in registers beside all
// else.
template <typename C>
constexpr int kTogether = kBatchLanes / kRegisterLanes<C> <= 2   ? 4
                          : kBatchLanes / kRegisterLanes<C> <= 4 ? 2
                                                                 : 1;

// Of kMany entries e of a row of x and one tile, g_e the vector that each is with: quads_e = the
// folded lanes of <x, g_e>, and dx += Σ_e w_e g_e. A vector of x and one of dx are loaded for all
// of them.
template <int BT, typename C, bool kDx, int kMany>
inline void multiply_entries(const C* x, const C* const* g, const C* values, C* dx,
                             C (*quads)[kQuad]) {
  constexpr int kWidth = kRegisterLanes<C>, kCount = BT / kWidth;
  constexpr int kLaneRegisters = kBatchLanes / kWidth;
  Register<C> weights[kMany], lanes[kMany][kLaneRegisters];
  for (int j = 0; j < kMany; ++j) {
    if (kDx) weights[j] = values[j] - Register<C>{};
    for (int v = 0; v < kLaneRegisters; ++v) lanes[j][v] = Register<C>{};
  }
#pragma GCC unroll 1
  for (int first = 0; first < kCount; first += kLaneRegisters)
    for (int v = 0; v < kLaneRegisters; ++v) {
      const int at = (first + v) * kWidth;
      const Register<C> own = load_register(x + at);
      Register<C> sum = kDx ? load_register(dx + at) : Register<C>{};
      for (int j = 0; j < kMany; ++j) {
        const Register<C> part = load_register(g[j] + at);
        if (kDx) sum += weights[j] * part;
        lanes[j][v] += own * part;
      }
      if (kDx) store_register(dx + at, sum);
    }
  for (int j = 0; j < kMany; ++j) fold_to_quad<C>(lanes[j], quads[j]);
}

// Of one row of the view and one tile: dvalues_e += <x, g_e>, and dx += Σ_e w_e g_e. Entries from
// `known` on are not looked ahead to.
template <int BT, typename C, bool kDx>
inline void both_of_row(const C* x, const C* tile, int64_t pitch, const int32_t* index,
                        const C* values, int64_t begin, int64_t end, int64_t known, C* dvalues,
                        C* dx) {
  constexpr int kMany = kTogether<C>;
  alignas(64) C quads[kQuad][kQuad];
  const C* g[kQuad];
  int64_t e = begin;
  for (; e + kQuad <= end; e += kQuad) {
    for (int j = 0; j < kQuad; ++j) g[j] = tile + index[e + j] * pitch;
    if (e + kAhead + kQuad <= known)
      for (int j = 0; j < kQuad; ++j) prefetch<BT>(tile + index[e + kAhead + j] * pitch);
    for (int j = 0; j < kQuad; j += kMany)
      multiply_entries<BT, C, kDx, kMany>(x, g + j, kDx ? values + e + j : nullptr, dx, quads + j);
    add_quads(quads, dvalues + e);
  }
  for (; e < end; ++e) {
    g[0] = tile + index[e] * pitch;
    if (e + kAhead < known) prefetch<BT>(tile + index[e + kAhead] * pitch);
    multiply_entries<BT, C, kDx, 1>(x, g, kDx ? values + e : nullptr, dx, quads);
    dvalues[e] += (quads[0][0] + quads[0][2]) + (quads[0][1] + quads[0][3]);
  }
}

// Entries of a feature of g that a thread takes at once, about. Those of one feature are side by
// side in the order of the values, and a line of the cache is to be fetched for all that it holds.
constexpr int64_t kLineEntries = 16;

template <typename T, int BT, bool kDx>
void sddmm_tiles(const SddmmArgs& args) {
  using C = compute_t<T>;
  const SparseView& view = args.view;
  const C* const values = static_cast<const C*>(args.values);
  C* const dvalues = static_cast<C*>(args.dvalues);
  T* const dx = static_cast<T*>(args.dx);
  const int64_t tiles = (args.batch + BT - 1) / BT, pieces = count_pieces(view);
  const int64_t step = 1 + kLineEntries * view.columns / kPieceEntries;
  // Pieces go through all tiles, with their values and the derivatives side by side meanwhile.
  parallel_for(pieces, 1, [&](int64_t from, int64_t to) {
    const auto end_of = [&](int64_t p) { return p + step < to ? p + step : to; };
    int64_t most = 0;
    for (int64_t p = from; p < to; p += step) {
      const int64_t entries = view.offsets[piece_begin(view, end_of(p), pieces)] -
                              view.offsets[piece_begin(view, p, pieces)];
      most = most < entries ? entries : most;
    }
    const Scratch<C> own(kDx ? most : 0), sums(most);
    alignas(64) C rows[kRowGroup][BT];
    for (int64_t p = from; p < to; p += step) {
      const int64_t first = piece_begin(view, p, pieces);
      const int64_t last = piece_begin(view, end_of(p), pieces);
      const int64_t begin = view.offsets[first], entries = view.offsets[last] - begin;
      const auto place = [&](int64_t e) {
        return view.order != nullptr ? view.order[begin + e] : begin + e;
      };
      for (int64_t e = 0; e < entries; ++e) sums[e] = C(0);
      if (kDx)
        for (int64_t e = 0; e < entries; ++e) own[e] = values[place(e)];
      for (int64_t t = 0; t < tiles; ++t) {
        const C* const x = static_cast<const C*>(args.x.data) + t * args.x.stride;
        const C* const g = static_cast<const C*>(args.g.data) + t * args.g.stride;
        const int64_t b = t * BT, left = args.batch - b, some = left < BT ? left : BT;
        for (int64_t r = first; r < last; r += kRowGroup) {
          const int64_t count = last - r < kRowGroup ? last - r : kRowGroup;
          if (kDx) memset(rows, 0, sizeof(rows));
          for (int64_t i = 0; i < count; ++i)
            both_of_row<BT, C, kDx>(x + (r + i) * args.x.pitch, g, args.g.pitch, view.index + begin,
                                    kDx ? own.data() : nullptr, view.offsets[r + i] - begin,
                                    view.offsets[r + i + 1] - begin, entries, sums.data(),
                                    kDx ? rows[i] : nullptr);
          if constexpr (kDx)
            write_rows<T, BT>(rows, args.feature_major, args.batch, view.rows, b, some, r, count,
                              dx);
        }
      }
      for (int64_t e = 0; e < entries; ++e) dvalues[place(e)] = sums[e];
    }
  });
}

}  // namespace

void sparse_pack(const PackArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { pack<decltype(zero)>(args); });
}

void sparse_spmm(const SpmmArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_tile<compute_t<T>>(args.tile,
                            [&](auto tile) { spmm_tiles<T, decltype(tile)::value>(args); });
  });
}

void sparse_sddmm(const SddmmArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_tile<compute_t<T>>(args.tile, [&](auto tile) {
      constexpr int BT = decltype(tile)::value;
      if (args.dx != nullptr)
        sddmm_tiles<T, BT, true>(args);
      else
        sddmm_tiles<compute_t<T>, BT, false>(args);
    });
  });
}

}  // namespace regkern::REGKERN_ISA
