#include "spectral/random_directions.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

inline void draw_block(Distribution kind, Seed seed, uint64_t first, float* out) {
  if (kind == Distribution::normal) {
    normal_block(seed, first, out);
    normal_block(seed, first + kBlock, out + kBlock);
    return;
  }
  const Words words = philox(seed, Stream::choice, first / static_cast<uint64_t>(kSigns));
  for (int w = 0; w < 4; ++w) {
#pragma omp simd
    for (int i = 0; i < 32; ++i) out[32 * w + i] = (words.w[w] >> i) & 1u ? -1.0f : 1.0f;
  }
}

template <typename T>
void directions_as(const RandomDirectionsArgs& args) {
  using C = compute_t<T>;
  static_assert(kSigns == 2 * kBlock);
  const Seed seed = load_seed(args.seed);
  const C scale = static_cast<C>(*args.scale);
  parallel_for_list(args.rows, args.count, int64_t{1} << 14,
                    [&](const DirectionRow& row, int64_t begin, int64_t end) {
                      const T* x = static_cast<const T*>(row.x);
                      T* y = static_cast<T*>(row.y);
                      alignas(64) float drawn[kSigns];
                      alignas(64) C values[kSigns] = {};
                      for (int64_t e = begin; e < end; e += kSigns) {
                        const int64_t n = end - e < kSigns ? end - e : kSigns;
                        draw_block(args.kind, seed, static_cast<uint64_t>(row.first + e), drawn);
                        if (x != nullptr) {
                          load_elements(x + e, n, values);
#pragma omp simd
                          for (int64_t i = 0; i < kSigns; ++i)
                            values[i] += scale * static_cast<C>(drawn[i]);
                        } else {
#pragma omp simd
                          for (int64_t i = 0; i < kSigns; ++i)
                            values[i] = scale * static_cast<C>(drawn[i]);
                        }
                        store_elements(values, n, y + e);
                      }
                    });
}

}  // namespace

void random_directions(const RandomDirectionsArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { directions_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
