#include "masks/prefix.h"

#include <cstring>

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

constexpr int64_t kGrain = 32768;

template <typename T>
void prefix_as(const PrefixArgs& args) {
  const int64_t row = args.size * args.inner;
  parallel_for(args.outer * row, kGrain, [&](int64_t begin, int64_t end) {
    const T* const x = static_cast<const T*>(args.x);
    T* const y = static_cast<T*>(args.y);
    for (int64_t e = begin; e < end;) {
      const int64_t o = e / row, start = o * row, middle = start + prefix_elements(args, o);
      const int64_t kept = middle < end ? middle : end,
                    stop = start + row < end ? start + row : end;
      if (e < kept && x != y) memcpy(y + e, x + e, static_cast<size_t>(kept - e) * sizeof(T));
      const int64_t behind = e < kept ? kept : e;
#pragma omp simd
      for (int64_t at = behind; at < stop; ++at) narrow(widen(x[at]) * compute_t<T>(0), y + at);
      e = stop;
    }
  });
}

}  // namespace

void prefix(const PrefixArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { prefix_as<decltype(zero)>(args); });
}

void uniform(const UniformArgs& args, Context) {
  const Seed seed = load_seed(args.seed);
  parallel_for(args.numel, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) args.u[i] = uniform_of(seed, i);
  });
}

}  // namespace regkern::REGKERN_ISA
