#include "quantize/stochastic_step.h"

#include <cstring>
#include <type_traits>

#include "core/parallel.h"
#include "quantize/stochastic_block.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace quantize;

constexpr int kN = kRandomBlock;
constexpr int64_t kGrain = int64_t{1} << 14;

// Floats of a block: where they are in memory already, or widened into the buffer.
inline float* floats(float* in, float*) { return in; }
template <typename T>
inline float* floats(const T* in, float* buffer) {
  for (int i = 0; i < kN; i += kBlock) load_block(in + i, buffer + i);
  return buffer;
}

template <typename T>
void store(Seed seed, int which, int64_t element, const float* in, T* out) {
  if constexpr (!std::is_same_v<T, float>)
    store_stochastic(seed, rounded_element(which, element), in, out);
}

template <typename T, typename S, typename Rule>
void update_block(const Rule& rule, Seed seed, int64_t element, T* param, const float* grad,
                  S* const* states) {
  float buffer[1 + kMostStates][kN];
  float* p = floats(param, buffer[0]);
  float* s[kMostStates] = {};
  for (int k = 0; k < Rule::kStates; ++k) s[k] = floats(states[k], buffer[1 + k]);
  float* s0 = s[0];
  float* s1 = s[1];
  float* s2 = s[2];
#pragma omp simd
  for (int i = 0; i < kN; ++i) {
    float a = 0.0f, b = 0.0f, c = 0.0f;
    if constexpr (Rule::kStates > 0) a = s0[i];
    if constexpr (Rule::kStates > 1) b = s1[i];
    if constexpr (Rule::kStates > 2) c = s2[i];
    p[i] = rule(p[i], grad[i], a, b, c);
    if constexpr (Rule::kStates > 0) s0[i] = a;
    if constexpr (Rule::kStates > 1) s1[i] = b;
    if constexpr (Rule::kStates > 2) s2[i] = c;
  }
  store(seed, 0, element, p, param);
  for (int k = 0; k < Rule::kStates; ++k) store(seed, 1 + k, element, s[k], states[k]);
}

template <typename T, typename S, typename Rule>
void update_piece(const Rule& rule, Seed seed, Dtype grad_dtype, const StepRow& row, int64_t begin,
                  int64_t end) {
  T* param = static_cast<T*>(row.param);
  S* states[kMostStates] = {};
  for (int k = 0; k < Rule::kStates; ++k) states[k] = static_cast<S*>(row.states[k]);
  float grad[kN];
  for (int64_t e = begin; e < end; e += kN) {
    const int64_t n = end - e < kN ? end - e : kN;
    const bool wide = grad_dtype == Dtype::float32;
    if (n == kN) {
      if (wide)
        memcpy(grad, static_cast<const float*>(row.grad) + e, sizeof(grad));
      else if constexpr (!std::is_same_v<T, float>)
        floats(static_cast<const T*>(row.grad) + e, grad);
      S* at[kMostStates] = {};
      for (int k = 0; k < Rule::kStates; ++k) at[k] = states[k] + e;
      update_block(rule, seed, row.first + e, param + e, grad, at);
      continue;
    }
    // The end of a tensor, padded to a block.
    const auto bytes = [n](auto* data) { return static_cast<size_t>(n) * sizeof(*data); };
    T p[kN] = {}, g[kN] = {};
    S s[kMostStates][kN] = {};
    S* at[kMostStates] = {s[0], s[1], s[2]};
    memset(grad, 0, sizeof(grad));
    memcpy(p, param + e, bytes(p));
    if (wide) {
      memcpy(grad, static_cast<const float*>(row.grad) + e, bytes(grad));
    } else if constexpr (!std::is_same_v<T, float>) {
      memcpy(g, static_cast<const T*>(row.grad) + e, bytes(g));
      floats(g, grad);
    }
    for (int k = 0; k < Rule::kStates; ++k) memcpy(s[k], states[k] + e, bytes(s[k]));
    update_block(rule, seed, row.first + e, p, grad, at);
    memcpy(param + e, p, bytes(p));
    for (int k = 0; k < Rule::kStates; ++k) memcpy(states[k] + e, s[k], bytes(s[k]));
  }
}

// rule_of(index of a row) is the rule of that row.
template <typename Rule, typename Args, typename RuleOf>
void update_all(const Args& args, RuleOf rule_of) {
  const Seed seed = load_seed(args.seed);
  dispatch_step<Rule>(args.param, args.state, [&](auto param, auto state) {
    parallel_for_list(args.rows, args.count, kGrain,
                      [&](const StepRow& row, int64_t begin, int64_t end) {
                        update_piece<decltype(param), decltype(state), Rule>(
                            rule_of(&row - args.rows), seed, args.grad, row, begin, end);
                      });
  });
}

}  // namespace

void adamw_stochastic(const AdamWArgs& args, Context) {
  double t = 0.0;
  for (int64_t i = 0; i < args.count; ++i) {
    *args.steps[i] += 1.0f;
    const auto now = static_cast<double>(*args.steps[i]);
    // Most tensors are at the same step.
    args.scalars[i] = i > 0 && now == t ? args.scalars[i - 1] : adamw_scalars<float>(args, now);
    t = now;
  }
  if (args.amsgrad)
    update_all<AdamWRule<float, true>>(
        args, [&](int64_t i) { return AdamWRule<float, true>(args, args.scalars[i]); });
  else
    update_all<AdamWRule<float, false>>(
        args, [&](int64_t i) { return AdamWRule<float, false>(args, args.scalars[i]); });
}

void sgd_stochastic(const SgdArgs& args, Context) {
  if (args.has_momentum)
    update_all<SgdRule<float, true>>(args, [&](int64_t) { return SgdRule<float, true>(args); });
  else
    update_all<SgdRule<float, false>>(args, [&](int64_t) { return SgdRule<float, false>(args); });
}

}  // namespace regkern::REGKERN_ISA
