#include <type_traits>

#include "core/list_sums.cuh"
#include "spectral/power_iteration.h"

// Three launches an iteration for as many matrices as fit into a kernel's arguments. A team of one
// to eight warps takes a chunk of rows; each warp has a segment of the row, and its accumulators,
// in registers while the team adds up the product, and the next row is on its way. Rows of more
// than eight segments are read twice, the second time out of the cache, four rows at a time.

namespace regkern::cuda {
namespace {

using namespace spectral;

constexpr int kThreads = kListThreads, kWarps = kThreads / 32;
constexpr int kV = 4;  // neighbours a thread has of a stripe
static_assert(32 * kV == kStripe);
constexpr int kWideRows = 4;

struct ChunksRow {
  const void *data, *v;
  void *y, *partials;
  int32_t rows, n0, n1, numel;  // numel: blocks
  Layout layout;
  int32_t chunk;
};

// Warps that share a row: a power of two, and no more than a block has.
__host__ __device__ inline int team_of(int64_t columns) {
  int team = 1;
  while (team < kWarps && static_cast<int64_t>(team) * kSegmentColumns < columns) team *= 2;
  return team;
}

// Four neighbours of a row from column c on; zeros beyond its end.
template <typename T, bool kDense>
__device__ __forceinline__ void load_row(const T* row, const Strides& s, int n1, int64_t n,
                                         bool aligned, int64_t c, compute_t<T> out[kV]) {
  if constexpr (kDense) {
    if (aligned && c + kV <= n) {
      constexpr int kWidth = kLanesOf<T> < kV ? kLanesOf<T> : kV;
#pragma unroll
      for (int i = 0; i < kV; i += kWidth) {
        const Vector<T, kWidth> x = load_vector<T, kWidth>(row + c + i);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) out[i + k] = widen(x.v[k]);
      }
      return;
    }
#pragma unroll
    for (int k = 0; k < kV; ++k) out[k] = c + k < n ? widen(row[c + k]) : compute_t<T>(0);
  } else {
    int64_t o = c / n1;
    int i = static_cast<int>(c % n1);
#pragma unroll
    for (int k = 0; k < kV; ++k) {
      out[k] = c + k < n ? widen(row[o * s.s0 + i * s.s1]) : compute_t<T>(0);
      if (++i == n1) {
        i = 0;
        ++o;
      }
    }
  }
}

// Sums of a warp's segment: w[s][k], times v, as 16 lanes; thread 4 i + … has lane 4 (t mod 4) + k.
template <typename A, typename C>
__device__ __forceinline__ void segment_lanes(const C (&w)[kStripes][kV],
                                              const C (&v)[kStripes][kV], A out[kV]) {
#pragma unroll
  for (int k = 0; k < kV; ++k) {
    A sum = static_cast<A>(w[0][k]) * static_cast<A>(v[0][k]);
#pragma unroll
    for (int s = 1; s < kStripes; ++s) sum += static_cast<A>(w[s][k]) * static_cast<A>(v[s][k]);
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, offset);
    out[k] = sum;
  }
}

// Adds the lanes of `segments` segments, one after the other, to a sum of 16 lanes: thread t has
// lane t mod 16.
template <typename A>
__device__ __forceinline__ A add_lanes(A sum, const A* shared, int segments) {
  const int lane = static_cast<int>(threadIdx.x) % kDotLanes;
  for (int q = 0; q < segments; ++q) sum += shared[q * kDotLanes + lane];
  return sum;
}
template <typename A>
__device__ __forceinline__ A fold_lanes(A sum) {
#pragma unroll
  for (int offset = kDotLanes / 2; offset > 0; offset /= 2)
    sum += __shfl_xor_sync(kWholeWarp, sum, offset);
  return sum;
}

// One row, its segment's elements w in every warp of a team: the products of the team's segments
// in shared memory. All threads of the block call it.
template <typename A, typename C>
__device__ __forceinline__ void put_lanes(const C (&w)[kStripes][kV], const C (&v)[kStripes][kV],
                                          A* shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  A lanes[kV];
  segment_lanes(w, v, lanes);
  if (lane < kDotLanes / kV) {
#pragma unroll
    for (int k = 0; k < kV; ++k) shared[lane * kV + k] = lanes[k];
  }
}

template <typename C>
struct Shared {
  C* dots;          // [2][kWarps][kDotLanes]
  C* squares;       // likewise
  double* doubles;  // [kWarps][kDotLanes]
};

