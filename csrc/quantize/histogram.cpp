#include "quantize/histogram.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

// Neighbours often fall into one bin; counting them apart, no increment waits for the one before.
constexpr int kCopies = 4;
constexpr int64_t kPiece = int64_t{1} << 17;
constexpr int64_t kMost = int64_t{1} << 31;  // elements that 32-bit counts hold

template <typename T>
void count_blocks(const HistogramArgs& args, const Bins& bins, int64_t begin, int64_t end,
                  uint32_t* counts, int64_t slots) {
  using C = compute_t<T>;
  const T* x = static_cast<const T*>(args.x);
  C v[kBlock] = {};
  int32_t slot[kBlock];
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = end - i < kBlock ? end - i : kBlock;
    if (n == kBlock)
      load_block(x + i, v);
    else
      for (int64_t k = 0; k < n; ++k) v[k] = widen(x[i + k]);
    if (args.magnitude)
#pragma omp simd
      for (int k = 0; k < kBlock; ++k) v[k] = v[k] < C(0) ? -v[k] : v[k];
#pragma omp simd
    for (int k = 0; k < kBlock; ++k) slot[k] = slot_of(bins, static_cast<double>(v[k]));
    for (int64_t k = 0; k < n; ++k) ++counts[k % kCopies * slots + slot[k]];
  }
}

template <typename T>
void histogram_as(const HistogramArgs& args) {
  const Bins bins = load_bins(args);
  const int64_t slots = args.bins + kOutside;
  for (int64_t i = 0; i < args.bins; ++i) args.counts[i] = 0;
  for (int i = 0; i < kOutside; ++i) args.outside[i] = 0;
  const int64_t grain = kPiece > 4 * slots ? kPiece : 4 * slots;
  parallel_for(args.numel, grain, [&](int64_t begin, int64_t end) {
    const Scratch<uint32_t> counts(kCopies * slots);
    for (int64_t from = begin; from < end; from += kMost) {
      memset(counts.data(), 0, static_cast<size_t>(kCopies * slots) * sizeof(uint32_t));
      count_blocks<T>(args, bins, from, from + kMost < end ? from + kMost : end, counts.data(),
                      slots);
      for (int64_t i = 0; i < slots; ++i) {
        int64_t total = 0;
        for (int k = 0; k < kCopies; ++k) total += counts[k * slots + i];
        int64_t* to = i < args.bins ? args.counts + i : args.outside + (i - args.bins);
        if (total != 0) __atomic_fetch_add(to, total, __ATOMIC_RELAXED);
      }
    }
  });
  if (args.clip) {
    args.counts[0] += args.outside[0];
    args.counts[args.bins - 1] += args.outside[1];
  }
}

}  // namespace

void histogram(const HistogramArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { histogram_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
