#include "transport/kernel_sums.h"

#include "core/parallel.h"
#include "core/vectors.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

// A block of rows side by side in vectors: coordinate k of its rows stands at k · kRows.
constexpr int kRows = 32;
constexpr int kPairs = kRows * kTileColumns;

template <typename C>
constexpr int kParts = kRows / kRegisterLanes<C>;

// r2[c · kRows + r] of a tile of columns, whose coordinate k stands at k · kTileColumns.
template <typename C>
inline void distances(const C* x, const C* y, int64_t size, C* r2) {
  // As many columns at a time as leave their sums in registers.
  constexpr int kAtOnce = kRegisterLanes<C> >= 8 ? kRegisterLanes<C> / 4 : 1;
  for (int first = 0; first < kTileColumns; first += kAtOnce) {
    Register<C> sums[kAtOnce][kParts<C>] = {};
    for (int64_t k = 0; k < size; ++k) {
      const C* const row = x + k * kRows;
      const C* const column = y + k * kTileColumns + first;
#pragma GCC unroll 16
      for (int p = 0; p < kParts<C>; ++p) {
        const Register<C> here = load_register(row + p * kRegisterLanes<C>);
#pragma GCC unroll 4
        for (int c = 0; c < kAtOnce; ++c) {
          const Register<C> d = here - column[c];
          sums[c][p] += d * d;
        }
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < kAtOnce; ++c)
#pragma GCC unroll 16
      for (int p = 0; p < kParts<C>; ++p)
        store_register(r2 + (first + c) * kRows + p * kRegisterLanes<C>, sums[c][p]);
  }
}

// forces[k · kRows + r] += Σ_c terms[c][r] (x − y_c)
template <typename C>
inline void add_forces(const C* x, const C* y, const C* terms, int64_t size, C* forces) {
  for (int64_t k = 0; k < size; ++k) {
    Register<C> here[kParts<C>], sums[kParts<C>] = {};
#pragma GCC unroll 16
    for (int p = 0; p < kParts<C>; ++p)
      here[p] = load_register(x + k * kRows + p * kRegisterLanes<C>);
#pragma GCC unroll 8
    for (int c = 0; c < kTileColumns; ++c) {
      const C there = y[k * kTileColumns + c];
#pragma GCC unroll 16
      for (int p = 0; p < kParts<C>; ++p)
        sums[p] += load_register(terms + c * kRows + p * kRegisterLanes<C>) * (here[p] - there);
    }
#pragma GCC unroll 16
    for (int p = 0; p < kParts<C>; ++p) {
      C* const to = forces + k * kRows + p * kRegisterLanes<C>;
      store_register(to, load_register(to) + sums[p]);
    }
  }
}

template <CloudKernel kKernel, bool kGradient, typename C>
inline void add_terms(const C* r2, const KernelScale<C>* scales, int64_t count, C* terms) {
  for (int64_t s = 0; s < count; ++s) {
    const KernelScale<C> scale = scales[s];
#pragma omp simd
    for (int i = 0; i < kPairs; ++i) terms[i] += kernel_term<kKernel, kGradient>(r2[i], scale);
  }
}

template <bool kGradient, typename C>
inline void add_terms(CloudKernel kernel, const C* r2, const KernelScale<C>* scales, int64_t count,
                      C* terms) {
  switch (kernel) {
    case CloudKernel::gaussian:
      return add_terms<CloudKernel::gaussian, kGradient>(r2, scales, count, terms);
    case CloudKernel::laplacian:
      return add_terms<CloudKernel::laplacian, kGradient>(r2, scales, count, terms);
    case CloudKernel::energy:
      return add_terms<CloudKernel::energy, kGradient>(r2, scales, count, terms);
    case CloudKernel::imq:
      return add_terms<CloudKernel::imq, kGradient>(r2, scales, count, terms);
    case CloudKernel::rational:
      return add_terms<CloudKernel::rational, kGradient>(r2, scales, count, terms);
  }
}

// Columns in tiles, zeros where there are none or none that count.
template <typename C>
void pack(const KernelSumsArgs& args, int64_t tiles, C* packed, C* weights) {
  parallel_for(args.batch * tiles, 256, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t b = t / tiles, first = t % tiles * kTileColumns;
      C* const to = packed + t * kTileColumns * args.size;
      for (int c = 0; c < kTileColumns; ++c) {
        const int64_t j = first + c, at = b * args.columns + j;
        const C w = j < args.columns ? static_cast<const C*>(args.w)[at] : C(0);
        weights[t * kTileColumns + c] = w;
        const C* const y = static_cast<const C*>(args.y) + at * args.size;
        for (int64_t k = 0; k < args.size; ++k) to[k * kTileColumns + c] = w == C(0) ? C(0) : y[k];
      }
    }
  });
}

template <typename C, bool kGradient>
class RowBlock {
 public:
  RowBlock(const KernelSumsArgs& args, const KernelScale<C>* scales)
      : args_(args),
        scales_(scales),
        x_(args.size * kRows),
        forces_(kGradient ? args.size * kRows : 0),
        total_(kGradient ? args.size * kRows : 0) {}

