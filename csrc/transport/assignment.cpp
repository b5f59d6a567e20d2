#include "transport/assignment.h"

#include "core/parallel.h"
#include "transport/solo_team.h"

namespace regkern::REGKERN_ISA {

using namespace transport;

void assignment(const AssignmentArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(args.batch, 1, [&](int64_t begin, int64_t end) {
      SoloTeam<kAssignmentLanes> team;
      for (int64_t p = begin; p < end; ++p) assign_problem<T>(team, args, p);
    });
  });
}

}  // namespace regkern::REGKERN_ISA
