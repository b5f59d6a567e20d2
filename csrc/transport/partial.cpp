#include "transport/partial.h"

#include "core/parallel.h"
#include "transport/solo_team.h"

namespace regkern::REGKERN_ISA {

void transport_partial(const transport::PartialArgs& args, Context) {
  parallel_for(args.batch, 1 + 4096 / (args.size + 1), [&](int64_t begin, int64_t end) {
    transport::SoloTeam<transport::kPartialLanes> solo;
    for (int64_t p = begin; p < end; ++p) transport::partial_half_step(solo, args, p);
  });
}

}  // namespace regkern::REGKERN_ISA