  // packed and weights: the columns of this row's batch.
  void run(int64_t b, int64_t first, const C* packed, const C* weights) {
    const int64_t size = args_.size, left = args_.rows - first;
    count_ = static_cast<int>(left < kRows ? left : kRows);
    first_ = first;
    const C* const x = static_cast<const C*>(args_.x) + (b * args_.rows + first) * size;
    for (int64_t k = 0; k < size; ++k)
      for (int r = 0; r < kRows; ++r) x_[k * kRows + r] = r < count_ ? x[r * size + k] : C(0);
    double sums[kRows] = {};
    if (kGradient) memset(total_.data(), 0, static_cast<size_t>(size) * kRows * sizeof(C));
    const int64_t length = chunk_columns(args_.columns);
    for (int64_t begin = 0; begin < args_.columns; begin += length) {
      const int64_t end = begin + length < args_.columns ? begin + length : args_.columns;
      if constexpr (kGradient) {
        memset(forces_.data(), 0, static_cast<size_t>(size) * kRows * sizeof(C));
        for (int64_t j = begin; j < end; j += kTileColumns)
          add_tile_forces(j, packed + j * size, weights + j);
#pragma omp simd
        for (int64_t i = 0; i < size * kRows; ++i) total_[i] += forces_[i];
      } else {
        double chunk[kRows] = {};
        for (int64_t j = begin; j < end; j += kSpanColumns)
          add_span(j, j + kSpanColumns < end ? j + kSpanColumns : end, packed, weights, chunk);
        for (int r = 0; r < kRows; ++r) sums[r] += chunk[r];
      }
    }
    C* const out = static_cast<C*>(args_.out);
    if constexpr (kGradient) {
      for (int r = 0; r < count_; ++r)
        for (int64_t k = 0; k < size; ++k)
          out[(b * args_.rows + first + r) * size + k] = total_[k * kRows + r];
    } else {
      for (int r = 0; r < count_; ++r) out[b * args_.rows + first + r] = static_cast<C>(sums[r]);
    }
  }

 private:
  void add_span(int64_t begin, int64_t end, const C* packed, const C* weights, double* chunk) {
    alignas(64) C sums[kRows] = {}, r2[kPairs], terms[kPairs];
    for (int64_t j = begin; j < end; j += kTileColumns) {
      distances(x_.data(), packed + j * args_.size, args_.size, r2);
      memset(terms, 0, sizeof(terms));
      add_terms<false>(args_.kernel, r2, scales_, args_.scales, terms);
      if (args_.skip_diagonal) skip(j, terms);
      for (int c = 0; c < kTileColumns; ++c) {
        const C w = weights[j + c];
        if (w == C(0)) continue;
#pragma omp simd
        for (int r = 0; r < kRows; ++r) sums[r] += w * terms[c * kRows + r];
      }
    }
#pragma omp simd
    for (int r = 0; r < kRows; ++r) chunk[r] += static_cast<double>(sums[r]);
  }

  void add_tile_forces(int64_t j, const C* tile, const C* weights) {
    alignas(64) C r2[kPairs], terms[kPairs];
    distances(x_.data(), tile, args_.size, r2);
    memset(terms, 0, sizeof(terms));
    add_terms<true>(args_.kernel, r2, scales_, args_.scales, terms);
    if (args_.skip_diagonal) skip(j, terms);
    for (int c = 0; c < kTileColumns; ++c) {
      const C w = weights[c];
#pragma omp simd
      for (int r = 0; r < kRows; ++r)
        terms[c * kRows + r] = choose(w == C(0), C(0), w * terms[c * kRows + r]);
    }
    add_forces(x_.data(), tile, terms, args_.size, forces_.data());
  }

  void skip(int64_t j, C* terms) const {
    for (int c = 0; c < kTileColumns; ++c) {
      const int64_t r = j + c - first_;
      if (r >= 0 && r < kRows) terms[c * kRows + r] = C(0);
    }
  }

  const KernelSumsArgs& args_;
  const KernelScale<C>* scales_;
  Scratch<C> x_, forces_, total_;
  int64_t first_ = 0;
  int count_ = 0;
};

template <typename C, bool kGradient>
void sums_as(const KernelSumsArgs& args) {
  const int64_t tiles = (args.columns + kTileColumns - 1) / kTileColumns;
  const int64_t blocks = (args.rows + kRows - 1) / kRows;
  const Scratch<C> packed(args.batch * tiles * kTileColumns * args.size);
  const Scratch<C> weights(args.batch * tiles * kTileColumns);
  pack(args, tiles, packed.data(), weights.data());
  KernelScale<C> scales[kMostScales];
  for (int64_t s = 0; s < args.scales; ++s) scales[s] = kernel_scale<C>(args.kernel, args.scale[s]);
  const int64_t work = args.columns * (args.size + 16) + 1;
  parallel_for(args.batch * blocks, 1 + (int64_t{1} << 14) / work, [&](int64_t begin, int64_t end) {
    RowBlock<C, kGradient> block(args, scales);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks;
      block.run(b, i % blocks * kRows, packed.data() + b * tiles * kTileColumns * args.size,
                weights.data() + b * tiles * kTileColumns);
    }
  });
}

template <typename C>
void sums_as(const KernelSumsArgs& args) {
  if (args.gradient) return sums_as<C, true>(args);
  sums_as<C, false>(args);
}

}  // namespace

void kernel_sums(const KernelSumsArgs& args, Context) {
  if (args.dtype == Dtype::float64) return sums_as<double>(args);
  sums_as<float>(args);
}

}  // namespace regkern::REGKERN_ISA
