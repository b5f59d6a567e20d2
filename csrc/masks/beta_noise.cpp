#include "masks/beta_noise.h"

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {

void beta_noise(const masks::BetaNoiseArgs& args, Context) {
  parallel_for(args.numel, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) args.out[i] = masks::beta_noise_of(args, i);
  });
}

}  // namespace regkern::REGKERN_ISA
