#include "spectral/softmax_kl.h"

#include "core/parallel.h"
#include "spectral/sample_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

constexpr int64_t kGrain = int64_t{1} << 13;  // elements of a task

inline int64_t padded(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

template <typename T, typename C>
inline const C* row_of(const void* data, int64_t row, int64_t size, C* buffer) {
  const T* x = static_cast<const T*>(data) + row * size;
  if constexpr (sizeof(T) == sizeof(C)) {
    return x;
  } else {
    load_elements(x, size, buffer);
    return buffer;
  }
}

template <typename C>
inline C maximum_of(const C* x, int64_t n) {
  C most = -static_cast<C>(__builtin_inf());
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
  return shift_of(most);
}

template <typename C>
inline Softmax<C> softmax_row(const C* x, int64_t n, C* exponentials) {
  const C most = maximum_of(x, n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) exponentials[i] = exp_to_zero(x[i] - most);
  double sum = 0.0;
  for (int64_t first = 0; first < n; first += kPiece) {
    const C* e = exponentials + first;
    sum += piece_sum(piece_length(n, first), [=](int i) { return static_cast<double>(e[i]); });
  }
  return softmax_of(most, sum);
}

template <typename T>
void divergence_as(const SoftmaxKLArgs& args) {
  using C = compute_t<T>;
  const int64_t n = args.size, room = padded(n);
  parallel_for(args.rows, 1 + kGrain / (n + 1), [&](int64_t begin, int64_t end) {
    const Scratch<C> ps(sizeof(T) == sizeof(C) ? 0 : room), qs(sizeof(T) == sizeof(C) ? 0 : room);
    const Scratch<C> ep(room), eq(room);
    for (int64_t row = begin; row < end; ++row) {
      const C* x = row_of<T>(args.p, row, n, ps.data());
      const C* y = row_of<T>(args.q, row, n, qs.data());
      const Softmax<C> p = softmax_row(x, n, ep.data());
      const Softmax<C> q = softmax_beside(p, softmax_row(y, n, eq.data()));
      double value = 0.0;
      for (int64_t first = 0; first < n; first += kPiece) {
        const int m = piece_length(n, first);
        alignas(64) C terms[kPiece];
        const C* a = x + first;
        const C* b = y + first;
        const C* ea = ep.data() + first;
        const C* eb = eq.data() + first;
#pragma omp simd
        for (int i = 0; i < m; ++i) {
          const C d = kl_exponent(a[i], b[i], p, q);
          terms[i] = kl_value(ea[i] * p.inverse, eb[i] * q.inverse, d);
        }
        const C* t = terms;
        value += piece_sum(m, [=](int i) { return static_cast<double>(t[i]); });
      }
      static_cast<C*>(args.value)[row] = static_cast<C>(value);
      store_softmax(p, args.stats, args.rows, row, 0);
      store_softmax(q, args.stats, args.rows, row, 1);
    }
  });
}

template <typename T, bool kP, bool kQ>
void gradient_as(const SoftmaxKLBackwardArgs& args) {
  using C = compute_t<T>;
  constexpr bool kNative = sizeof(T) == sizeof(C);
  const int64_t n = args.size, room = kNative ? 0 : padded(n);
  parallel_for(args.rows, 1 + kGrain / (n + 1), [&](int64_t begin, int64_t end) {
    const Scratch<C> ps(room), qs(room), dps(kP ? room : 0), dqs(kQ ? room : 0);
    for (int64_t row = begin; row < end; ++row) {
      const C* x = row_of<T>(args.p, row, n, ps.data());
      const C* y = row_of<T>(args.q, row, n, qs.data());
      const Softmax<C> p = load_softmax<C>(args.stats, args.rows, row, 0);
      const Softmax<C> q = load_softmax<C>(args.stats, args.rows, row, 1);
      const C g = static_cast<const C*>(args.g)[row];
      const C value = static_cast<const C*>(args.value)[row];
      T* to_p = static_cast<T*>(args.dp) + (kP ? row * n : 0);
      T* to_q = static_cast<T*>(args.dq) + (kQ ? row * n : 0);
      C* dp = dps.data();
      C* dq = dqs.data();
      if constexpr (kNative) {
        dp = to_p;
        dq = to_q;
      }
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const C here = kl_probability(x[i], p), there = kl_probability(y[i], q);
        const C d = kl_exponent(x[i], y[i], p, q);
        if constexpr (kP) dp[i] = g * kl_slope_p(here, d, value);
        if constexpr (kQ) dq[i] = g * kl_slope_q(here, there, d);
      }
      if constexpr (!kNative && kP) store_elements(dp, n, to_p);
      if constexpr (!kNative && kQ) store_elements(dq, n, to_q);
    }
  });
}

}  // namespace

void softmax_kl(const SoftmaxKLArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { divergence_as<decltype(zero)>(args); });
}

void softmax_kl_backward(const SoftmaxKLBackwardArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.dp == nullptr) return gradient_as<T, false, true>(args);
    if (args.dq == nullptr) return gradient_as<T, true, false>(args);
    gradient_as<T, true, true>(args);
  });
}

}  // namespace regkern::REGKERN_ISA
