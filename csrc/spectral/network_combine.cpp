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
  int64_t begin = 0, end = 0;  // what they are for

  bool same(int64_t e, int64_t n) const { return begin <= e && e + n <= end; }

  void load(const NetworkCombineArgs& args, const CombineRow& row, int64_t e, int64_t n) {
    if (same(e, n)) return;
    int64_t group = e / row.run, left = row.run - (e - group * row.run);
    const double* number = args.numbers + 2 * (row.group + group);
    if (n <= left) {
      begin = e;
      end = e + left < row.numel ? e + left : row.numel;
      fill(number, 0, kBlock);
      return;
    }
    begin = end = 0;
    for (int64_t i = 0; i < n; number += 2, left = row.run) {
      const int64_t some = left < n - i ? left : n - i;
      fill(number, i, i + some);
      i += some;
    }
    for (int64_t i = n; i < kBlock; ++i) alpha[i] = beta[i] = C(0);
  }

 private:
  void fill(const double* number, int64_t from, int64_t to) {
    const C a = factor_as(number[0], C(0)), b = factor_as(number[1], C(0));
    for (int64_t i = from; i < to; ++i) {
      alpha[i] = a;
      beta[i] = b;
    }
  }
};

template <Direction kDirection, typename C>
void combine_block(const Combine<C> c, const Factors<C>& f, bool one, const C* x, const C* z,
                   C* y) {
  if (one) {
    const C alpha = f.alpha[0], beta = f.beta[0];
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) y[i] = combined<kDirection>(c, x[i], z[i], alpha, beta);
    return;
  }
#pragma omp simd
  for (int i = 0; i < kBlock; ++i)
    y[i] = combined<kDirection>(c, x[i], z[i], f.alpha[i], f.beta[i]);
}

// Where the elements of a block are computed from: there, or widened in a buffer.
template <typename C>
const C* widened(const C* in, C*) {
  return in;
}
template <typename T, typename C>
const C* widened(const T* in, C* buffer) {
  load_block(in, buffer);
  return buffer;
}

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
  const bool past_saved = args.streaming && saved != nullptr && on_lines(saved);
  // Clipping mostly leaves everything as it is.
  const bool scaled = zs == nullptr && saved == nullptr && row.x == row.y;
  Factors<C> f;
  alignas(64) C x[kBlock], z[kBlock] = {}, y[kBlock];
  alignas(64) T out[kBlock];
  int64_t e = begin;
  for (; e + kBlock <= end; e += kBlock) {
    f.load(args, row, e, kBlock);
    const bool one = f.same(e, kBlock);
    if (scaled && one && f.alpha[0] == C(1)) continue;
    if (past_saved)
      stream_block(xs + e, saved + e);
    else if (saved != nullptr)
      memcpy(saved + e, xs + e, kBlock * sizeof(T));
    const C* const from = widened(xs + e, x);
    const C* const along = zs == nullptr ? z : widened(zs + e, z);
    if constexpr (std::is_same_v<T, C>) {
      combine_block<kDirection>(c, f, one, from, along, past_y ? out : ys + e);
      if (past_y) stream_block(out, ys + e);
    } else {
      combine_block<kDirection>(c, f, one, from, along, y);
      if (past_y) {
        store_block<T>(y, out);
        stream_block(out, ys + e);
      } else {
        store_block<T>(y, ys + e);
      }
    }
  }
  if (e < end) {
    const int64_t n = end - e;
    f.load(args, row, e, n);
    load_elements(xs + e, n, x);
    if (zs != nullptr) load_elements(zs + e, n, z);
    combine_block<kDirection>(c, f, f.same(e, n), x, z, y);
    if (saved != nullptr) memcpy(saved + e, xs + e, static_cast<size_t>(n) * sizeof(T));
    store_elements(y, n, ys + e);
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
