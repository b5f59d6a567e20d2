#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/optimizer_op.h"
#include "proximal/fused_step.h"
#include "proximal/half_space.h"
#include "proximal/op.h"
#include "proximal/zero_counts.h"

// Optimizers with a proximal operator, and what is zero after them: over lists of tensors, the
// parameters of a network in one call.

namespace regkern::proximal {
namespace {

// Groups of `run` neighbours, in whole numbers of them.
void check_runs(const Checks& check, const std::vector<int64_t>& runs, const Tensors& tensors,
                int64_t longest) {
  check.that(runs.size() == tensors.size(), "a number in `runs` for each tensor",
             std::to_string(runs.size()));
  for (size_t i = 0; i < runs.size(); ++i)
    if (runs[i] < 1 || runs[i] > longest || tensors[i].numel() % runs[i] != 0)
      check.that(false,
                 item_name("runs", i) + " in [1, " + std::to_string(longest) +
                     "], a divisor of the tensor's elements",
                 std::to_string(runs[i]));
}

struct Following {
  std::string after;
  std::string law;
  double shape;
  const std::vector<double>& bounds;
  bool positive, held;
  const std::vector<int64_t>& runs;
  const std::vector<double>& weights;
  const MaybeTensor &step, &lam, &soft;
};

// The arguments of a step, checked, and their memory for as long as it runs.
class ProxStep {
 public:
  ProxStep(const Checks& check, const Tensors& params, const Tensors& grads,
           const std::vector<std::pair<const Tensors*, const char*>>& states, const Tensors& outs,
           const Following& a)
      : states_(states) {
    check_like(check, grads, "grads", params, "params");
    check_like(check, params, "params", params, "params");
    dtype = check_list(check, params, "params");
    check.that(dtype == Dtype::float32 || dtype == Dtype::float64,
               "`params` of dtype float32 or float64", "another");
    const auto same = [&](const Tensors& list, const char* name) {
      check_like(check, list, name, params, "params");
      check.that(check_list(check, list, name) == dtype,
                 std::string("`") + name + "` of the dtype of `params`", "another");
    };
    same(grads, "grads");
    for (const auto& [list, name] : states) same(*list, name);
    if (!outs.empty()) same(outs, "outs");

    prox.after = static_cast<After>(
        check.one_of(a.after, "after", {"nothing", "elements", "groups", "metric"}));
    prox.law = law_of(check, a.law);
    prox.shape = a.shape;
    check.that(
        a.bounds.empty() || (a.bounds.size() == 2 && a.bounds[0] <= 0.0 && a.bounds[1] >= 0.0),
        "`bounds` on either side of 0, or none", std::to_string(a.bounds.size()));
    prox.low = a.bounds.empty() ? -HUGE_VAL : a.bounds[0];
    prox.high = a.bounds.empty() ? HUGE_VAL : a.bounds[1];
    prox.positive = a.positive;
    prox.held = a.held;
    prox.step = check_number(check, a.step, "step", params[0], dtype);
    prox.lam = check_number(check, a.lam, "lam", params[0], dtype);
    prox.soft = check_number(check, a.soft, "soft", params[0], dtype);
    if (prox.after != After::nothing) {
      check.that(prox.step != nullptr && prox.lam != nullptr, "`step` and `lam` with a penalty",
                 "none");
      check_runs(check, a.runs, params, kSegment);
      check.that(a.weights.size() == params.size(), "a number in `weights` for each tensor",
                 std::to_string(a.weights.size()));
    }
  }

  // After all checks.
  void lay_out(const Tensors& params, const Tensors& grads, const Tensors& outs,
               const Following& a) {
    int64_t first = 0;
    for (size_t i = 0; i < params.size(); ++i) {
      ProxRow row{};
      row.param = written_.row_major(params[i], true);
      row.grad = read_.row_major(grads[i]);
      for (size_t k = 0; k < states_.size(); ++k)
        row.states[k] = written_.row_major((*states_[k].first)[i], true);
      row.out = outs.empty() ? nullptr : written_.row_major(outs[i], false);
      row.numel = params[i].numel();
      row.first = first;
      row.run = prox.after == After::nothing ? 1 : a.runs[i];
      row.weight = prox.after == After::nothing ? 1.0 : a.weights[i];
      rows.push_back(row);
      first += list_span(row.numel);
    }
  }

