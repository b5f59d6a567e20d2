#include "spectral/rank_one.h"

#include <cstring>
#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

// Where an element stands: (o, r, i) in (n0, rows, n1). Kept, as divisions take longer than a
// block.
struct Position {
  Position(const RankOneRow& row, int64_t e)
      : i(e % row.n1), r(e / row.n1 % row.rows), o(e / row.n1 / row.rows) {}
  int64_t i, r, o;
};

// (b u_r) v_c of the next n elements, at most kBlock.
template <typename C>
inline void products_of(const RankOneRow& row, C b, Position* at, int64_t n, C* out) {
  const C* const u = static_cast<const C*>(row.u);
  const C* const v = static_cast<const C*>(row.v);
  if (n == kBlock && row.n1 - at->i > n) {
    const C by = b * u[at->r];
    const C* const from = v + at->o * row.n1 + at->i;
#pragma omp simd
    for (int k = 0; k < kBlock; ++k) out[k] = by * from[k];
    at->i += n;
    return;
  }
  for (int64_t k = 0; k < n;) {
    const int64_t length = row.n1 - at->i < n - k ? row.n1 - at->i : n - k;
    const C by = b * u[at->r];
    const C* const from = v + at->o * row.n1 + at->i;
    for (int64_t j = 0; j < length; ++j) out[k + j] = by * from[j];
    k += length;
    at->i += length;
    if (at->i == row.n1) {
      at->i = 0;
      if (++at->r == row.rows) {
        at->r = 0;
        ++at->o;
      }
    }
  }
}

template <typename T, bool kScaled, bool kProduct>
void update(const RankOneRow& row, Pair<compute_t<T>> f, int64_t begin, int64_t end,
            bool streaming) {
  using C = compute_t<T>;
  const T* const x = static_cast<const T*>(row.x);
  T* const out = static_cast<T*>(row.out);
  C a[kBlock] = {}, product[kBlock] = {};
  alignas(64) T narrowed_block[kBlock];
  Position at(row, begin);
  for (int64_t e = begin; e < end; e += kBlock) {
    const int64_t n = end - e < kBlock ? end - e : kBlock;
    if constexpr (kProduct) products_of(row, f.b, &at, n, product);
    if (x != nullptr) load_elements(x + e, n, a);
    if constexpr (kScaled) {
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) a[i] = f.a * a[i];
    }
    if constexpr (kProduct) {
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) product[i] = x != nullptr ? a[i] + product[i] : product[i];
    }
    C* const result = kProduct ? product : a;
    if (streaming && n == kBlock) {
      store_block<T>(result, narrowed_block);
      stream_block(narrowed_block, out + e);
    } else {
      store_elements(result, n, out + e);
    }
  }
  if (streaming) stream_fence();
}

// The same without blocks between, run by run.
template <bool kScaled, bool kProduct, typename C>
void update_runs(const RankOneRow& row, Pair<C> f, int64_t begin, int64_t end) {
  const C* const x = static_cast<const C*>(row.x);
  C* const out = static_cast<C*>(row.out);
  if constexpr (!kProduct) {
#pragma omp simd
    for (int64_t e = begin; e < end; ++e) out[e] = f.a * x[e];
  } else {
    for (int64_t e = begin; e < end;) {
      const int64_t run = e / row.n1, i = e % row.n1;
      const int64_t n = row.n1 - i < end - e ? row.n1 - i : end - e;
      const C by = f.b * static_cast<const C*>(row.u)[run % row.rows];
      const C* const v = static_cast<const C*>(row.v) + run / row.rows * row.n1 + i;
      const C* const from = x + e;
      C* const to = out + e;
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) to[k] = (kScaled ? f.a * from[k] : from[k]) + by * v[k];
      e += n;
    }
  }
}

template <typename T, bool kScaled, bool kProduct>
void update_any(const RankOneRow& row, Pair<compute_t<T>> f, int64_t begin, int64_t end,
                bool streaming) {
  if constexpr (std::is_same_v<T, compute_t<T>>) {
    if (!streaming && row.x != nullptr && (!kProduct || row.n1 >= kBlock))
      return update_runs<kScaled, kProduct>(row, f, begin, end);
  }
  update<T, kScaled, kProduct>(row, f, begin, end, streaming);
}

}  // namespace

void rank_one(const RankOneArgs& args, Context) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < args.count; ++i) bytes += args.rows[i].numel;
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = compute_t<T>;
    const bool large = bytes * static_cast<int64_t>(sizeof(T)) >= kStreamingBytes;
    parallel_for_list(args.rows, args.count, int64_t{1} << 15,
                      [&](const RankOneRow& row, int64_t begin, int64_t end) {
                        const int64_t i = &row - args.rows;
                        const Pair<C> f =
                            factors_of(args.factors, static_cast<const C*>(args.numbers)[i],
                                       args.products != nullptr ? args.products[i] : 0.0, args.cap);
                        const bool streaming = large && row.x != row.out &&
                                               reinterpret_cast<uintptr_t>(row.out) % 64 == 0;
                        if (args.factors == Factors::given)
                          update_any<T, false, true>(row, f, begin, end, streaming);
                        else if (args.factors == Factors::divide)
                          update_any<T, true, false>(row, f, begin, end, streaming);
                        else
                          update_any<T, true, true>(row, f, begin, end, streaming);
                      });
  });
}

}  // namespace regkern::REGKERN_ISA
