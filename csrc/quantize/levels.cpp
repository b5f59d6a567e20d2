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

// ---- groups that alternate in memory ----

// Blocks of kBlock neighbours after which their groups repeat.
int64_t phases_of(int64_t groups) {
  int64_t a = groups, b = kBlock;
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return groups / a;
}

constexpr int64_t kTableBytes = int64_t{1} << 18;

// Whether to go by rows of neighbours, each with the levels of its group, rather than group by
// group, where every load and store of an element is one of its own.
template <typename C>
bool by_rows(const Segments& s, int levels) {
  return s.inner == 1 && s.groups > 1 &&
         phases_of(s.groups) * kBlock * (levels + 2) * static_cast<int64_t>(sizeof(C)) <=
             kTableBytes;
}

// The tables of search_table() of every phase. A set with a NaN has it everywhere.
template <typename C>
void fill_table(const NearestLevelArgs& a, int64_t phases, C* table) {
  const int64_t groups = a.segments.groups;
  for (int64_t p = 0; p < phases; ++p)
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t g = (p * kBlock + i) % groups;
      const C* levels = static_cast<const C*>(a.values) + g * a.levels;
      const Bounds<C> b = static_cast<const Bounds<C>*>(a.bounds)[g];
      C* column = table + p * kBlock * (a.levels + 2) + i;
      column[0] = b.low;
      column[kBlock] = b.high;
      for (int j = 0; j < a.levels; ++j)
        column[(j + 2) * kBlock] = b.low != b.low ? b.low : levels[j];
    }
}

template <typename T>
void nearest_rows(const NearestLevelArgs& a) {
  using C = compute_t<T>;
  const Segments& s = a.segments;
  const Segments flat{1, 1, element_count(s)};
  const int64_t phases = phases_of(s.groups), width = int64_t{kBlock} * (a.levels + 2);
  const Scratch<C> table(phases * width);
  fill_table(a, phases, table.data());
  for_rows(s, a.sums.bins, a.sums.spans,
           [&](int64_t e, int n, int64_t row, int64_t g, double* sums) {
             C x[kBlock], value[kBlock];
             int32_t code[kBlock];
             load_group<T>(flat, a.x, 0, e, n, x);
             search_table(static_cast<const C*>(x), table.data() + e / kBlock % phases * width,
                          a.levels, value, code);
             store_group<T>(flat, value, 0, e, n, a.y);
             store_codes(flat, code, 0, e, n, a.codes);
             if (a.sums.bins == 0) return;
#pragma omp simd
             for (int i = 0; i < kBlock; ++i) value[i] = (x[i] - value[i]) * (x[i] - value[i]);
             // (lane, group) in the order of the elements, again and again.
             const int64_t around = s.groups * kSumLanes;
             int64_t at = row % kSumLanes * s.groups + g;
             for (int i = 0; i < n; at = 0) {
               const int64_t left = around - at;
               const int count = left < n - i ? static_cast<int>(left) : n - i;
#pragma omp simd
               for (int j = 0; j < count; ++j) sums[at + j] += static_cast<double>(value[i + j]);
               i += count;
             }
           });
  if (a.sums.bins > 0) finish_sums<C>(s, a.sums);
}

template <typename T>
void nearest_all(const NearestLevelArgs& a) {
  using C = compute_t<T>;
  const Segments& s = a.segments;
  fill_bounds<C>(a.values, s.groups, a.levels, a.bounds);
  if (a.allowed.data == nullptr && by_rows<C>(s, a.levels)) return nearest_rows<T>(a);
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
void latent_gradient_rows(const LevelGradientArgs& a, compute_t<T> slope) {
  using C = compute_t<T>;
  const Segments& s = a.segments;
  const Segments flat{1, 1, element_count(s)};
  const C* levels = static_cast<const C*>(a.values);
  // Where the levels of the group of every element of a phase begin.
  const int64_t phases = phases_of(s.groups), width = s.groups * a.levels;
  const Scratch<int32_t> firsts(phases * kBlock);
  for (int64_t i = 0; i < phases * kBlock; ++i)
    firsts[i] = static_cast<int32_t>(i % s.groups * a.levels);
  for_rows(s, a.levels, a.sums.spans, [&](int64_t e, int n, int64_t row, int64_t g, double* sums) {
    C grad[kBlock], x[kBlock], term[kBlock];
    int32_t code[kBlock], bin[kBlock];
    load_group<T>(flat, a.g, 0, e, n, grad);
    load_group<T>(flat, a.x, 0, e, n, x);
    load_codes(flat, a.codes, a.levels, 0, e, n, code);
    const int32_t* first = firsts.data() + e / kBlock % phases * kBlock;
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      bin[i] = first[i] + code[i];
      term[i] = levels[bin[i]] - x[i];
    }
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) grad[i] = grad[i] - slope * term[i];
    store_group<T>(flat, grad, 0, e, n, a.dx);
    for (int i = 0; i < n; ++row, g = 0) {
      double* lane = sums + row % kSumLanes * width;
      const int64_t left = s.groups - g;
      const int stop = left < n - i ? i + static_cast<int>(left) : n;
      for (; i < stop; ++i) lane[bin[i]] += static_cast<double>(term[i]);
    }
  });
  finish_sums<C>(s, a.sums);
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
  // The sums of a piece have to fit into a cache.
  if (a.kind == LevelGradient::latent && bins > 0 && s.inner == 1 && s.groups > 1 &&
      s.groups * bins * kSumLanes <= (int64_t{1} << 15))
    return latent_gradient_rows<T>(a, slope);
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