// The sum of squares of a row in double, for all teams of the block if one of them needs it.
template <typename C>
__device__ __forceinline__ double exact_square(C square, const C (&w)[kStripes][kV], double* shared,
                                               int team, int first_warp, int warp) {
  double exact = static_cast<double>(square);
  if constexpr (sizeof(C) == sizeof(float)) {
    const bool redo = !square_sum_holds(square);
    if (__syncthreads_or(redo)) {
      put_lanes<double>(w, w, shared + warp * kDotLanes);
      __syncthreads();
      const double sum = fold_lanes(add_lanes(0.0, shared + first_warp * kDotLanes, team));
      if (redo) exact = sum;
      __syncthreads();
    }
  }
  return exact;
}

template <typename T, bool kDense, bool kSquares>
__device__ __forceinline__ void narrow_rows(const ChunksRow& row, bool products, int block,
                                            int32_t* exponents, double* squares,
                                            const Shared<compute_t<T>>& shared) {
  using C = compute_t<T>;
  const Matrix m{row.data, row.rows, row.n0, row.n1, row.layout};
  const Strides s = strides_of(m);
  const int64_t n = columns_of(m);
  const int team = team_of(n), warp = static_cast<int>(threadIdx.x) / 32;
  const int segment = warp % team, first_warp = warp - segment;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t chunk = static_cast<int64_t>(block) * (kWarps / team) + warp / team;
  const int64_t from = chunk * kChunkRows;
  const T* const data = static_cast<const T*>(row.data);
  const bool aligned = kDense && aligned_for_vectors(data) && n % kLanesOf<T> == 0;
  const int64_t at = segment * kSegmentColumns + lane * kV;
  C v[kStripes][kV], t[kStripes][kV] = {}, next[kStripes][kV];
  const Strides plain{0, 0, 1};
#pragma unroll
  for (int k = 0; k < kStripes; ++k)
    load_row<C, true>(static_cast<const C*>(row.v), plain, 1, n, false, at + k * kStripe, v[k]);
  const auto load = [&](int64_t r, C(&w)[kStripes][kV]) {
#pragma unroll
    for (int k = 0; k < kStripes; ++k) {
      if (r < row.rows) {
        load_row<T, kDense>(data + r * s.row, s, row.n1, n, aligned, at + k * kStripe, w[k]);
      } else {
#pragma unroll
        for (int i = 0; i < kV; ++i) w[k][i] = C(0);
      }
    }
  };
  load(from, next);
  int32_t exponent = kNoExponent;
  double sum_squares = 0.0;
  for (int64_t i = 0; i < kChunkRows; ++i) {
    C w[kStripes][kV];
#pragma unroll
    for (int k = 0; k < kStripes; ++k) {
#pragma unroll
      for (int j = 0; j < kV; ++j) w[k][j] = next[k][j];
    }
    if (i + 1 < kChunkRows) load(from + i + 1, next);
    // Two halves by turns: one barrier a row.
    const int half = static_cast<int>(i % 2) * kWarps;
    put_lanes(w, v, shared.dots + (half + warp) * kDotLanes);
    if constexpr (kSquares) put_lanes(w, w, shared.squares + (half + warp) * kDotLanes);
    __syncthreads();
    const C y = fold_lanes(add_lanes(C(0), shared.dots + (half + first_warp) * kDotLanes, team));
    const bool there = from + i < row.rows;
    if constexpr (kSquares) {
      const C square =
          fold_lanes(add_lanes(C(0), shared.squares + (half + first_warp) * kDotLanes, team));
      sum_squares += exact_square(square, w, shared.doubles, team, first_warp, warp);
    }
    if (there && segment == 0 && lane == 0) static_cast<C*>(row.y)[from + i] = y;
    if (there && products) {
      const Scales<C> join = join_row(&exponent, y);
#pragma unroll
      for (int k = 0; k < kStripes; ++k) {
#pragma unroll
        for (int j = 0; j < kV; ++j) t[k][j] = t[k][j] * join.sum + join.term * w[k][j];
      }
    }
  }
  if (from >= row.rows) return;
  if (products) {
    C* const out = static_cast<C*>(row.partials) + chunk * n;
#pragma unroll
    for (int k = 0; k < kStripes; ++k) {
      const int64_t c = at + k * kStripe;
#pragma unroll
      for (int j = 0; j < kV; ++j)
        if (c + j < n) out[c + j] = t[k][j];
    }
  }
  if (segment == 0 && lane == 0) {
    if (products) exponents[row.chunk + chunk] = exponent;
    if constexpr (kSquares) squares[row.chunk + chunk] = sum_squares;
  }
}