  void finish() { written_.copy_back(); }

  Dtype dtype;
  Prox prox{};
  std::vector<ProxRow> rows;

 private:
  std::vector<std::pair<const Tensors*, const char*>> states_;
  Written written_;
  Read read_;
};

void prox_adamw_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs,
                 Tensors max_exp_avg_sqs, Tensors steps, Tensors outs, double lr, double beta1,
                 double beta2, double eps, double weight_decay, bool maximize,
                 MaybeTensor lr_tensor, std::string after, std::string law, double shape,
                 std::vector<double> bounds, bool positive, bool held, std::vector<int64_t> runs,
                 std::vector<double> weights, MaybeTensor step, MaybeTensor lam, MaybeTensor soft) {
  const Checks check("prox_adamw_");
  if (params.empty()) return;
  const bool amsgrad = !max_exp_avg_sqs.empty();
  std::vector<std::pair<const Tensors*, const char*>> states = {{&exp_avgs, "exp_avgs"},
                                                                {&exp_avg_sqs, "exp_avg_sqs"}};
  if (amsgrad) states.push_back({&max_exp_avg_sqs, "max_exp_avg_sqs"});
  const Following a{after, law, shape, bounds, positive, held, runs, weights, step, lam, soft};
  ProxStep run(check, params, grads, states, outs, a);
  check.that(run.prox.after != After::metric || run.prox.law == Law::soft,
             "`law` soft in Adam's metric", law);
  const std::vector<float*> counters = check_steps(check, steps, params);
  check_betas(check, beta1, beta2);

  ProxAdamWArgs args{};
  args.rate = check_rate(check, lr, lr_tensor, params[0]);
  run.lay_out(params, grads, outs, a);
  args.dtype = run.dtype;
  args.rows = run.rows.data();
  args.count = static_cast<int64_t>(run.rows.size());
  args.prox = run.prox;
  args.steps = counters.data();
  Tensor scalars = new_tensor(params[0], {args.count, 4}, compute_type(run.dtype));
  args.scalars = scalars.mutable_data_ptr();
  args.beta1 = beta1;
  args.beta2 = beta2;
  args.eps = eps;
  args.weight_decay = weight_decay;
  args.maximize = maximize;
  args.amsgrad = amsgrad;
  backend::prox_adamw(args, OnDevice(params[0]));
  run.finish();
}

void prox_sgd_(Tensors params, Tensors grads, Tensors momentum_buffers, Tensors outs, double lr,
               double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
               bool fresh, MaybeTensor lr_tensor, std::string after, std::string law, double shape,
               std::vector<double> bounds, bool positive, bool held, std::vector<int64_t> runs,
               std::vector<double> weights, MaybeTensor step, MaybeTensor lam, MaybeTensor soft) {
  const Checks check("prox_sgd_");
  if (params.empty()) return;
  const bool has_momentum = !momentum_buffers.empty();
  std::vector<std::pair<const Tensors*, const char*>> states;
  if (has_momentum) states.push_back({&momentum_buffers, "momentum_buffers"});
  const Following a{after, law, shape, bounds, positive, held, runs, weights, step, lam, soft};
  ProxStep run(check, params, grads, states, outs, a);
  check.that(has_momentum || momentum == 0.0, "`momentum_buffers` with a momentum", "none");
  check.that(run.prox.after != After::metric, "`after` other than metric", "metric");

  ProxSgdArgs args{};
  args.rate = check_rate(check, lr, lr_tensor, params[0]);
  run.lay_out(params, grads, outs, a);
  args.dtype = run.dtype;
  args.rows = run.rows.data();
  args.count = static_cast<int64_t>(run.rows.size());
  args.prox = run.prox;
  args.momentum = momentum;
  args.dampening = dampening;
  args.weight_decay = weight_decay;
  args.has_momentum = has_momentum;
  args.nesterov = nesterov;
  args.maximize = maximize;
  args.fresh = fresh;
  backend::prox_sgd(args, OnDevice(params[0]));
  run.finish();
}

// ---- the half-space projection ----

void half_space_project_(Tensors tensors, Tensors old, std::vector<int64_t> runs, double eps) {
  const Checks check("half_space_project_");
  if (tensors.empty()) return;
  check_like(check, old, "old", tensors, "tensors");
  check_like(check, tensors, "tensors", tensors, "tensors");
  const Dtype dtype = check_list(check, tensors, "tensors");
  check.that(check_list(check, old, "old") == dtype, "`old` of the dtype of `tensors`", "another");
  check.that(eps >= 0.0 && eps < 1.0, "`eps` in [0, 1)", std::to_string(eps));
  check_runs(check, runs, tensors, INT64_MAX);
  Written written;
  Read read;
  std::vector<HalfSpaceRow> rows;
  int64_t first = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t numel = tensors[i].numel();
    rows.push_back(
        {written.row_major(tensors[i], true), read.row_major(old[i]), runs[i], numel, first});
    first += list_span(numel);
  }
  backend::half_space(HalfSpaceArgs{dtype, rows.data(), static_cast<int64_t>(rows.size()), eps},
                      OnDevice(tensors[0]));
  written.copy_back();
}

