#include "masks/draw.h"

#include <algorithm>

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

constexpr int64_t kGrain = 64;  // a sample takes about a microsecond

// Orders samples by key; equal keys by index, as counting the smaller ones does.
class ByKey {
 public:
  explicit ByKey(const uint64_t* keys) : keys_(keys) {}
  bool operator()(int64_t a, int64_t b) const {
    return keys_[a] != keys_[b] ? keys_[a] < keys_[b] : a < b;
  }

 private:
  const uint64_t* keys_;
};

}  // namespace

void mix_params(const MixParamsArgs& args, Context) {
  parallel_for(args.batch, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) draw_mix(args, b);
  });
  if (args.pairing != Pairing::perm && args.pairing != Pairing::derange) {
    for (int64_t b = 0; b < args.batch; ++b)
      args.partner[b] = fixed_partner(args.pairing, b, args.batch);
    return;
  }
  for (int64_t b = 0; b < args.batch; ++b) {
    args.keys[b] = pairing_key(args, b);
    args.order[b] = b;
  }
  std::sort(args.order, args.order + args.batch, ByKey(args.keys));
  for (int64_t rank = 0; rank < args.batch; ++rank) store_partner(args, rank);
}

void erase_params(const EraseParamsArgs& args, Context) {
  parallel_for(args.batch, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) draw_erase(args, b);
  });
}

}  // namespace regkern::REGKERN_ISA