// The same for rows of any length; a block has a chunk.
template <typename T, bool kDense, bool kSquares>
__device__ __forceinline__ void wide_rows(const ChunksRow& row, bool products, int block,
                                          int32_t* exponents, double* squares,
                                          const Shared<compute_t<T>>& shared) {
  using C = compute_t<T>;
  const Matrix m{row.data, row.rows, row.n0, row.n1, row.layout};
  const Strides s = strides_of(m), plain{0, 0, 1};
  const int64_t n = columns_of(m), chunk = block, from = chunk * kChunkRows;
  const int64_t to = from + kChunkRows < row.rows ? from + kChunkRows : row.rows;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const T* const data = static_cast<const T*>(row.data);
  const C* const v_of = static_cast<const C*>(row.v);
  const bool aligned = kDense && aligned_for_vectors(data) && n % kLanesOf<T> == 0;
  C* const t = static_cast<C*>(row.partials) + chunk * n;
  int32_t exponent = kNoExponent;
  double sum_squares = 0.0;
  for (int64_t r = from; r < to; r += kWideRows) {
    C factor[kWideRows], scaled[kWideRows];
    int half = 0;
#pragma unroll
    for (int i = 0; i < kWideRows; ++i) {
      factor[i] = C(1);
      scaled[i] = C(0);
      if (r + i >= to) continue;
      C sum = C(0), square = C(0);
      const auto segments_of = [&](int64_t begin) {
        const int64_t left = (n - begin + kSegmentColumns - 1) / kSegmentColumns;
        return static_cast<int>(left < kWarps ? left : kWarps);
      };
      const auto load = [&](int64_t begin, C(&w)[kStripes][kV]) {
        const int64_t at = begin + warp * kSegmentColumns + lane * kV;
#pragma unroll
        for (int k = 0; k < kStripes; ++k)
          load_row<T, kDense>(data + (r + i) * s.row, s, row.n1, n, aligned, at + k * kStripe,
                              w[k]);
      };
      for (int64_t begin = 0; begin < n; begin += kWarps * kSegmentColumns, half ^= 1) {
        C w[kStripes][kV], v[kStripes][kV];
        load(begin, w);
        const int64_t at = begin + warp * kSegmentColumns + lane * kV;
#pragma unroll
        for (int k = 0; k < kStripes; ++k)
          load_row<C, true>(v_of, plain, 1, n, false, at + k * kStripe, v[k]);
        put_lanes(w, v, shared.dots + (half * kWarps + warp) * kDotLanes);
        if constexpr (kSquares)
          put_lanes(w, w, shared.squares + (half * kWarps + warp) * kDotLanes);
        __syncthreads();
        const int count = segments_of(begin);
        sum = add_lanes(sum, shared.dots + half * kWarps * kDotLanes, count);
        if constexpr (kSquares)
          square = add_lanes(square, shared.squares + half * kWarps * kDotLanes, count);
      }
      const C y = fold_lanes(sum);
      if constexpr (kSquares) {
        square = fold_lanes(square);
        double exact = static_cast<double>(square);
        // The whole block has this row: no vote is needed.
        if (!square_sum_holds(square)) {
          double wide = 0.0;
          for (int64_t begin = 0; begin < n; begin += kWarps * kSegmentColumns) {
            C w[kStripes][kV];
            load(begin, w);
            put_lanes<double>(w, w, shared.doubles + warp * kDotLanes);
            __syncthreads();
            wide = add_lanes(wide, shared.doubles, segments_of(begin));
            __syncthreads();
          }
          exact = fold_lanes(wide);
        }
        sum_squares += exact;
      }
      if (threadIdx.x == 0) static_cast<C*>(row.y)[r + i] = y;
      const Scales<C> join = join_row(&exponent, y);
      factor[i] = join.sum;
      scaled[i] = join.term;
    }
    if (products) {
      for (int64_t c = static_cast<int64_t>(threadIdx.x) * kV; c < n; c += kThreads * kV) {
        C sum[kV];
#pragma unroll
        for (int j = 0; j < kV; ++j) sum[j] = r > from && c + j < n ? t[c + j] : C(0);
#pragma unroll
        for (int i = 0; i < kWideRows; ++i) {
          if (r + i < to) {
            C w[kV];
            load_row<T, kDense>(data + (r + i) * s.row, s, row.n1, n, aligned, c, w);
#pragma unroll
            for (int j = 0; j < kV; ++j) sum[j] = sum[j] * factor[i] + scaled[i] * w[j];
          }
        }
#pragma unroll
        for (int j = 0; j < kV; ++j)
          if (c + j < n) t[c + j] = sum[j];
      }
    }
  }
  if (threadIdx.x == 0) {
    if (products) exponents[row.chunk + chunk] = exponent;
    if constexpr (kSquares) squares[row.chunk + chunk] = sum_squares;
  }
}

