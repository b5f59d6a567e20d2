#include "quantize/copy_stochastic.h"

#include <cstring>

#include "core/parallel.h"
#include "quantize/stochastic_block.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

// A float source needs no copy; the others are widened, kBlock at a time.
inline const float* widened(const float* in, float*) { return in; }
inline const double* widened(const double* in, double*) { return in; }
template <typename S>
inline const float* widened(const S* in, float* buffer) {
  for (int i = 0; i < kRandomBlock; i += kBlock) load_block(in + i, buffer + i);
  return buffer;
}

template <typename S, typename D>
void copy_piece(Seed seed, const CopyRow& row, int64_t begin, int64_t end) {
  using C = compute_t<S>;
  const S* src = static_cast<const S*>(row.src);
  D* dst = static_cast<D*>(row.dst);
  C buffer[kRandomBlock];
  int64_t e = begin;
  for (; e + kRandomBlock <= end; e += kRandomBlock)
    store_stochastic(seed, rounded_element(0, row.first + e), widened(src + e, buffer), dst + e);
  if (e == end) return;
  S in[kRandomBlock] = {};
  D out[kRandomBlock];
  memcpy(in, src + e, static_cast<size_t>(end - e) * sizeof(S));
  store_stochastic(seed, rounded_element(0, row.first + e), widened(in, buffer), out);
  memcpy(dst + e, out, static_cast<size_t>(end - e) * sizeof(D));
}

}  // namespace

void copy_stochastic(const CopyStochasticArgs& args, Context) {
  const Seed seed = load_seed(args.seed);
  dispatch_copy(args, [&](auto from, auto to) {
    parallel_for_list(args.rows, args.count, int64_t{1} << 15,
                      [&](const CopyRow& row, int64_t begin, int64_t end) {
                        copy_piece<decltype(from), decltype(to)>(seed, row, begin, end);
                      });
  });
}

}  // namespace regkern::REGKERN_ISA
