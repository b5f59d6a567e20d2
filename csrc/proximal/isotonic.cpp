#include "proximal/isotonic.h"

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 13;

}  // namespace

void isotonic(const IsotonicArgs& args, Context) {
  const Slices& s = args.slices;
  const int64_t n = slice_size(s);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(slice_count(s), 1 + kGrain / (n + 1), [&](int64_t begin, int64_t end) {
      Scratch<double> sums(n), weights(n), ends(n);
      for (int64_t i = begin; i < end; ++i) {
        const Line<const T> none{nullptr, 0};
        isotonic_line(
            line_of(static_cast<const T*>(args.x), s, i),
            args.weights != nullptr ? line_of(static_cast<const T*>(args.weights), s, i) : none, n,
            args.increasing, args.entropic, line_of(static_cast<T*>(args.y), s, i),
            line_of(args.jump, s, i), sums.data(), weights.data(), ends.data());
      }
    });
  });
}

}  // namespace regkern::REGKERN_ISA