// y, and the partials of t, of all chunks.
template <typename T, bool kSquares>
__global__ void __launch_bounds__(kThreads, std::is_same_v<T, double> ? 1 : 2)
    power_rows_kernel(const __grid_constant__ ListChunk<ChunksRow> list, bool products,
                      const double* stats, int32_t* exponents, double* squares) {
  using C = compute_t<T>;
  RK_SHARED(C, dots, 2 * kWarps * kDotLanes);
  RK_SHARED(C, square_lanes, kSquares ? 2 * kWarps * kDotLanes : 1);
  RK_SHARED(double, doubles, kSquares ? kWarps * kDotLanes : 1);
  const ListPlace place = place_of(list, static_cast<int>(blockIdx.x));
  const ChunksRow& row = list.rows[place.row];
  if (stats[place.row * kStats + kDone] != 0.0) return;
  const Shared<C> shared{dots, square_lanes, doubles};
  const int block = static_cast<int>(place.tile);
  const Matrix m{row.data, row.rows, row.n0, row.n1, row.layout};
  const bool narrow = columns_of(m) <= kWarps * kSegmentColumns, dense = has_dense_rows(m);
  if (narrow && dense)
    narrow_rows<T, true, kSquares>(row, products, block, exponents, squares, shared);
  else if (narrow)
    narrow_rows<T, false, kSquares>(row, products, block, exponents, squares, shared);
  else if (dense)
    wide_rows<T, true, kSquares>(row, products, block, exponents, squares, shared);
  else
    wide_rows<T, false, kSquares>(row, products, block, exponents, squares, shared);
}

// ---- t over chunks and spans ----

constexpr int kColumnTile = 32, kSpanLanesOfTile = kThreads / kColumnTile;

struct ColumnsRow {
  const void* partials;
  void* t;
  int32_t rows, columns, numel;  // numel: blocks
  int32_t chunk;
};

template <typename C>
__global__ void __launch_bounds__(kThreads, 2)
    power_columns_kernel(const __grid_constant__ ListChunk<ColumnsRow> list, const double* stats,
                         const int32_t* exponents, int32_t* totals) {
  RK_SHARED(C, sums, kThreads);
  RK_SHARED(int32_t, sum_exponents, kSpanLanesOfTile);
  const ListPlace place = place_of(list, static_cast<int>(blockIdx.x));
  const ColumnsRow& row = list.rows[place.row];
  if (stats[place.row * kStats + kDone] != 0.0) return;
  const int column = static_cast<int>(threadIdx.x) % kColumnTile;
  const int lane = static_cast<int>(threadIdx.x) / kColumnTile;
  const int64_t n = row.columns, c = place.tile * kColumnTile + column;
  const int chunks = (row.rows + kChunkRows - 1) / kChunkRows;
  const int spans = (chunks + kSpanChunks - 1) / kSpanChunks;
  const C* const partials = static_cast<const C*>(row.partials);
  const int32_t* const scales_of = exponents + row.chunk;
  C total = C(0);
  int32_t total_exponent = kNoExponent;
  for (int first = 0; first < spans; first += kSpanLanesOfTile) {
    const int span = first + lane;
    C sum = C(0);
    int32_t exponent = kNoExponent;
    if (span < spans && c < n) {
      const int begin = span * kSpanChunks;
      const int count = chunks - begin < kSpanChunks ? chunks - begin : kSpanChunks;
      C parts[kSpanChunks];
#pragma unroll
      for (int i = 0; i < kSpanChunks; ++i)
        parts[i] = i < count ? partials[(begin + i) * n + c] : C(0);
#pragma unroll
      for (int i = 0; i < kSpanChunks; ++i) {
        if (i < count) {
          const Scales<C> scales = follow_exponent<C>(&exponent, scales_of[begin + i]);
          sum = i == 0 ? parts[0] : sum * scales.sum + parts[i] * scales.term;
        }
      }
    }
    sums[threadIdx.x] = sum;
    if (column == 0) sum_exponents[lane] = exponent;
    __syncthreads();
    if (lane == 0) {
      for (int i = 0; i < kSpanLanesOfTile && first + i < spans; ++i) {
        const Scales<C> scales = follow_exponent<C>(&total_exponent, sum_exponents[i]);
        const C part = sums[i * kColumnTile + column];
        total = first + i == 0 ? part : total * scales.sum + part * scales.term;
      }
    }
    __syncthreads();
  }
  if (lane == 0 && c < n) static_cast<C*>(row.t)[c] = total;
  if (threadIdx.x == 0 && place.tile == 0) totals[place.row] = total_exponent;
}

