#include "proximal/pairwise.h"

#include "core/math.h"
#include "core/parallel.h"
#include "core/square_sum.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 14;

template <typename T>
void move_row(const PairArgs& args, int64_t p) {
  using C = compute_t<T>;
  int64_t first = 0, second = 0;
  if (!rows_of_pair(args, p, &first, &second)) return;
  const int64_t n = args.n;
  const T* const x = static_cast<const T*>(args.x) + first * n;
  const T* const y = static_cast<const T*>(args.y) + second * n;
  T* const x_out = static_cast<T*>(args.x_out) + first * n;
  T* const y_out = static_cast<T*>(args.y_out) + second * n;
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSegment) {
    const int64_t left = n - begin;
    total += segment_square_sum<C>(static_cast<int>(left < kSegment ? left : kSegment), [=](int i) {
      return widen(x[begin + i]) - widen(y[begin + i]);
    });
  }
  const C t = static_cast<const C*>(args.threshold)[args.threshold_per_pair ? p : 0];
  const PairMove<C> move = pair_move(static_cast<C>(regkern::sqrt(total)), t);
  if (args.shares != nullptr) static_cast<C*>(args.shares)[p] = move.share;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    C a, b;
    move_pair(move, widen(x[i]), widen(y[i]), &a, &b);
    narrow(a, x_out + i);
    narrow(b, y_out + i);
  }
}

}  // namespace

void pair_prox(const PairArgs& args, Context) {
  const int64_t grain = args.n > 0 ? kGrain / args.n : kGrain;
  dispatch_floating(args.dtype, [&](auto zero) {
    parallel_for(args.count, grain > 0 ? grain : 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) move_row<decltype(zero)>(args, p);
    });
  });
}

}  // namespace regkern::REGKERN_ISA
