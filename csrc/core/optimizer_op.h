#pragma once

#include "core/op_list.h"
#include "core/optimizer_step.h"

// What the torch-facing files of optimizers share.

namespace regkern {

inline LearningRate check_rate(const Checks& check, double value, const MaybeTensor& tensor,
                               const Tensor& like) {
  if (!tensor.has_value()) return {value, nullptr};
  check.same_device(*tensor, "lr_tensor", like);
  check.dtype(*tensor, "lr_tensor", ScalarType::Double, "float64");
  check.that(tensor->numel() == 1, "`lr_tensor` of one element", sizes_name(*tensor));
  return {value, const_data<double>(*tensor)};
}

// The step counts of AdamW, one float32 number for each parameter.
inline std::vector<float*> check_steps(const Checks& check, const Tensors& steps,
                                       const Tensors& params) {
  check.that(steps.size() == params.size(), "a tensor in `steps` for each of `params`",
             std::to_string(steps.size()));
  std::vector<float*> counters;
  for (size_t i = 0; i < steps.size(); ++i) {
    if (!on_same_device(steps[i], params[0]) || steps[i].scalar_type() != ScalarType::Float ||
        steps[i].numel() != 1)
      check.that(false,
                 item_name("steps", i) + " to be one float32 number on " + device_name(params[0]),
                 sizes_name(steps[i]) + " on " + device_name(steps[i]));
    counters.push_back(mutable_data<float>(steps[i]));
  }
  return counters;
}

inline void check_betas(const Checks& check, double beta1, double beta2) {
  check.that(beta1 >= 0.0 && beta1 < 1.0 && beta2 >= 0.0 && beta2 < 1.0,
             "`beta1` and `beta2` in [0, 1)",
             std::to_string(beta1) + " and " + std::to_string(beta2));
}

}  // namespace regkern