// ---- norms ----

struct EndRow {
  const void *u, *v;
  void *u_out, *v_out, *u_too, *v_too;
  int32_t rows, columns, chunk;
  int32_t numel;  // 1: a block
};

struct EndArgs {
  int64_t iterations, count;
  bool frobenius, last;
  double tolerance, eps;
};

template <typename F>
__device__ __forceinline__ double lane_sum(int64_t n, double* shared, const F& f) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < n; i += kTotalLanes) sum += f(i);
  return block_sum(sum, shared);
}

template <typename C>
__global__ void __launch_bounds__(kTotalLanes, 4)
    power_norms_kernel(const __grid_constant__ ListChunk<EndRow> list, EndArgs args,
                       double* all_stats, C* numbers, const int32_t* totals,
                       const double* squares) {
  RK_SHARED(double, shared, kTotalLanes);
  RK_SHARED(Ending, ending, 1);
  const int index = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const EndRow& row = list.rows[index];
  double* const stats = all_stats + index * kStats;
  const bool done = stats[kDone] != 0.0, empty = row.rows == 0 || row.columns == 0;
  C* const y = static_cast<C*>(row.u_out);
  C* const t = static_cast<C*>(row.v_out);
  const C* const u = static_cast<const C*>(row.u);
  const C* const v = static_cast<const C*>(row.v);
  if (!done) {
    if (args.frobenius) {
      // Over the chunks of a span in order, and the spans as lanes.
      const int chunks = (row.rows + kChunkRows - 1) / kChunkRows;
      const int spans = (chunks + kSpanChunks - 1) / kSpanChunks;
      const double sum = lane_sum(empty ? 0 : spans, shared, [&](int64_t span) {
        double part = 0.0;
        for (int i = 0; i < kSpanChunks && span * kSpanChunks + i < chunks; ++i)
          part += squares[row.chunk + span * kSpanChunks + i];
        return part;
      });
      if (thread == 0) stats[kFrobenius] = sqrt(sum);
    }
    const int64_t rows = empty ? 0 : row.rows, columns = empty ? 0 : row.columns;
    if (args.iterations == 0) {
      const double sigma = lane_sum(rows, shared, [&](int64_t i) {
        return static_cast<double>(u[i]) * static_cast<double>(y[i]);
      });
      if (thread == 0) {
        stats[kSigma] = sigma;
        ending[0].replaced = false;
      }
    } else {
      const double yy = lane_sum(rows, shared, [&](int64_t i) {
        return static_cast<double>(y[i]) * static_cast<double>(y[i]);
      });
      const double tt = lane_sum(columns, shared, [&](int64_t i) {
        return static_cast<double>(t[i]) * static_cast<double>(t[i]);
      });
      if (thread == 0) {
        if (empty)
          ending[0].replaced = false;
        else
          ending[0] = end_iteration(yy, tt, totals[index], args.tolerance, args.eps, stats);
      }
    }
    __syncthreads();
    const bool replaced = ending[0].replaced;
    const double by_y = replaced ? 1.0 / ending[0].y_norm : 0.0;
    const double by_t = replaced ? 1.0 / ending[0].t_norm : 0.0;
    for (int64_t i = thread; i < row.rows; i += kTotalLanes)
      y[i] = replaced ? static_cast<C>(static_cast<double>(y[i]) * by_y) : u[i];
    for (int64_t i = thread; i < row.columns; i += kTotalLanes)
      t[i] = replaced ? static_cast<C>(static_cast<double>(t[i]) * by_t) : v[i];
  }
  if (!args.last) return;
  __syncthreads();
  if (thread < kDone) numbers[thread * args.count + index] = static_cast<C>(stats[thread]);
  C* const u_too = static_cast<C*>(row.u_too);
  C* const v_too = static_cast<C*>(row.v_too);
  if (u_too != nullptr)
    for (int64_t i = thread; i < row.rows; i += kTotalLanes) u_too[i] = y[i];
  if (v_too != nullptr)
    for (int64_t i = thread; i < row.columns; i += kTotalLanes) v_too[i] = t[i];
}

