#include <type_traits>

#include "core/random_lanes.cuh"
#include "core/tensor_list.cuh"
#include "quantize/stochastic_step.h"

namespace regkern::cuda {
namespace {

using namespace quantize;

// ---- the scalars of AdamW: one thread a tensor counts its step and does the double arithmetic
// ----

struct StepCounters {
  static constexpr int kMost = 256;
  float* at[kMost];
};

__global__ void __launch_bounds__(64)
    adamw_scalars_kernel(const __grid_constant__ AdamWArgs args,
                         const __grid_constant__ StepCounters steps, int count, int64_t first_row) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  const float t = *steps.at[i] + 1.0f;
  *steps.at[i] = t;
  args.scalars[first_row + i] = adamw_scalars<float>(args, static_cast<double>(t));
}

void launch_scalars(const AdamWArgs& args, cudaStream_t stream) {
  for (int64_t begin = 0; begin < args.count; begin += StepCounters::kMost) {
    StepCounters steps{};
    const int64_t left = args.count - begin;
    const int count = left < StepCounters::kMost ? static_cast<int>(left) : StepCounters::kMost;
    for (int i = 0; i < count; ++i) steps.at[i] = args.steps[begin + i];
    RK_LAUNCH(adamw_scalars_kernel, ceil_div(count, 64), 64, 0, stream, args, steps, count, begin);
  }
}

// ---- the step ----

__device__ __forceinline__ AdamWRule<float, false> rule_of(const AdamWArgs& args, int64_t row,
                                                           AdamWRule<float, false>*) {
  return AdamWRule<float, false>(args, args.scalars[row]);
}
__device__ __forceinline__ AdamWRule<float, true> rule_of(const AdamWArgs& args, int64_t row,
                                                          AdamWRule<float, true>*) {
  return AdamWRule<float, true>(args, args.scalars[row]);
}
template <bool kMomentum>
__device__ __forceinline__ SgdRule<float, kMomentum> rule_of(const SgdArgs& args, int64_t,
                                                             SgdRule<float, kMomentum>*) {
  return SgdRule<float, kMomentum>(args);
}

template <typename T>
__device__ __forceinline__ void load_floats(const void* data, int64_t e, int64_t left,
                                            float out[kListLanes]) {
  T in[kListLanes];
  load_lanes(static_cast<const T*>(data) + e, left, aligned_for_vectors(data), in);
#pragma unroll
  for (int i = 0; i < kListLanes; ++i) out[i] = widen(in[i]);
}

// All of the warp calls it: the random bits are traded within.
template <typename T>
__device__ __forceinline__ void store_rounded(Seed seed, int which, const StepRow& row, int64_t e,
                                              int64_t left, DrawnWords* words,
                                              const float in[kListLanes], void* data) {
  uint32_t bits[kListLanes] = {};
  if constexpr (!std::is_same_v<T, float>)
    random_lanes(seed, Stream::rounding, rounded_element(which, row.first + e), words, bits);
  T out[kListLanes];
#pragma unroll
  for (int i = 0; i < kListLanes; ++i) narrow_stochastic(in[i], bits[i], out + i);
  store_lanes(out, left, aligned_for_vectors(data), static_cast<T*>(data) + e);
}

template <typename T, typename S, typename Rule, typename Args>
__global__ void __launch_bounds__(kListThreads, 3)
    step_kernel(const __grid_constant__ Args args, const __grid_constant__ ListChunk<StepRow> chunk,
                int64_t first_row, int tiles) {
  RK_SHARED(DrawnWords, words, kListThreads);
  const Seed seed = load_seed(args.seed);
  const int64_t mine = static_cast<int64_t>(threadIdx.x) * kListLanes;
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const ListPlace place = place_of(chunk, t);
    const StepRow& row = chunk.rows[place.row];
    const int64_t e = place.tile * kListTile + mine, left = row.numel - e;
    float p[kListLanes], g[kListLanes], s[kMostStates][kListLanes];
    load_floats<T>(row.param, e, left, p);
    if (args.grad == Dtype::float32)
      load_floats<float>(row.grad, e, left, g);
    else
      load_floats<T>(row.grad, e, left, g);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) load_floats<S>(row.states[k], e, left, s[k]);
    const Rule rule = rule_of(args, first_row + place.row, static_cast<Rule*>(nullptr));
#pragma unroll
    for (int i = 0; i < kListLanes; ++i) {
      float state[kMostStates] = {};
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) state[k] = s[k][i];
      p[i] = rule(p[i], g[i], state[0], state[1], state[2]);
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) s[k][i] = state[k];
    }
    store_rounded<T>(seed, 0, row, e, left, words, p, row.param);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k)
      store_rounded<S>(seed, 1 + k, row, e, left, words, s[k], row.states[k]);
  }
}

template <typename Rule, typename Args>
void launch_steps(const Args& args, cudaStream_t stream) {
  static_assert(sizeof(ListChunk<StepRow>) + sizeof(Args) + 2 * sizeof(int64_t) <= 4096);
  dispatch_step<Rule>(args.param, args.state, [&](auto param, auto state) {
    using T = decltype(param);
    using S = decltype(state);
    for_each_chunk(args.rows, args.count,
                   [&](const ListChunk<StepRow>& chunk, int64_t first_row, int64_t tiles) {
                     RK_LAUNCH((step_kernel<T, S, Rule, Args>), grid_blocks(tiles, 8), kListThreads,
                               0, stream, args, chunk, first_row, static_cast<int>(tiles));
                   });
  });
}

}  // namespace

void adamw_stochastic(const AdamWArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  launch_scalars(args, stream);
  if (args.amsgrad)
    launch_steps<AdamWRule<float, true>>(args, stream);
  else
    launch_steps<AdamWRule<float, false>>(args, stream);
}

void sgd_stochastic(const SgdArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.has_momentum)
    launch_steps<SgdRule<float, true>>(args, stream);
  else
    launch_steps<SgdRule<float, false>>(args, stream);
}

}  // namespace regkern::cuda
