#include <cstdint>
#include <string>
#include <vector>

#include "core/bits.h"
#include "core/op_list.h"
#include "proximal/op.h"
#include "proximal/sensitivity.h"

namespace regkern::proximal {
namespace {

void sensitivity_shrink_(Tensors params, Tensors grads, Tensors sensitivities, Tensors masks,
                         const Tensor& shrink, MaybeTensor lr, std::string kind) {
  const Checks check("sensitivity_shrink_");
  const Dtype dtype = check_list(check, params, "params");
  const Tensor& like = params[0];
  check_like(check, grads, "grads", params, "params");
  check_list(check, grads, "grads");
  check.that(grads[0].scalar_type() == like.scalar_type(), "`grads` of the dtype of `params`",
             "another");
  SensitivityShrinkArgs args{};
  args.dtype = dtype;
  args.kind = static_cast<Sensitivity>(
      check.one_of(kind, "kind", {"lobster", "rescaled", "rows", "irrelevance"}));
  args.shrink = check_number(check, shrink, "shrink", like, dtype);
  args.lr = check_number(check, lr, "lr", like, dtype);
  const bool by_row = args.kind == Sensitivity::rows;
  check.that(sensitivities.size() == (by_row ? params.size() : 0),
             by_row ? "a tensor in `sensitivities` for each of `params`"
                    : "no `sensitivities` but for kind rows",
             std::to_string(sensitivities.size()));
  for (size_t i = 0; i < sensitivities.size(); ++i) {
    const Tensor& s = sensitivities[i];
    const int64_t rows = params[i].dim() > 0 ? params[i].size(0) : 1;
    if (!on_same_device(s, like) || s.scalar_type() != compute_type(dtype) || s.numel() != rows)
      check.that(false,
                 item_name("sensitivities", i) + " of " + std::to_string(rows) +
                     " numbers of the compute type on " + device_name(like),
                 sizes_name(s) + " on " + device_name(s));
  }
  if (!masks.empty()) {
    check.that(masks.size() == params.size(), "as many `masks` as `params`",
               std::to_string(masks.size()));
    args.keep = masks[0].scalar_type() == ScalarType::Bool ? Keep::bytes : Keep::bits;
    for (size_t i = 0; i < masks.size(); ++i) {
      const Tensor& m = masks[i];
      const bool bytes = m.scalar_type() == ScalarType::Bool && of_same_shape(m, params[i]);
      const bool bits =
          m.scalar_type() == ScalarType::Int && m.numel() == bit_words(params[i].numel());
      if (!on_same_device(m, like) || !(args.keep == Keep::bytes ? bytes : bits))
        check.that(false,
                   item_name("masks", i) +
                       " to be bool of the parameter's shape, or int32 words of 32 elements, as "
                       "all masks",
                   sizes_name(m));
    }
  }
  Written written;
  Read read;
  std::vector<SensitivityRow> rows;
  int64_t first = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    const int64_t numel = params[i].numel();
    if (numel == 0) continue;
    rows.push_back({written.row_major(params[i], true), read.row_major(grads[i]),
                    by_row ? read.row_major(sensitivities[i]) : nullptr,
                    masks.empty() ? nullptr : read.row_major(masks[i]), numel, first,
                    params[i].dim() > 0 ? numel / params[i].size(0) : 1, static_cast<int64_t>(i)});
    first += list_span(numel);
  }
  args.rows = rows.data();
  args.count = static_cast<int64_t>(rows.size());
  args.tensors = static_cast<int64_t>(params.size());
  Tensor most = new_tensor(like, {args.tensors}, ScalarType::Long);
  args.most = static_cast<uint64_t*>(most.mutable_data_ptr());
  backend::sensitivity_shrink(args, OnDevice(like));
  written.copy_back();
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "sensitivity_shrink_(Tensor(a!)[] params, Tensor[] grads, Tensor[] sensitivities, "
      "Tensor[] masks, Tensor shrink, Tensor? lr, str kind) -> ()");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("sensitivity_shrink_", TORCH_BOX(&sensitivity_shrink_));
}

}  // namespace regkern::proximal
