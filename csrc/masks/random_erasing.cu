#include "core/launch.cuh"
#include "masks/random_erasing.h"

namespace regkern::cuda {
namespace {

using namespace masks;

constexpr int kThreads = 256;

// Boxes are applied one after the other; here all at once, so an element belongs to the last one
// that holds it. Only fills that differ between boxes have to ask.
__device__ bool in_later_box(const RandomErasingArgs& args, int64_t b, int64_t k, int64_t y,
                             int64_t x) {
  for (int64_t later = k + 1; later < args.boxes_per_sample; ++later)
    if (contains(load_box(args.boxes, b * args.boxes_per_sample + later), y, x)) return true;
  return false;
}

// A piece of work is one of `slices` of a box in one plane; nothing outside the boxes is touched.
template <typename T, Fill kFill, typename I>
__global__ void __launch_bounds__(kThreads, 4)
    random_erasing_kernel(RandomErasingArgs args, int64_t slices) {
  using C = compute_t<T>;
  const Images& m = args.images;
  const int64_t work_items = m.batch * args.boxes_per_sample * m.outer * slices;
  const I inner = static_cast<I>(m.inner);
  for (int64_t work = blockIdx.x; work < work_items; work += gridDim.x) {
    const int64_t item = work / slices, slice = work - item * slices;
    const int64_t which = item / m.outer, outer = item - which * m.outer;
    const int64_t b = which / args.boxes_per_sample, k = which - b * args.boxes_per_sample;
    const Box box = clipped(load_box(args.boxes, which), m);
    const I row = static_cast<I>(box.x1 - box.x0) * inner;
    const I area = static_cast<I>(box.y1 - box.y0) * row;
    T* plane = static_cast<T*>(args.y) + (b * m.outer + outer) * m.height * m.width * m.inner;
    const bool same = kFill != Fill::pixel && inner == 1;
    T value{};
    if (same && area > 0)
      value = narrowed<T>(static_cast<C>(channel_fill(args, b, k, channel_of(args, outer, 0))));
    for (I e = static_cast<I>(slice) * kThreads + threadIdx.x; e < area;
         e += static_cast<I>(slices) * kThreads) {
      const I r = e / row, column = e - r * row, pixel = inner == 1 ? column : column / inner;
      const int64_t y = box.y0 + static_cast<int64_t>(r), x = box.x0 + static_cast<int64_t>(pixel);
      const auto i = static_cast<int64_t>(column - pixel * inner);
      if (kFill == Fill::channel && in_later_box(args, b, k, y, x)) continue;
      if constexpr (kFill == Fill::pixel)
        value = narrowed<T>(static_cast<C>(normal_of(
            load_seed(args.seed), static_cast<uint64_t>(element_of(args, b, outer, y, x, i)))));
      else if (!same)
        value = narrowed<T>(static_cast<C>(channel_fill(args, b, k, channel_of(args, outer, i))));
      plane[(y * m.width + box.x0) * m.inner + static_cast<int64_t>(column)] = value;
    }
  }
}

template <typename T, Fill kFill, typename I>
void launch_erasing(const RandomErasingArgs& args, cudaStream_t stream) {
  const Images& m = args.images;
  const int64_t items = m.batch * args.boxes_per_sample * m.outer;
  // How large the boxes are is not known here: where there are few of them, each is cut into
  // slices, of four elements a thread or more for a box that fills its plane.
  const int64_t plane = ceil_div(m.height * m.width * m.inner, int64_t{4} * kThreads);
  const int64_t wanted = ceil_div(int64_t{device_sm_count()} * 8, items);
  const int64_t slices = wanted < plane ? wanted : plane;
  RK_LAUNCH((random_erasing_kernel<T, kFill, I>), grid_blocks(items * slices, 32), kThreads, 0,
            stream, args, slices);
}

template <typename T, Fill kFill>
void erase_as(const RandomErasingArgs& args, cudaStream_t stream) {
  const Images& m = args.images;
  if (m.height * m.width * m.inner < (int64_t{1} << 31))
    launch_erasing<T, kFill, uint32_t>(args, stream);
  else
    launch_erasing<T, kFill, int64_t>(args, stream);
}

}  // namespace

void random_erasing(const RandomErasingArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Images& m = args.images;
  if (m.batch * args.boxes_per_sample * sample_size(m) == 0) return;
  if (args.fill == Fill::value)
    return dispatch_floating_or_byte(
        args.dtype, [&](auto zero) { erase_as<decltype(zero), Fill::value>(args, stream); });
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.fill == Fill::channel)
      erase_as<T, Fill::channel>(args, stream);
    else
      erase_as<T, Fill::pixel>(args, stream);
  });
}

}  // namespace regkern::cuda
