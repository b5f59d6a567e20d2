#include "sparse/sample_entries.h"

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace sparse;

constexpr int64_t kGrain = 32768;  // entries

template <typename T>
void write(const EntryWriteArgs& args) {
  using C = compute_t<T>;
  const C* const values = static_cast<const C*>(args.values);
  const C* const base = static_cast<const C*>(args.base);
  T* const weight = static_cast<T*>(args.weight);
  const int64_t average = args.nnz / (args.rows > 0 ? args.rows : 1);
  const int64_t grain = kGrain / (average > 0 ? average : 1);
  parallel_for(args.rows, grain > 0 ? grain : 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* const row = weight + r * args.columns;
      for (int64_t e = args.offsets[r]; e < args.offsets[r + 1]; ++e)
        narrow(base != nullptr ? values[e] + base[e] : values[e], row + args.index[e]);
    }
  });
}

}  // namespace

void sparse_write(const EntryWriteArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { write<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
