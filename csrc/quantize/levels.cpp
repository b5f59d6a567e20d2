#include "quantize/levels.h"

#include "quantize/level_search.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

template <typename C>
void fill_bounds(const void* values, int64_t groups, int levels, void* out) {
  for (int64_t g = 0; g < groups; ++g)
    static_cast<Bounds<C>*>(out)[g] = bounds_of(static_cast<const C*>(values) + g * levels, levels);
}

void store_codes(const Segments& s, const int32_t* code, int64_t g, int64_t k, int n,
                 const Codes& codes) {
  if (codes.wide) return scatter_block(s, code, g, k, n, static_cast<int32_t*>(codes.data));
  uint8_t narrow[kBlock];
  for (int i = 0; i < kBlock; ++i) narrow[i] = static_cast<uint8_t>(code[i]);
  scatter_block(s, narrow, g, k, n, static_cast<uint8_t*>(codes.data));
}

void load_codes(const Segments& s, const Codes& codes, int levels, int64_t g, int64_t k, int n,
                int32_t* code) {
  if (codes.wide) {
    gather_block(s, static_cast<const int32_t*>(codes.data), g, k, n, code);
  } else {
    uint8_t narrow[kBlock];
    gather_block(s, static_cast<const uint8_t*>(codes.data), g, k, n, narrow);
    for (int i = 0; i < kBlock; ++i) code[i] = narrow[i];
  }
  const uint32_t last = static_cast<uint32_t>(levels) - 1u;
  for (int i = 0; i < kBlock; ++i) {
    const auto c = static_cast<uint32_t>(code[i]);
    code[i] = static_cast<int32_t>(c < last ? c : last);
  }
}

template <typename T>
void nearest_all(const NearestLevelArgs& a) {
  using C = compute_t<T>;
  const Segments& s = a.segments;
  fill_bounds<C>(a.values, s.groups, a.levels, a.bounds);
  for_blocks(s, a.sums.bins, a.sums.spans, [&](int64_t g, int64_t k, int n, double* sums) {
    const C* levels = static_cast<const C*>(a.values) + g * a.levels;
    const Bounds<C> bounds = static_cast<const Bounds<C>*>(a.bounds)[g];
    C x[kBlock], value[kBlock];
    int32_t code[kBlock];
    load_group<T>(s, a.x, g, k, n, x);
    if (a.allowed.data != nullptr) {
      int32_t low[kBlock], high[kBlock];
      if (load_allowed(a.allowed, s, g, k, n, a.levels, low, high)) note(a.refused);
      search_block<C, false, true>(x, levels, a.levels, bounds, nullptr, low, high, value, code);
    } else {
      search_block<C, false, false>(x, levels, a.levels, bounds, nullptr, nullptr, nullptr, value,
                                    code);
    }
    store_group<T>(s, value, g, k, n, a.y);
    store_codes(s, code, g, k, n, a.codes);
    if (a.sums.bins > 0) {
      C square[kBlock];
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) square[i] = (x[i] - value[i]) * (x[i] - value[i]);
      add_to_bin(static_cast<const C*>(square), n, sums);
    }
  });
  if (a.sums.bins > 0) finish_sums<C>(s, a.sums);
}

template <typename T>
void gradient_all(const LevelGradientArgs& a) {
  using C = compute_t<T>;
  const Segments& s = a.segments;
  if (a.kind == LevelGradient::clip) fill_bounds<C>(a.values, s.groups, a.levels, a.bounds);
  const C slope =
      a.kind == LevelGradient::latent
          ? static_cast<C>(a.mean * static_cast<double>(*static_cast<const C*>(a.commitment)))
          : C(0);
  const int bins = a.with_sums ? a.sums.bins : 0;
  for_blocks(s, bins, a.sums.spans, [&](int64_t g, int64_t k, int n, double* sums) {
    const C* levels = static_cast<const C*>(a.values) + g * a.levels;
    C grad[kBlock], x[kBlock], term[kBlock];
    int32_t code[kBlock];
    load_group<T>(s, a.g, g, k, n, grad);
    if (bins > 0 || a.kind == LevelGradient::latent)
      load_codes(s, a.codes, a.levels, g, k, n, code);
    if (a.kind == LevelGradient::latent) {
      load_group<T>(s, a.x, g, k, n, x);
      for (int i = 0; i < kBlock; ++i) term[i] = levels[code[i]] - x[i];
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) grad[i] = grad[i] - slope * term[i];
      store_group<T>(s, grad, g, k, n, a.dx);
    } else {
      memcpy(term, grad, sizeof(term));
      if (a.kind == LevelGradient::clip) {
        const Bounds<C> b = static_cast<const Bounds<C>*>(a.bounds)[g];
        load_group<T>(s, a.x, g, k, n, x);
#pragma omp simd
        for (int i = 0; i < kBlock; ++i) grad[i] = x[i] < b.low || x[i] > b.high ? C(0) : grad[i];
        store_group<T>(s, grad, g, k, n, a.dx);
      }
    }
    if (bins > 0) add_to_bins(term, code, n, sums);
  });
  if (bins > 0) finish_sums<C>(s, a.sums);
}

}  // namespace

void nearest_level(const NearestLevelArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { nearest_all<decltype(zero)>(args); });
}

void level_gradient(const LevelGradientArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { gradient_all<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
