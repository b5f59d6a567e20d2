#include "quantize/lanes.cuh"
#include "quantize/quantize.h"

namespace regkern::cuda {
namespace {

using namespace quantize;

constexpr int kThreads = kListThreads;
static_assert(kListLanes == kQuantizeLanes);

// How the scale of an element is found.
enum class Find {
  none,   // there is none
  one,    // one for all
  table,  // per block, given
  search  // from what the block holds, which a few neighbouring threads do
};

template <typename C>
__device__ __forceinline__ void store_all(const QuantizeArgs& args, const C v[kListLanes],
                                          int64_t e, int64_t left, bool aligned) {
  switch (args.store) {
    case Store::float32:
      if constexpr (sizeof(C) == 4) {
        return store_as<float>(v, e, left, aligned, args.y);
      } else {
        auto* y = static_cast<float*>(args.y) + e;
        for (int i = 0; i < kListLanes; ++i)
          if (i < left) y[i] = static_cast<float>(v[i]);
        return;
      }
    case Store::float64:
      if constexpr (sizeof(C) == 8) store_as<double>(v, e, left, aligned, args.y);
      return;
    case Store::bfloat16:
      if constexpr (sizeof(C) == 4) store_as<bfloat16>(v, e, left, aligned, args.y);
      return;
    case Store::float16:
      if constexpr (sizeof(C) == 4) store_as<float16>(v, e, left, aligned, args.y);
      return;
    default:
      break;
  }
  if constexpr (sizeof(C) == 4) {
    const Grid& g = args.rounder.grid;
    uint32_t code[kListLanes];
#pragma unroll
    for (int i = 0; i < kListLanes; ++i)
      code[i] = g.kind == Kind::integer
                    ? static_cast<uint32_t>(static_cast<int32_t>(v[i] == v[i] ? v[i] : C(0)))
                    : encode(v[i], g);
    if (args.store == Store::code16) {
      auto* y = static_cast<uint16_t*>(args.y) + e;
#pragma unroll
      for (int i = 0; i < kListLanes; ++i)
        if (i < left) y[i] = static_cast<uint16_t>(code[i]);
    } else if (args.store == Store::code8) {
      auto* y = static_cast<uint8_t*>(args.y) + e;
      if (left >= kListLanes) {
        Vector<uint8_t, kListLanes> packed;
#pragma unroll
        for (int i = 0; i < kListLanes; ++i) packed.v[i] = static_cast<uint8_t>(code[i]);
        *reinterpret_cast<Vector<uint8_t, kListLanes>*>(y) = packed;
      } else {
#pragma unroll
        for (int i = 0; i < kListLanes; ++i)
          if (i < left) y[i] = static_cast<uint8_t>(code[i]);
      }
    } else {
      auto* y = static_cast<uint8_t*>(args.y) + e / 2;
#pragma unroll
      for (int i = 0; i < kListLanes; i += 2)
        if (i < left)
          y[i / 2] = static_cast<uint8_t>((code[i] & 15u) | (i + 1 < left ? code[i + 1] << 4 : 0u));
    }
  }
}

// The range of a thread's elements, then of its group's: `width` neighbouring threads, a power of
// two. A NaN is a minimum that nothing is below, and stays.
template <typename C>
__device__ __forceinline__ void group_range(const C x[kListLanes], int width, C* low, C* high) {
  C least = x[0], most = x[0];
#pragma unroll
  for (int i = 1; i < kListLanes; ++i) {
    least = least < x[i] || least != least ? least : x[i];
    most = most > x[i] ? most : x[i];
  }
  for (int offset = 1; offset < width; offset *= 2) {
    const C theirs = __shfl_xor_sync(kWholeWarp, least, offset);
    least = least < theirs || least != least ? least : theirs;
    const C above = __shfl_xor_sync(kWholeWarp, most, offset);
    most = most > above ? most : above;
  }
  *low = least;
  *high = most;
}

template <typename C>
__device__ __forceinline__ void report(const QuantizeArgs& args, int64_t block, const Scale<C>& s,
                                       C tensor_scale) {
  if (args.scale_out != nullptr) static_cast<C*>(args.scale_out)[block] = s.scale;
  if (args.zero_point_out != nullptr) static_cast<C*>(args.zero_point_out)[block] = s.zero_point;
  if (args.scale_code != nullptr)
    args.scale_code[block] = static_cast<uint8_t>(scale_code(args, s.scale, tensor_scale));
}

template <typename C>
__device__ __forceinline__ C tensor_scale_of(const QuantizeArgs& args) {
  return args.scale.tensor_scale != nullptr ? static_cast<C>(*args.scale.tensor_scale) : C(1);
}

// v: x, then what is stored. Returns the bits of what was not clamped.
template <typename C, Kind kKind, Find kFind>
__device__ __forceinline__ uint32_t round_lanes(const QuantizeArgs& args, const Scale<C>& uniform,
                                                int64_t e, int64_t left,
                                                const uint32_t drawn[kListLanes], bool codes,
                                                C v[kListLanes]) {
  const Rounder& r = args.rounder;
  const Grid& g = r.grid;
  const bool random = is_random(r.rounding);
  const C fixed = fixed_threshold<C>(r.rounding);
  uint32_t inside = 0;
  if constexpr (kKind == Kind::cut) {
    const int dropped = 23 - g.mantissa_bits;
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      const uint32_t carry = random ? stochastic_carry(drawn[i], r.random_bits, dropped)
                                    : fixed_carry(r.rounding, dropped);
      v[i] = round_cut(v[i], g, r.rounding, r.saturate, carry);
    }
    return 0xFFu;
  } else {
    Scale<C> s = uniform;
    const auto one = [&](int i) {
      const C threshold = random ? stochastic_threshold<C>(drawn[i], r.random_bits) : fixed;
      if constexpr (kKind == Kind::floating) {
        const C max = static_cast<C>(g.max);
        const C t = kFind == Find::none ? v[i] : v[i] * s.inverse;
        inside |= (t > max || t < -max ? 0u : 1u) << i;
        const C y = round_floating(t, g, r.rounding, r.saturate, threshold);
        v[i] = kFind == Find::none || codes ? y : y * s.scale;
      } else {
        const C low = static_cast<C>(g.low), high = static_cast<C>(g.high);
        const C q = round_integer(v[i] * s.inverse, s.zero_point, r.rounding, threshold);
        inside |= (q < low || q > high ? 0u : 1u) << i;
        const C clipped = clamped(q, low, high);
        v[i] = codes ? clipped : (clipped - s.zero_point) * s.scale;
      }
    };
    if constexpr (kFind == Find::table) {
      BlockCursor cursor(args.blocks, e);
      int64_t held = -1;
      // Not unrolled, the cursor is eight times as long; constant indices keep v in registers.
#pragma unroll 1
      for (int i = 0; i < kListLanes && i < left; ++i) {
        if (cursor.block() != held) {
          held = cursor.block();
          s = given_scale<C>(args.scale, held);
        }
#pragma unroll
        for (int j = 0; j < kListLanes; ++j)
          if (j == i) one(j);
        cursor.next();
      }
    } else {
#pragma unroll
      for (int i = 0; i < kListLanes; ++i) one(i);
    }
    return inside;
  }
}

template <typename C, Kind kKind, Find kFind>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(QuantizeArgs args, bool aligned, bool codes, bool uniform_blocks) {
  RK_SHARED(DrawnWords, words, kThreads);
  const Rounder& r = args.rounder;
  const bool random = is_random(r.rounding);
  const Seed seed = random ? load_seed(args.seed) : Seed{0, 0};
  const C tensor_scale = tensor_scale_of<C>(args);
  Scale<C> s{C(1), C(1), C(0)};
  if constexpr (kFind == Find::one) s = given_scale<C>(args.scale, 0);
  const int width =
      kFind == Find::search ? static_cast<int>(args.blocks.block_cols) / kListLanes : 1;
  for (int64_t base = blockIdx.x * kListTile; base < args.numel;
       base += static_cast<int64_t>(gridDim.x) * kListTile) {
    const int64_t e = base + static_cast<int64_t>(threadIdx.x) * kListLanes;
    const int64_t left = args.numel - e;
    C v[kListLanes];
    uint32_t drawn[kListLanes] = {};
    load_as(args.dtype, args.x, e, left, aligned, v);
    if (random) draw_lanes(seed, r.random_bits, e, words, drawn);
    if constexpr (kFind == Find::search) {
      C low, high;
      group_range(v, width, &low, &high);
      s = computed_scale(args.scale.rule, args.scale, r.grid, low, high, tensor_scale);
      if (left > 0 && static_cast<int>(threadIdx.x) % width == 0)
        report(args, e / args.blocks.block_cols, s, tensor_scale);
    }
    // Where blocks are whole vectors, all lanes of a thread have one scale.
    uint32_t inside = 0;
    if constexpr (kFind == Find::table) {
      if (uniform_blocks) {
        if (left > 0) s = given_scale<C>(args.scale, e / args.blocks.block_cols);
        inside = round_lanes<C, kKind, Find::one>(args, s, e, left, drawn, codes, v);
      } else {
        inside = round_lanes<C, kKind, Find::table>(args, s, e, left, drawn, codes, v);
      }
    } else {
      inside = round_lanes<C, kKind, kFind>(args, s, e, left, drawn, codes, v);
    }
    if (left > 0) store_all(args, v, e, left, aligned);
    if (args.inside != nullptr) {
      // Four neighbouring threads hold a word between them.
      inside = left >= kListLanes ? inside : left > 0 ? inside & ((1u << left) - 1u) : 0u;
      inside <<= threadIdx.x % 4 * kListLanes;
      inside |= __shfl_xor_sync(kWholeWarp, inside, 1);
      inside |= __shfl_xor_sync(kWholeWarp, inside, 2);
      if (threadIdx.x % 4 == 0 && left > 0) args.inside[e / 32] = inside;
    }
  }
}

// Scales from ranges, one thread a block of the tensor. The inverse takes the place of the minimum.
template <typename C>
__global__ void __launch_bounds__(kThreads) scales_kernel(QuantizeArgs args, int64_t blocks) {
  const C tensor_scale = tensor_scale_of<C>(args);
  C* minimum = static_cast<C*>(args.minimum);
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < blocks;
       k += static_cast<int64_t>(gridDim.x) * kThreads) {
    const Scale<C> s = computed_scale(args.scale.rule, args.scale, args.rounder.grid, minimum[k],
                                      static_cast<const C*>(args.maximum)[k], tensor_scale);
    report(args, k, s, tensor_scale);
    minimum[k] = s.inverse;
  }
}

