#include "spectral/network_combine.h"

#include <cstring>
#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

constexpr int64_t kGrain = int64_t{1} << 15;

bool on_lines(const void* data) { return reinterpret_cast<uintptr_t>(data) % 64 == 0; }

// The factors of kBlock elements, kept while they are all of one group.
template <typename C>
struct Factors {
  C alpha[kBlock], beta[kBlock];
  int64_t group = -1;

  void load(const NetworkCombineArgs& args, const CombineRow& row, int64_t e, int64_t n) {
    const int64_t at = row.group + e / row.run;
    if (row.group + (e + n - 1) / row.run == at) {
      if (at == group) return;
      group = at;
      const C a = factor_as(args.numbers[2 * at], C(0)),
              b = factor_as(args.numbers[2 * at + 1], C(0));
      for (int i = 0; i < kBlock; ++i) {
        alpha[i] = a;
        beta[i] = b;
      }
      return;
    }
    group = -1;
    int64_t of = at, left = row.run - e % row.run;
    for (int64_t i = 0; i < n; ++i, --left) {
      if (left == 0) {
        ++of;
        left = row.run;
      }
      alpha[i] = factor_as(args.numbers[2 * of], C(0));
      beta[i] = factor_as(args.numbers[2 * of + 1], C(0));
    }
    for (int64_t i = n; i < kBlock; ++i) alpha[i] = beta[i] = C(0);
  }
};

template <Direction kDirection, typename T>
void combine_piece(const NetworkCombineArgs& args, const CombineRow& row, int64_t begin,
                   int64_t end) {
  using C = compute_t<T>;
  const T* const xs = static_cast<const T*>(row.x);
  const T* const zs = static_cast<const T*>(row.z);
  T* const ys = static_cast<T*>(row.y);
  T* const saved = static_cast<T*>(row.saved);
  const Combine<C> c{static_cast<C>(args.eta), args.q,
                     kDirection == Direction::powered ? *args.most : 0.0};
  const bool past_y = args.streaming && row.x != row.y && on_lines(ys);
  const bool past_saved = args.streaming && on_lines(saved);
  Factors<C> f;
  C x[kBlock], z[kBlock] = {}, y[kBlock];
  T out[kBlock];
  for (int64_t e = begin; e < end; e += kBlock) {
    const int64_t n = end - e < kBlock ? end - e : kBlock;
    f.load(args, row, e, n);
    // Clipping mostly leaves everything as it is.
    if (zs == nullptr && saved == nullptr && row.x == row.y && f.group >= 0 && f.alpha[0] == C(1))
      continue;
    load_elements(xs + e, n, x);
    if (zs != nullptr) load_elements(zs + e, n, z);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i)
      y[i] = combined<kDirection>(c, x[i], z[i], f.alpha[i], f.beta[i]);
    if (saved != nullptr) {
      if (past_saved && n == kBlock)
        stream_block(xs + e, saved + e);
      else
        memcpy(saved + e, xs + e, static_cast<size_t>(n) * sizeof(T));
    }
    if (past_y && n == kBlock) {
      store_block<T>(y, out);
      stream_block(out, ys + e);
    } else {
      store_elements(y, n, ys + e);
    }
  }
  if (args.streaming) stream_fence();
}

template <Direction kDirection>
void combine_as(const NetworkCombineArgs& args) {
  dispatch_floating(args.dtype, [&](auto zero) {
    parallel_for_list(args.rows, args.count, kGrain,
                      [&](const CombineRow& row, int64_t begin, int64_t end) {
                        combine_piece<kDirection, decltype(zero)>(args, row, begin, end);
                      });
  });
}

}  // namespace

void network_combine(const NetworkCombineArgs& args, Context) {
  switch (args.direction) {
    case Direction::plain:
      return combine_as<Direction::plain>(args);
    case Direction::adaptive:
      return combine_as<Direction::adaptive>(args);
    case Direction::powered:
      return combine_as<Direction::powered>(args);
  }
}

void network_copy(const NetworkCopyArgs& args, Context) {
  const int64_t size = args.dtype == Dtype::float64 ? 8 : args.dtype == Dtype::float32 ? 4 : 2;
  parallel_for_list(
      args.rows, args.count, kGrain, [&](const CopyRow& row, int64_t begin, int64_t end) {
        copy_bytes(static_cast<const char*>(row.from) + begin * size,
                   static_cast<char*>(row.to) + begin * size, (end - begin) * size, args.streaming);
        if (args.streaming) stream_fence();
      });
}

}  // namespace regkern::REGKERN_ISA
