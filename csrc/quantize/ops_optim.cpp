#include <cstdint>
#include <string>
#include <vector>

#include "core/optimizer_op.h"
#include "quantize/copy_stochastic.h"
#include "quantize/stochastic_step.h"

// Ops over lists of tensors: the parameters of a network in one call.

namespace regkern::quantize {
namespace {

int64_t check_first(const Checks& check, int64_t first) {
  check.that(first >= 0 && first % kListAlign == 0, "`first` to be a multiple of 128, at least 0",
             std::to_string(first));
  return first;
}

// ---- copy_stochastic_ ----

void copy_stochastic_(Tensors dst, Tensors src, Tensor seed, int64_t first) {
  const Checks check("copy_stochastic_");
  check_first(check, first);
  check_like(check, src, "src", dst, "dst");
  if (dst.empty()) return;
  check_like(check, dst, "dst", dst, "dst");
  check.seed(seed, dst[0]);
  for (size_t i = 0; i < dst.size(); ++i) {
    const Dtype from = check.floating(src[i], "src"), to = check.floating(dst[i], "dst");
    if (to != Dtype::bfloat16 && to != Dtype::float16 && to != from)
      check.that(false, item_name("dst", i) + " of dtype bfloat16, float16 or that of `src`",
                 "another");
  }

  // Rows of one pair of dtypes, source and destination, go to the kernel together.
  constexpr int kDtypes = 4;
  std::vector<CopyRow> rows[kDtypes][kDtypes];
  Written written;
  Read read;
  for (size_t i = 0; i < dst.size(); ++i) {
    const int64_t numel = dst[i].numel();
    const Dtype from = check.floating(src[i], "src"), to = check.floating(dst[i], "dst");
    if (from == to) {
      torch::stable::copy_(dst[i], src[i]);
    } else if (numel > 0) {
      rows[static_cast<int>(from)][static_cast<int>(to)].push_back(
          {written.row_major(dst[i], false), read.row_major(src[i]), numel, first});
    }
    first += list_span(numel);
  }
  const OnDevice device(dst[0]);
  for (int from = 0; from < kDtypes; ++from)
    for (int to = 0; to < kDtypes; ++to) {
      const std::vector<CopyRow>& some = rows[from][to];
      if (some.empty()) continue;
      backend::copy_stochastic(
          CopyStochasticArgs{static_cast<Dtype>(from), static_cast<Dtype>(to), some.data(),
                             static_cast<int64_t>(some.size()), const_data<int64_t>(seed)},
          device);
    }
  written.copy_back();
}

// ---- optimizer steps ----

// The arguments of a step, checked, and their memory for as long as it runs.
class Step {
 public:
  Step(const Checks& check, const Tensors& params, const Tensors& grads,
       std::initializer_list<std::pair<const Tensors*, const char*>> states) {
    check_like(check, grads, "grads", params, "params");
    check_like(check, params, "params", params, "params");
    for (const auto& [list, name] : states) check_like(check, *list, name, params, "params");
    param = check_list(check, params, "params");
    grad = check_list(check, grads, "grads");
    check.that(param != Dtype::float64, "`params` of dtype bfloat16, float16 or float32",
               "float64");
    check.that(grad == param || grad == Dtype::float32,
               "`grads` of the dtype of `params`, or float32", "another");
    for (const auto& [list, name] : states) {
      const Dtype dtype = check_list(check, *list, name);
      check.that((dtype == Dtype::float32 || dtype == Dtype::bfloat16) &&
                     (list == states.begin()->first || dtype == state),
                 std::string("`") + name + "` of dtype float32 or bfloat16, as all states",
                 "another");
      state = dtype;
    }
    states_.assign(states.begin(), states.end());
  }

  // After all checks.
  void lay_out(const Tensors& params, const Tensors& grads, int64_t first) {
    for (size_t i = 0; i < params.size(); ++i) {
      StepRow row{};
      row.param = written_.row_major(params[i], true);
      row.grad = read_.row_major(grads[i]);
      for (size_t k = 0; k < states_.size(); ++k)
        row.states[k] = written_.row_major((*states_[k].first)[i], true);
      row.numel = params[i].numel();
      row.first = first;
      rows.push_back(row);
      first += list_span(row.numel);
    }
  }

  void finish() { written_.copy_back(); }

  Dtype param, grad, state = Dtype::float32;
  std::vector<StepRow> rows;

