#include "transport/quantile_cost.h"

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {

using namespace transport;

void quantile_cost(const QuantileCostArgs& args, Context) {
  constexpr int64_t kGrain = 2048;
  parallel_for(args.rows * args.n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) quantile_element(args, e / args.n, e % args.n);
  });
}

}  // namespace regkern::REGKERN_ISA
