#include "proximal/half_space.h"

#include <cstring>

#include "core/parallel.h"
#include "core/square_sum.h"
#include "core/tensor_list.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

constexpr int64_t kGrain = int64_t{1} << 15;

template <typename T>
double product_sum(const T* a, const T* b, int64_t n) {
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSegment) {
    const T *const x = a + begin, *const y = b + begin;
    const int64_t left = n - begin;
    total += segment_sum<double>(static_cast<int>(left < kSegment ? left : kSegment), [=](int i) {
      return static_cast<double>(widen(x[i])) * static_cast<double>(widen(y[i]));
    });
  }
  return total;
}

template <typename T>
void project(const HalfSpaceArgs& args) {
  parallel_for_list(
      args.rows, args.count, kGrain, [&](const HalfSpaceRow& row, int64_t begin, int64_t end) {
        // A group belongs to the piece that it begins in.
        const int64_t run = row.run;
        const int64_t last = (end + run - 1) / run;
        for (int64_t g = (begin + run - 1) / run; g < last; ++g) {
          T* const x = static_cast<T*>(row.x) + g * run;
          const T* const old = static_cast<const T*>(row.old) + g * run;
          if (leaves_half_space(product_sum(x, old, run), product_sum(old, old, run), args.eps))
            memset(x, 0, static_cast<size_t>(run) * sizeof(T));
        }
      });
}

}  // namespace

void half_space(const HalfSpaceArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { project<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
