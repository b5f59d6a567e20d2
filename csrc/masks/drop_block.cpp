#include "masks/drop_block.h"

#include <cstring>

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

// The bits of one plane, in 64-bit words, and the bits of one chunk of anchors.
class Plane {
 public:
  explicit Plane(const Geometry& g)
      : geometry_(g), words_((elements(g) + 63) / 64), bits_(words_ + 1) {}

  // Sets the bit of every dropped element and returns how many there are.
  int64_t draw(const Plan& plan, Seed seed, int64_t plane) {
    std::memset(bits_.data(), 0, static_cast<size_t>(words_ + 1) * sizeof(uint64_t));
    const int64_t n = anchors(geometry_), chunks = (n + kChunk - 1) / kChunk;
    bool any = false;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t begin = chunk * kChunk;
      const int size = static_cast<int>(n - begin < kChunk ? n - begin : kChunk);
      Draws draws(seed, Stream::mask, static_cast<uint64_t>(plane * chunks + chunk));
      const int count = binomial(size == kChunk ? plan.full : plan.rest, draws.next64());
      if (count == 0 && !plan.inverted) continue;
      any = true;
      std::memset(taken_, 0, sizeof(taken_));
      for (int found = 0; found < count;) {
        const uint32_t place = draws.below(static_cast<uint32_t>(size));
        const uint64_t bit = uint64_t{1} << (place & 63);
        if (taken_[place >> 6] & bit) continue;
        taken_[place >> 6] |= bit;
        ++found;
        if (!plan.inverted) stamp(begin + place);
      }
      if (!plan.inverted) continue;
      for (int place = 0; place < size; ++place)
        if (!(taken_[place >> 6] >> (place & 63) & 1)) stamp(begin + place);
    }
    if (!any) return 0;
    int64_t dropped = 0;
    for (int64_t i = 0; i < words_; ++i) dropped += __builtin_popcountll(bits_[i]);
    return dropped;
  }

  // Writes the inverse of the bits at position `at` of the packed output. The words before `at`
  // have been written; the bits after it are still zero.
  void write_kept(uint32_t* out, int64_t at) const {
    const int64_t n = elements(geometry_);
    if (at % 32 == 0 && n % 32 == 0) {
      uint32_t* words = out + at / 32;
      for (int64_t i = 0; i < n / 32; ++i)
        words[i] = ~static_cast<uint32_t>(bits_[i >> 1] >> (32 * (i & 1)));
      return;
    }
    for (int64_t i = 0; i < n; i += 32) {
      uint32_t word = static_cast<uint32_t>(bits_[i >> 6] >> (i & 63));
      word = ~word & low_bits(n - i);
      const int64_t bit = at + i;
      const int shift = static_cast<int>(bit & 31);
      if (shift == 0) {
        out[bit >> 5] = word;
        continue;
      }
      out[bit >> 5] |= word << shift;
      const uint32_t high = word >> (32 - shift);
      // The last word of the output may end here.
      if (n - i > 32 - shift) out[(bit >> 5) + 1] = high;
    }
  }

 private:
  void stamp(int64_t anchor) {
    for_each_run(geometry_, anchor, [this](int64_t offset, int64_t length) {
      uint64_t* word = bits_.data() + (offset >> 6);
      int64_t shift = offset & 63;
      if (length <= 64) {
        // Two words without a branch: whether a run crosses into the next one cannot be predicted.
        const uint64_t ones = ~uint64_t{0} >> (64 - length);
        word[0] |= ones << shift;
        word[1] |= ones >> 1 >> (63 - shift);
        return;
      }
      while (length > 0) {
        const int64_t here = length < 64 - shift ? length : 64 - shift;
        const uint64_t ones = here == 64 ? ~uint64_t{0} : (uint64_t{1} << here) - 1;
        *word++ |= ones << shift;
        length -= here;
        shift = 0;
      }
    });
  }

  const Geometry& geometry_;
  int64_t words_;
  Scratch<uint64_t> bits_;  // and one word more, where a run that ends at the end may touch nothing
  uint64_t taken_[kChunk / 64];
};

// The plan depends on nothing but shape and rate: training calls it with the same ones again.
const Plan& plan_of(const DropBlockMaskArgs& args, double p) {
  struct Key {
    Geometry geometry;
    Rate rate;
    double gamma_scale, p;
  };
  constexpr int kKept = 8;
  thread_local Key keys[kKept];
  thread_local Plan plans[kKept];
  thread_local int used = 0, next = 0;
  const Geometry& g = args.geometry;
  for (int i = 0; i < used; ++i) {
    const Key& key = keys[i];
    const Geometry& h = key.geometry;
    if (key.p == p && key.rate == args.rate && key.gamma_scale == args.gamma_scale &&
        h.border == g.border && std::memcmp(h.size, g.size, sizeof(g.size)) == 0 &&
        std::memcmp(h.block, g.block, sizeof(g.block)) == 0)
      return plans[i];
  }
  const int i = next;
  next = (next + 1) % kKept;
  used = used < kKept ? used + 1 : used;
  make_plan(g, p, args.rate, args.gamma_scale, SequentialKept{}, &plans[i]);
  keys[i] = {g, args.rate, args.gamma_scale, p};
  return plans[i];
}

// Planes share words unless their size is a multiple of 32 bits; a piece of work starts at a word.
int64_t planes_per_word_boundary(int64_t size) {
  int64_t planes = 1;
  while (planes * size % 32 != 0) planes *= 2;
  return planes;
}

}  // namespace

void drop_block_mask(const DropBlockMaskArgs& args, Context) {
  const Geometry& g = args.geometry;
  const Seed seed = load_seed(args.seed);
  const double p = args.p_tensor != nullptr ? *args.p_tensor : args.p;
  const Plan& plan = plan_of(args, p);
  const int64_t size = elements(g), per_group = args.groups > 0 ? g.planes / args.groups : 0;
  std::memset(args.kept, 0, static_cast<size_t>(args.groups) * sizeof(int64_t));
  if (size % 32 != 0)
    std::memset(args.mask, 0, static_cast<size_t>(bit_words(g.planes * size)) * sizeof(uint32_t));
  const int64_t batch = planes_per_word_boundary(size);
  const int64_t batches = size == 0 ? 0 : (g.planes + batch - 1) / batch;
  // A piece of 2¹⁵ bits costs about as much as starting a thread on it.
  const int64_t grain = 1 + (int64_t{1} << 15) / (batch * (size + 1));
  parallel_for(batches, grain, [&](int64_t begin, int64_t end) {
    Plane plane(g);
    const int64_t last = end * batch < g.planes ? end * batch : g.planes;
    for (int64_t i = begin * batch; i < last; ++i) {
      const int64_t dropped = plane.draw(plan, seed, i);
      plane.write_kept(args.mask, i * size);
      // Integers add up to the same in any order.
      __atomic_fetch_add(args.kept + i / per_group, size - dropped, __ATOMIC_RELAXED);
    }
  });
  for (int64_t i = 0; i < args.groups; ++i)
    args.scale[i] = mask_scale(plan, args.normalize, per_group * size, args.kept[i]);
}

}  // namespace regkern::REGKERN_ISA
