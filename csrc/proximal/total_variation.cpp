#include "proximal/total_variation.h"

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 13;

}  // namespace

void total_variation(const TotalVariationArgs& args, Context) {
  const Slices& s = args.slices;
  const int64_t n = slice_size(s);
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(slice_count(s), 1 + kGrain / (n + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        total_variation_line(line_of(static_cast<const T*>(args.x), s, i), n,
                             args.lam[i * args.lam_stride], line_of(static_cast<T*>(args.y), s, i),
                             line_of(args.jump, s, i));
      }
    });
  });
}

}  // namespace regkern::REGKERN_ISA