template <typename C, Kind kKind, Find kFind>
void launch_quantize(const QuantizeArgs& args, cudaStream_t stream) {
  const bool aligned = is_aligned(args.x) && is_aligned(args.y);
  const bool codes =
      args.store == Store::code8 || args.store == Store::code4 || args.store == Store::code16;
  const Blocks& b = args.blocks;
  const bool uniform = b.outer == 1 && b.rows == 1 && b.block_cols % kListLanes == 0;
  RK_LAUNCH((quantize_kernel<C, kKind, kFind>), grid_blocks(ceil_div(args.numel, kListTile), 8),
            kThreads, 0, stream, args, aligned, codes, uniform);
}

template <typename C, Kind kKind>
void quantize_as(QuantizeArgs args, cudaStream_t stream) {
  if constexpr (kKind == Kind::cut) {
    launch_quantize<C, kKind, Find::none>(args, stream);
  } else {
    const int64_t blocks = block_count(args.blocks);
    if (is_computed(args.scale.rule)) {
      if (args.minimum == nullptr) return launch_quantize<C, kKind, Find::search>(args, stream);
      RK_LAUNCH((scales_kernel<C>), grid_blocks(ceil_div(blocks, int64_t{kThreads}), 8), kThreads,
                0, stream, args, blocks);
      args.scale.rule = ScaleRule::given;
      args.scale.scale = args.scale_out;
      args.scale.inverse = args.minimum;
      args.scale.zero_point = args.zero_point_out;
    }
    if constexpr (kKind == Kind::floating)
      if (args.scale.rule == ScaleRule::none)
        return launch_quantize<C, kKind, Find::none>(args, stream);
    if (blocks == 1)
      launch_quantize<C, kKind, Find::one>(args, stream);
    else
      launch_quantize<C, kKind, Find::table>(args, stream);
  }
}

template <typename C>
void quantize_all(const QuantizeArgs& args, cudaStream_t stream) {
  if constexpr (sizeof(C) == 4)
    if (args.rounder.grid.kind == Kind::cut) return quantize_as<C, Kind::cut>(args, stream);
  if (args.rounder.grid.kind == Kind::integer)
    quantize_as<C, Kind::integer>(args, stream);
  else
    quantize_as<C, Kind::floating>(args, stream);
}

}  // namespace

void quantize(const QuantizeArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.dtype == Dtype::float64)
    quantize_all<double>(args, stream);
  else
    quantize_all<float>(args, stream);
}

}  // namespace regkern::cuda
