#pragma once

#include <torch/csrc/stable/library.h>

// The schemas of the family, shared by the library and its emulated twin. Enumerations are strings
// and probabilities that a schedule changes may come as 0-d float64 tensors (`p_tensor`). No
// argument is keyword-only: torch.library's autograd does not see tensors among those.

namespace regkern::masks {

inline void define(torch::stable::detail::StableLibrary& m) {
#define REGKERN_DROP_BLOCK_OPTIONS                                                            \
  "str border=\"valid\", str per=\"channel\", str normalize=\"count\", str gamma=\"exact\", " \
  "float gamma_scale=1.0, Tensor? p_tensor=None"
#define REGKERN_DROP_BLOCK_FUSED \
  ", float noise=0.0, bool relu=False, Tensor? residual=None, str save=\"mask\""
  m.def(
      "drop_block(Tensor x, Tensor seed, float p, int[] "
      "block_size, " REGKERN_DROP_BLOCK_OPTIONS REGKERN_DROP_BLOCK_FUSED
      ") -> (Tensor y, Tensor mask, Tensor scale, Tensor active)");
  m.def(
      "drop_block_(Tensor(a!) x, Tensor seed, float p, int[] block_size, "
      "" REGKERN_DROP_BLOCK_OPTIONS REGKERN_DROP_BLOCK_FUSED
      ") -> (Tensor mask, Tensor scale, Tensor active)");
  m.def(
      "drop_block_mask(Tensor seed, float p, int[] size, int[] block_size, "
      "" REGKERN_DROP_BLOCK_OPTIONS ") -> (Tensor mask, Tensor scale)");
#undef REGKERN_DROP_BLOCK_OPTIONS
#undef REGKERN_DROP_BLOCK_FUSED
  m.def(
      "mask_apply(Tensor x, Tensor mask, Tensor scale, int ndim, str per=\"channel\", "
      "Tensor? active=None) -> Tensor");
  m.def(
      "mix(Tensor x, Tensor partner, Tensor? box=None, Tensor? weight=None, "
      "Tensor? other=None) -> Tensor");
  m.def(
      "mix_out(Tensor x, Tensor partner, Tensor(a!) out, Tensor? box=None, "
      "Tensor? weight=None, Tensor? other=None) -> ()");
  m.def(
      "mix_adjoint(Tensor g, Tensor partner, int others, Tensor? box=None, "
      "Tensor? weight=None, bool own=True, bool from_partner=True) -> Tensor");
  m.def(
      "mix_dot(Tensor g, Tensor x, Tensor partner, Tensor? box=None, Tensor? other=None) "
      "-> Tensor");
  m.def(
      "mix_labels(Tensor labels, Tensor partner, Tensor lam, int num_classes, "
      "ScalarType dtype, float smoothing=0.0, Tensor? other_labels=None) -> Tensor");
  m.def(
      "mix_params(Tensor seed, int batch, int height, int width, str pairing=\"roll\", "
      "bool per_batch=False, float cutmix_alpha=0.0, float mixup_alpha=0.0, "
      "float switch_prob=0.5, float p=1.0, bool inside=False, float min_cut=0.0, "
      "float max_cut=0.0, bool correct_lam=True) "
      "-> (Tensor partner, Tensor box, Tensor weight, Tensor lam)");
  m.def(
      "erase_params(Tensor seed, int batch, int height, int width, int min_count=1, "
      "int max_count=1, bool per_batch=False, float p=1.0, float min_area=0.02, "
      "float max_area=0.33, float min_ratio=0.3, float max_ratio=3.3, str shape=\"retry\", "
      "int side=0) -> Tensor");
  m.def(
      "random_erasing(Tensor x, Tensor box, Tensor? value=None, str fill=\"value\", "
      "Tensor? seed=None) -> Tensor");
  m.def(
      "random_erasing_(Tensor(a!) x, Tensor box, Tensor? value=None, str fill=\"value\", "
      "Tensor? seed=None) -> ()");
}

}  // namespace regkern::masks
