#include "proximal/group_law.h"

#include "proximal/group_blocks.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

template <typename F>
void for_groups(Dtype compute, Law law, int64_t groups, F&& f) {
  dispatch_compute(compute, [&](auto zero) {
    dispatch_law(law, [&](auto kind) {
      parallel_for(groups, kGrain / kBatch, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) f(kind, static_cast<decltype(zero)>(0), g);
      });
    });
  });
}

template <typename C>
void law_of(const GroupLawArgs& args) {
  C* const factors = static_cast<C*>(args.factors);
  for (int64_t r = 0; r < args.count; ++r) {
    const GroupRow& row = args.rows[r];
    parallel_for(row.slices, kGrain / kBatch, [&](int64_t begin, int64_t end) {
      int64_t zeros = 0;
      for (int64_t g = begin; g < end; g += kBatch) {
        const int n = static_cast<int>(smaller(kBatch, end - g));
        zeros += law_batch<C>(args, row, g, n, args.sums + row.slice + g, factors + row.slice + g);
      }
      add_zeros(args, zeros);
    });
  }
}

}  // namespace

void group_law(const GroupLawArgs& args, Context) {
  dispatch_compute(args.dtype, [&](auto zero) { law_of<decltype(zero)>(args); });
}

void group_slopes(const GroupSlopesArgs& args, Context) {
  for_groups(args.compute, args.law, args.groups, [&](auto law, auto zero, int64_t g) {
    slopes_of<decltype(law)::value, decltype(zero)>(args, g);
  });
}

void group_penalty(const GroupPenaltyArgs& args, Context) {
  for_groups(args.compute, args.law, args.groups, [&](auto law, auto zero, int64_t g) {
    penalty_of<decltype(law)::value, decltype(zero)>(args, g);
  });
}

}  // namespace regkern::REGKERN_ISA