// ---- zeros ----

// int64 (n, 3): zeros, zero rows, zero columns of each tensor, seen as (rows, columns, rest).
Tensor zero_counts(Tensors tensors) {
  const Checks check("zero_counts");
  check.that(!tensors.empty(), "at least one tensor in `tensors`", "none");
  Read read;
  std::vector<ZeroRow> rows;
  int64_t first = 0, flags = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    if (!on_same_device(t, tensors[0]))
      check.that(false, item_name("tensors", i) + " on " + device_name(tensors[0]), device_name(t));
    ZeroRow row{};
    row.dtype = check.floating(t, "tensors");
    row.data = read.row_major(t);
    row.numel = t.numel();
    row.rows = t.dim() > 0 ? t.size(0) : 1;
    row.columns = t.dim() > 1 ? t.size(1) : 1;
    row.inner = row.numel > 0 ? row.numel / (row.rows * row.columns) : 1;
    row.first = first;
    row.row_flags = flags;
    row.column_flags = flags + row.rows;
    flags += row.rows + row.columns;
    first += list_span(row.numel);
    rows.push_back(row);
  }
  const auto count = static_cast<int64_t>(rows.size());
  Tensor out = new_tensor(tensors[0], {count, 3}, ScalarType::Long);
  Tensor seen = new_tensor(tensors[0], {flags}, ScalarType::Int);
  backend::zero_counts(ZeroCountsArgs{rows.data(), count, flags, mutable_data<int32_t>(seen),
                                      mutable_data<int64_t>(out)},
                       OnDevice(tensors[0]));
  return out;
}

}  // namespace

#if !defined(REGKERN_CUDA)
#define REGKERN_AFTER                                                                  \
  "Tensor? lr_tensor=None, str after=\"nothing\", str law=\"soft\", float shape=0.0, " \
  "float[] bounds=[], bool positive=False, bool held=False, int[] runs=[], "           \
  "float[] weights=[], Tensor? step=None, Tensor? lam=None, Tensor? soft=None) -> ()"
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "prox_adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] "
      "exp_avg_sqs, Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor(f!)[] outs, float lr, "
      "float beta1, float beta2, float eps, float weight_decay, bool "
      "maximize=False, " REGKERN_AFTER);
  m.def(
      "prox_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
      "Tensor(c!)[] outs, float lr, float momentum, float dampening, float weight_decay, "
      "bool nesterov=False, bool maximize=False, bool fresh=False, " REGKERN_AFTER);
  m.def("half_space_project_(Tensor(a!)[] tensors, Tensor[] old, int[] runs, float eps) -> ()");
  m.def("zero_counts(Tensor[] tensors) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("prox_adamw_", TORCH_BOX(&prox_adamw_));
  m.impl("prox_sgd_", TORCH_BOX(&prox_sgd_));
  m.impl("half_space_project_", TORCH_BOX(&half_space_project_));
  m.impl("zero_counts", TORCH_BOX(&zero_counts));
}

}  // namespace regkern::proximal