template <typename T>
void power_iteration_as(const PowerArgs& args, cudaStream_t stream) {
  using C = compute_t<T>;
  zero_async(args.stats, static_cast<size_t>(args.count * kStats) * sizeof(double), stream);
  // As many matrices as the largest of the three descriptions allows.
  constexpr int64_t kMost = ListChunk<ChunksRow>::kMost < ListChunk<EndRow>::kMost
                                ? ListChunk<ChunksRow>::kMost
                                : ListChunk<EndRow>::kMost;
  for (int64_t begin = 0; begin < args.count; begin += kMost) {
    const int64_t count = args.count - begin < kMost ? args.count - begin : kMost;
    double* const stats = args.stats + begin * kStats;
    int32_t* const totals = args.totals + begin;
    const int64_t most = args.iterations > 1 ? args.iterations : 1;
    for (int64_t k = 0; k < most; ++k) {
      ChunksRow chunks[kMost];
      ColumnsRow columns[kMost];
      EndRow ends[kMost];
      for (int64_t i = 0; i < count; ++i) {
        const PowerRow& row = args.rows[begin + i];
        const int64_t n = columns_of(row.w), all = n > 0 ? chunk_count(row.w) : 0;
        const int teams = n <= kWarps * kSegmentColumns ? kWarps / team_of(n) : 1;
        void* const partials = static_cast<C*>(args.partials) + row.partial;
        const auto chunk = static_cast<int32_t>(row.chunk);
        chunks[i] = {row.w.data,   k == 0 ? row.v : row.v_out,
                     row.u_out,    partials,
                     row.w.rows,   row.w.n0,
                     row.w.n1,     static_cast<int32_t>(ceil_div(all, int64_t{teams})),
                     row.w.layout, chunk};
        columns[i] = {partials,
                      row.v_out,
                      row.w.rows,
                      static_cast<int32_t>(n),
                      static_cast<int32_t>(row.w.rows > 0 ? ceil_div(n, int64_t{kColumnTile}) : 0),
                      chunk};
        ends[i] = {row.u,     row.v,     row.u_out,  row.v_out,
                   row.u_too, row.v_too, row.w.rows, static_cast<int32_t>(n),
                   chunk,     1};
      }
      const bool squares = k == 0 && args.frobenius, products = args.iterations > 0;
      for_each_chunk<1>(chunks, count,
                        [&](const ListChunk<ChunksRow>& list, int64_t first, int64_t blocks) {
                          const auto launch = [&](auto with_squares) {
                            RK_LAUNCH((power_rows_kernel<T, decltype(with_squares)::value>), blocks,
                                      kThreads, 0, stream, list, products, stats + first * kStats,
                                      args.exponents, args.squares);
                          };
                          if (squares)
                            launch(std::true_type{});
                          else
                            launch(std::false_type{});
                        });
      if (products)
        for_each_chunk<1>(columns, count,
                          [&](const ListChunk<ColumnsRow>& list, int64_t first, int64_t blocks) {
                            RK_LAUNCH((power_columns_kernel<C>), blocks, kThreads, 0, stream, list,
                                      stats + first * kStats, args.exponents, totals + first);
                          });
      const EndArgs end{args.iterations, args.count,     squares,
                        k + 1 == most,   args.tolerance, args.eps};
      for_each_chunk<1>(
          ends, count, [&](const ListChunk<EndRow>& list, int64_t first, int64_t blocks) {
            RK_LAUNCH((power_norms_kernel<C>), blocks, kTotalLanes, 0, stream, list, end,
                      stats + first * kStats, static_cast<C*>(args.numbers) + begin + first,
                      totals + first, args.squares);
          });
    }
  }
}

}  // namespace

void power_iteration(const PowerArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_floating(args.dtype,
                    [&](auto zero) { power_iteration_as<decltype(zero)>(args, stream); });
}

}  // namespace regkern::cuda
