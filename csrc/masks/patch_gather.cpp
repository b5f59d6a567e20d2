#include "masks/patch_gather.h"

#include <cstring>

#include "core/fetch.h"
#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

constexpr int64_t kBytesPerPiece = int64_t{1} << 17;
constexpr int64_t kFetched = 1024;  // bytes; the processor sees where it goes from there

template <typename T>
void fill_sum_as(const PatchFillSumArgs& args) {
  using C = compute_t<T>;
  const int64_t columns = args.columns, count = (args.rows + kFillRows - 1) / kFillRows;
  const auto* const g = static_cast<const T*>(args.g);
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    const Scratch<C> sums(columns);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      for (int64_t c = 0; c < columns; ++c) sums[c] = C(0);
      const int64_t last =
          (chunk + 1) * kFillRows < args.rows ? (chunk + 1) * kFillRows : args.rows;
      for (int64_t row = chunk * kFillRows; row < last; ++row) {
        if (args.ids[row] < args.count) continue;
        const T* const from = g + row * columns;
        C* const to = sums.data();
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) to[c] += widen(from[c]);
      }
      double* const out = args.chunks + chunk * columns;
      for (int64_t c = 0; c < columns; ++c) out[c] = static_cast<double>(sums[c]);
    }
  });
  parallel_for(columns, 4096, [&](int64_t begin, int64_t end) {
    const Scratch<double> sums(end - begin);
    double* const to = sums.data();
    for (int64_t c = 0; c < end - begin; ++c) to[c] = 0.0;
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      const double* const from = args.chunks + chunk * columns + begin;
#pragma omp simd
      for (int64_t c = 0; c < end - begin; ++c) to[c] += from[c];
    }
    for (int64_t c = begin; c < end; ++c)
      narrow(static_cast<C>(to[c - begin]), static_cast<T*>(args.sum) + c);
  });
}

}  // namespace

void patch_copy(const PatchCopyArgs& args, Context) {
  const int64_t bytes = args.bytes, all = args.batch * args.rows;
  const bool past = all * bytes > kStreamingBytes;
  const int64_t grain = bytes > 0 ? kBytesPerPiece / bytes : kBytesPerPiece;
  const auto* const x = static_cast<const char*>(args.x);
  parallel_for(all, grain > 0 ? grain : 1, [&](int64_t begin, int64_t end) {
    const Scratch<char> zeros(bytes);
    memset(zeros.data(), 0, static_cast<size_t>(bytes));
    for (int64_t at = begin; at < end; ++at) {
      const int64_t sample = at / args.rows, id = args.ids[at];
      const bool own = id >= 0 && id < args.count;
      const void* from = zeros.data();
      if (own) from = x + sample * args.x_sample + id * args.x_row;
      if (id >= args.count && args.fill != nullptr) from = args.fill;
      if (at + 1 < end && args.ids[at + 1] >= 0 && args.ids[at + 1] < args.count)
        fetch<false>(x + (at + 1) / args.rows * args.x_sample + args.ids[at + 1] * args.x_row,
                     kFetched, bytes);
      copy_bytes(from, static_cast<char*>(args.y) + at * bytes, bytes, past);
    }
    if (past) stream_fence();
  });
}

void patch_inverse(const PatchInverseArgs& args, Context) {
  const int64_t work = args.rows + args.count;
  const int64_t grain = work > 0 ? 16384 / work : 16384;
  parallel_for(args.batch, grain > 0 ? grain : 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t* const ids = args.ids + b * args.rows;
      int64_t* const inverse = args.inverse + b * args.count;
      for (int64_t i = 0; i < args.count; ++i) inverse[i] = -1;
      for (int64_t j = 0; j < args.rows; ++j)
        if (ids[j] >= 0 && ids[j] < args.count) inverse[ids[j]] = j;
    }
  });
}

void patch_fill_sum(const PatchFillSumArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { fill_sum_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
