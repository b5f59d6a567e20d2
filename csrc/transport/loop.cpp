#include "transport/loop.h"

#include "core/list_sums.h"
#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace transport;

// One thread, which has all the lanes.
struct Lanes {
  template <typename F>
  double sum(int64_t n, F f) const {
    double lanes[kTotalLanes] = {};
    int64_t i = 0;
    for (; i + kTotalLanes <= n; i += kTotalLanes) {
#pragma omp simd
      for (int k = 0; k < kTotalLanes; ++k) lanes[k] += f(i + k);
    }
    const int rest = static_cast<int>(n - i);
#pragma omp simd
    for (int k = 0; k < rest; ++k) lanes[k] += f(i + k);
    return sum_by_halves<kTotalLanes>(lanes);
  }
  template <typename F>
  void each(int64_t n, F f) const {
    for (int64_t i = 0; i < n; ++i) f(i);
  }
  template <typename F>
  void once(F f) const {
    f();
  }
};

}  // namespace

void transport_relax(const RelaxArgs& args, Context) {
  parallel_for(
      args.batch, 1 + (int64_t{1} << 14) / (args.size + 1), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          if (args.done[p] != 0) continue;
          const double damping = damping_of(args.rho[p], args.eps[p]), omega = args.omega[p];
          const double* const raw = args.raw + p * args.size;
          const double* const old = args.old + p * args.size;
          double* const next = args.next + p * args.size;
          for (int64_t i = 0; i < args.size; ++i) next[i] = relaxed(old[i], raw[i], damping, omega);
        }
      });
}

void transport_step(const StepArgs& args, Context) {
  parallel_for(args.batch, 1 + 4096 / (args.n + args.m + 1), [&](int64_t begin, int64_t end) {
    Lanes lanes;
    for (int64_t p = begin; p < end; ++p) step(lanes, args, p);
  });
}

void transport_end(const EndArgs& args, Context) {
  parallel_for(args.batch, 1 + 4096 / (args.n + args.m + 1), [&](int64_t begin, int64_t end) {
    Lanes lanes;
    for (int64_t p = begin; p < end; ++p) finish(lanes, args, p);
  });
}

}  // namespace regkern::REGKERN_ISA
