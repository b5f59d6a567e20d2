#include "proximal/sensitivity.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 15;

template <Sensitivity kKind, typename C>
void shrink_block(const SensitivityPoint<C>& p, const C* g, const C* s, bool has_lr, C* w) {
  if (has_lr) {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) w[i] = shrunk_weight<kKind>(p, w[i], g[i], s[i]);
  } else {  // without a step, an infinite gradient moves nothing
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) w[i] = shrunk_weight<kKind>(p, w[i], C(0), s[i]);
  }
}

template <typename T>
void shrink_piece(const SensitivityShrinkArgs& args, const SensitivityRow& row, int64_t begin,
                  int64_t end) {
  using C = compute_t<T>;
  const SensitivityPoint<C> p = load_sensitivity<C>(args, row.index);
  void (*shrink)(const SensitivityPoint<C>&, const C*, const C*, bool, C*) = nullptr;
  dispatch_sensitivity(args.kind,
                       [&](auto kind) { shrink = shrink_block<decltype(kind)::value, C>; });
  T* out = static_cast<T*>(row.w);
  const C* given = static_cast<const C*>(row.s);
  C w[kBlock], g[kBlock], s[kBlock];
  for (int64_t e = begin; e < end; e += kBlock) {
    const int64_t n = end - e < kBlock ? end - e : kBlock;
    load_elements(out + e, n, w);
    load_elements(static_cast<const T*>(row.g) + e, n, g);
    if (given != nullptr) {
      int64_t r = e / row.row_size, left = (r + 1) * row.row_size - e;
      for (int64_t i = 0; i < kBlock; ++i) {
        s[i] = i < n ? given[r] : C(0);
        if (--left == 0) {
          ++r;
          left = row.row_size;
        }
      }
    } else {
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) s[i] = fabs(g[i]);
    }
    shrink(p, g, s, args.lr != nullptr, w);
    if (args.keep != Keep::all)
      for (int64_t i = 0; i < n; ++i)
        if (!is_kept(args.keep, row.keep, e + i)) w[i] = C(0);
    store_elements(w, n, out + e);
  }
}

template <typename T>
void find_most(const SensitivityShrinkArgs& args) {
  using C = compute_t<T>;
  for (int64_t i = 0; i < args.tensors; ++i) args.most[i] = 0;
  parallel_for_list(
      args.rows, args.count, kGrain, [&](const SensitivityRow& row, int64_t begin, int64_t end) {
        using U = std::conditional_t<sizeof(C) == 4, uint32_t, uint64_t>;
        U most[kBlock] = {};
        C g[kBlock];
        for (int64_t e = begin; e < end; e += kBlock) {
          const int64_t n = end - e < kBlock ? end - e : kBlock;
          load_elements(static_cast<const T*>(row.g) + e, n, g);
#pragma omp simd
          for (int i = 0; i < kBlock; ++i) {
            const U bits = static_cast<U>(magnitude_bits(g[i]));
            most[i] = bits > most[i] ? bits : most[i];
          }
        }
        uint64_t found = 0;
        for (int i = 0; i < kBlock; ++i) found = most[i] > found ? most[i] : found;
        uint64_t* to = args.most + row.index;
        uint64_t before = __atomic_load_n(to, __ATOMIC_RELAXED);
        while (before < found && !__atomic_compare_exchange_n(to, &before, found, true,
                                                              __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
      });
}

}  // namespace

void sensitivity_shrink(const SensitivityShrinkArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.kind == Sensitivity::rescaled) find_most<T>(args);
    parallel_for_list(args.rows, args.count, kGrain,
                      [&](const SensitivityRow& row, int64_t begin, int64_t end) {
                        shrink_piece<T>(args, row, begin, end);
                      });
  });
}

}  // namespace regkern::REGKERN_ISA
