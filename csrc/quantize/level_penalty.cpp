#include "quantize/level_penalty.h"

#include "quantize/level_search.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

template <typename C>
struct Block {
  C w[kBlock], f[kBlock], value[kBlock], weight[kBlock];
  int32_t code[kBlock];
};

void load_stuck(const uint8_t* masks, int64_t e, int n, uint32_t* out) {
  for (int i = 0; i < kBlock; ++i) out[i] = 0;
  if (masks == nullptr) return;
  for (int i = 0; i < n; ++i) out[i] = masks[e + i];
}

template <typename C>
void uniform_block(const LevelPenaltyArgs& a, int64_t e, int n, Block<C>& b) {
  const C step = *static_cast<const C*>(a.values);
  const CodeRange range = a.range;
  if (a.sa0 == nullptr && a.sa1 == nullptr) {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      const Level<C> level = uniform_level(b.w[i], step, b.f[i], range, false, 0u, 0u);
      b.value[i] = level.value;
      b.code[i] = level.code;
      b.weight[i] = level.weight;
    }
    return;
  }
  uint32_t sa0[kBlock], sa1[kBlock];
  load_stuck(a.sa0, e, n, sa0);
  load_stuck(a.sa1, e, n, sa1);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    const Level<C> level = uniform_level(b.w[i], step, b.f[i], range, true, sa0[i], sa1[i]);
    b.value[i] = level.value;
    b.code[i] = level.code;
    b.weight[i] = level.weight;
  }
}

template <typename C>
void level_block(const LevelPenaltyArgs& a, const Segments& s, int64_t e, int n, Block<C>& b) {
  const C* levels = static_cast<const C*>(a.values);
  const Bounds<C> bounds = *static_cast<const Bounds<C>*>(a.bounds);
  const bool varies = a.variability != 0.0;
  if (a.allowed.data != nullptr) {
    int32_t low[kBlock], high[kBlock];
    if (load_allowed(a.allowed, s, 0, e, n, a.levels, low, high)) note(a.refused);
    if (varies)
      search_block<C, true, true>(b.w, levels, a.levels, bounds, b.f, low, high, b.value, b.code);
    else
      search_block<C, false, true>(b.w, levels, a.levels, bounds, nullptr, low, high, b.value,
                                   b.code);
  } else if (varies) {
    search_block<C, true, false>(b.w, levels, a.levels, bounds, b.f, nullptr, nullptr, b.value,
                                 b.code);
  } else {
    search_block<C, false, false>(b.w, levels, a.levels, bounds, nullptr, nullptr, nullptr, b.value,
                                  b.code);
  }
  memcpy(b.weight, b.f, sizeof(b.f));
}

template <typename T>
void penalty_all(const LevelPenaltyArgs& a) {
  using C = compute_t<T>;
  const Segments s{1, 1, a.numel};
  if (!a.uniform)
    *static_cast<Bounds<C>*>(a.bounds) = bounds_of(static_cast<const C*>(a.values), a.levels);
  const Seed seed = a.seed != nullptr ? load_seed(a.seed) : Seed{0, 0};
  const C sigma = static_cast<C>(a.variability), slope = static_cast<C>(2.0 * a.mean);
  for_blocks(s, a.sums.bins, a.sums.spans, [&](int64_t, int64_t e, int n, double* sums) {
    Block<C> b;
    load_group<T>(s, a.w, 0, e, n, b.w);
    if (a.variability != 0.0) {
      float normal[kBlock];
      normal_block(seed, static_cast<uint64_t>(e), normal);
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) b.f[i] = C(1) + sigma * static_cast<C>(normal[i]);
    } else {
      for (int i = 0; i < kBlock; ++i) b.f[i] = C(1);
    }
    if (a.uniform)
      uniform_block(a, e, n, b);
    else
      level_block(a, s, e, n, b);
    C out[kBlock];
    if (a.dw != nullptr) {
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) out[i] = slope * (b.w[i] - b.value[i]);
      store_group<T>(s, out, 0, e, n, a.dw);
    }
    if (a.code != nullptr) scatter_block(s, b.code, 0, e, n, a.code);
    if (a.factor != nullptr) scatter_block(s, b.f, 0, e, n, static_cast<C*>(a.factor));
    if (a.sums.bins == 0) return;
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) out[i] = (b.w[i] - b.value[i]) * (b.w[i] - b.value[i]);
    add_to_bin(static_cast<const C*>(out), n, sums + (a.sums.bins - 1) * kSumLanes);
    if (a.sums.outputs == 0) return;
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) out[i] = (b.w[i] - b.value[i]) * b.weight[i];
    if (a.uniform)
      add_to_bin(static_cast<const C*>(out), n, sums);
    else
      add_to_bins(static_cast<const C*>(out), b.code, n, sums);
  });
  if (a.sums.bins > 0) finish_sums<C>(s, a.sums);
}

}  // namespace

void level_penalty(const LevelPenaltyArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { penalty_all<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