 private:
  std::vector<std::pair<const Tensors*, const char*>> states_;
  Written written_;
  Read read_;
};

void adamw_stochastic_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs,
                       Tensors max_exp_avg_sqs, Tensors steps, Tensor seed, double lr, double beta1,
                       double beta2, double eps, double weight_decay, bool maximize,
                       MaybeTensor lr_tensor, int64_t first) {
  const Checks check("adamw_stochastic_");
  check_first(check, first);
  if (params.empty()) return;
  const bool amsgrad = !max_exp_avg_sqs.empty();
  Step step = amsgrad ? Step(check, params, grads,
                             {{&exp_avgs, "exp_avgs"},
                              {&exp_avg_sqs, "exp_avg_sqs"},
                              {&max_exp_avg_sqs, "max_exp_avg_sqs"}})
                      : Step(check, params, grads,
                             {{&exp_avgs, "exp_avgs"}, {&exp_avg_sqs, "exp_avg_sqs"}});
  const std::vector<float*> counters = check_steps(check, steps, params);
  check.seed(seed, params[0]);
  check_betas(check, beta1, beta2);

  AdamWArgs args{};
  args.rate = check_rate(check, lr, lr_tensor, params[0]);
  step.lay_out(params, grads, first);
  args.param = step.param;
  args.grad = step.grad;
  args.state = step.state;
  args.rows = step.rows.data();
  args.count = static_cast<int64_t>(step.rows.size());
  args.steps = counters.data();
  Tensor scalars = new_tensor(params[0], {args.count, 4}, ScalarType::Float);
  args.scalars = mutable_data<AdamWScalars<float>>(scalars);
  args.seed = const_data<int64_t>(seed);
  args.beta1 = beta1;
  args.beta2 = beta2;
  args.eps = eps;
  args.weight_decay = weight_decay;
  args.maximize = maximize;
  args.amsgrad = amsgrad;
  backend::adamw_stochastic(args, OnDevice(params[0]));
  step.finish();
}

void sgd_stochastic_(Tensors params, Tensors grads, Tensors momentum_buffers, Tensor seed,
                     double lr, double momentum, double dampening, double weight_decay,
                     bool nesterov, bool maximize, bool fresh, MaybeTensor lr_tensor,
                     int64_t first) {
  const Checks check("sgd_stochastic_");
  check_first(check, first);
  if (params.empty()) return;
  const bool has_momentum = !momentum_buffers.empty();
  Step step = has_momentum ? Step(check, params, grads, {{&momentum_buffers, "momentum_buffers"}})
                           : Step(check, params, grads, {});
  check.that(has_momentum || momentum == 0.0, "`momentum_buffers` with a momentum", "none");
  check.seed(seed, params[0]);

  SgdArgs args{};
  args.rate = check_rate(check, lr, lr_tensor, params[0]);
  step.lay_out(params, grads, first);
  args.param = step.param;
  args.grad = step.grad;
  args.state = step.state;
  args.rows = step.rows.data();
  args.count = static_cast<int64_t>(step.rows.size());
  args.seed = const_data<int64_t>(seed);
  args.momentum = momentum;
  args.dampening = dampening;
  args.weight_decay = weight_decay;
  args.has_momentum = has_momentum;
  args.nesterov = nesterov;
  args.maximize = maximize;
  args.fresh = fresh;
  backend::sgd_stochastic(args, OnDevice(params[0]));
  step.finish();
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def("copy_stochastic_(Tensor(a!)[] dst, Tensor[] src, Tensor seed, int first=0) -> ()");
  m.def(
      "adamw_stochastic_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor seed, "
      "float lr, float beta1, float beta2, float eps, float weight_decay, bool maximize=False, "
      "Tensor? lr_tensor=None, int first=0) -> ()");
  m.def(
      "sgd_stochastic_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
      "Tensor seed, float lr, float momentum, float dampening, float weight_decay, "
      "bool nesterov=False, bool maximize=False, bool fresh=False, Tensor? lr_tensor=None, "
      "int first=0) -> ()");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("copy_stochastic_", TORCH_BOX(&copy_stochastic_));
  m.impl("adamw_stochastic_", TORCH_BOX(&adamw_stochastic_));
  m.impl("sgd_stochastic_", TORCH_BOX(&sgd_stochastic_));
}

}  // namespace regkern::quantize
