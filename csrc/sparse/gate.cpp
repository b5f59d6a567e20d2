#include "sparse/gate.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace sparse;

constexpr int kRun = kRandomBlock;  // elements at a time
constexpr int64_t kGrain = 32768 / kRun;

// y ← f(first, count, out) for runs of elements; results that no cache holds go past it.
template <typename T, typename F>
void for_runs(int64_t numel, T* y, const F& f) {
  static_assert(kRun == 2 * kBlock);
  const bool past = numel * static_cast<int64_t>(sizeof(T)) > kStreamingBytes &&
                    reinterpret_cast<uintptr_t>(y) % 64 == 0;
  parallel_for((numel + kRun - 1) / kRun, kGrain, [&](int64_t begin, int64_t end) {
    alignas(64) compute_t<T> out[kRun];
    alignas(64) T narrowed_out[kBlock];
    for (int64_t run = begin; run < end; ++run) {
      const int64_t e = run * kRun, n = numel - e < kRun ? numel - e : kRun;
      f(e, n, out);
      if (!past || n < kRun) {
        store_elements(out, n, y + e);
        continue;
      }
      for (int i = 0; i < kRun; i += kBlock) {
        store_block<T>(out + i, narrowed_out);
        stream_block(narrowed_out, y + e + i);
      }
    }
    if (past) stream_fence();
  });
}

template <typename T>
void score_gate_as(const ScoreGateArgs& args) {
  using C = compute_t<T>;
  const C threshold = static_cast<C>(args.threshold);
  for_runs(args.numel, static_cast<T*>(args.y), [&](int64_t e, int64_t n, C* out) {
    alignas(64) C w[kRun], s[kRun];
    load_elements(static_cast<const T*>(args.w) + e, n, w);
    load_elements(static_cast<const T*>(args.s) + e, n, s);
#pragma omp simd
    for (int i = 0; i < kRun; ++i) out[i] = gated(w[i], s[i], threshold);
  });
}

template <typename T>
void gradient_dropout_as(const GradientDropoutArgs& args) {
  using C = compute_t<T>;
  const Seed seed = load_seed(args.seed);
  const C kept = static_cast<C>(1.0 - args.strength), epsilon = static_cast<C>(args.epsilon);
  for_runs(args.numel, static_cast<T*>(args.y), [&](int64_t e, int64_t n, C* out) {
    alignas(64) C g[kRun], r[kRun];
    alignas(64) uint32_t words[kRun];
    random_bits_block<32>(seed, Stream::mask, static_cast<uint64_t>(e), words);
    load_elements(static_cast<const T*>(args.g) + e, n, g);
    load_elements(static_cast<const T*>(args.reference) + e, n, r);
#pragma omp simd
    for (int i = 0; i < kRun; ++i)
      out[i] = dropped_gradient(g[i], r[i], unit_uniform<C>(words[i]), kept, epsilon);
  });
}

}  // namespace

void score_gate(const ScoreGateArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { score_gate_as<decltype(zero)>(args); });
}

void gradient_dropout(const GradientDropoutArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { gradient_dropout_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
