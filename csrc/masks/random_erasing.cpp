#include "masks/random_erasing.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

// Normals of the elements [first, first + n), which need not start at a block.
template <typename T>
void fill_normal(Seed seed, int64_t first, T* y, int64_t n) {
  float normal[kBlock];
  for (int64_t e = first / kBlock * kBlock; e < first + n; e += kBlock) {
    normal_block(seed, static_cast<uint64_t>(e), normal);
    const int64_t from = e > first ? e : first;
    const int64_t to = e + kBlock < first + n ? e + kBlock : first + n;
    for (int64_t i = from; i < to; ++i)
      narrow(static_cast<compute_t<T>>(normal[i - e]), y + (i - first));
  }
}

template <typename T>
void erase_rows(const RandomErasingArgs& args, int64_t b, int64_t k, int64_t outer) {
  const Images& m = args.images;
  const Box box = load_box(args.boxes, b * args.boxes_per_sample + k);
  if (box.x0 >= box.x1 || box.y0 >= box.y1) return;
  const int64_t width = (box.x1 - box.x0) * m.inner;
  T* plane = static_cast<T*>(args.y) + (b * m.outer + outer) * m.height * m.width * m.inner;
  using C = compute_t<T>;
  if (m.inner == 1 && args.fill != Fill::pixel) {
    const T value =
        narrowed<T>(static_cast<C>(channel_fill(args, b, k, channel_of(args, outer, 0))));
    for (int64_t y = box.y0; y < box.y1; ++y) {
      T* row = plane + y * m.width + box.x0;
      for (int64_t i = 0; i < width; ++i) row[i] = value;
    }
    return;
  }
  const Seed seed = args.fill == Fill::pixel ? load_seed(args.seed) : Seed{0, 0};
  for (int64_t y = box.y0; y < box.y1; ++y) {
    T* row = plane + (y * m.width + box.x0) * m.inner;
    if (m.inner == 1) {
      fill_normal(seed, element_of(args, b, outer, y, box.x0, 0), row, width);
      continue;
    }
    for (int64_t i = 0; i < m.inner; ++i) {
      const C value = args.fill == Fill::pixel
                          ? C(0)
                          : static_cast<C>(channel_fill(args, b, k, channel_of(args, outer, i)));
      for (int64_t x = 0; x < box.x1 - box.x0; ++x)
        narrow(args.fill == Fill::pixel
                   ? static_cast<C>(normal_of(
                         seed, static_cast<uint64_t>(element_of(args, b, outer, y, box.x0 + x, i))))
                   : value,
               row + x * m.inner + i);
    }
  }
}

}  // namespace

void random_erasing(const RandomErasingArgs& args, Context) {
  const Images& m = args.images;
  const int64_t grain = 1 + (int64_t{1} << 17) / (m.height * m.width * m.inner + 1);
  parallel_for(m.batch * m.outer, grain, [&](int64_t begin, int64_t end) {
    dispatch_floating_or_byte(args.dtype, [&](auto zero) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t k = 0; k < args.boxes_per_sample; ++k)
          erase_rows<decltype(zero)>(args, i / m.outer, k, i % m.outer);
    });
  });
}

}  // namespace regkern::REGKERN_ISA
