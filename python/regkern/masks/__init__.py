"""Masks and mixing: DropBlock, dropout, CutMix, MixUp, random erasing, Cutout."""

from regkern.masks.collage import (
    PatchMixed,
    mosaic,
    patch_mix,
)
from regkern.masks.drop_block import (
    drop_block,
    drop_block_,
    drop_block_mask,
    mask_apply,
    pack_mask,
    unpack_mask,
)
from regkern.masks.dropping import dropout, dropout_
from regkern.masks.erasing import cutout, erase_boxes, random_erasing, random_erasing_
from regkern.masks.mixing import Mixed, MixParams, cutmix, cutmix_or_mixup, mix, mixup
from regkern.masks.noise import (
    Perturbed,
    Triplet,
    diffusion_perturb,
    feature_jitter,
    noise_inject,
    noise_inject_,
    noise_triplet,
)
from regkern.masks.patches import (
    MaskedPatches,
    patch_gather,
    patch_mask,
    patch_restore,
)
from regkern.masks.policy_noise import (
    beta_log_prob,
    beta_noise,
    noise_mask_apply,
)
from regkern.masks.ranking import (
    pairwise_ranking_loss,
)
from regkern.masks.shapes import (
    box_mask,
    grid_mask,
    hide_and_seek,
    polygon_boxes,
    spec_augment,
)
from regkern.masks.subsets import (
    Partition,
    Subsets,
    correlated_feature_mask,
    mask_fields,
    patch_partition,
    subset_masks,
)

__all__ = [
    "MaskedPatches",
    "MixParams",
    "Mixed",
    "Partition",
    "PatchMixed",
    "Perturbed",
    "Subsets",
    "Triplet",
    "beta_log_prob",
    "beta_noise",
    "box_mask",
    "correlated_feature_mask",
    "cutmix",
    "cutmix_or_mixup",
    "cutout",
    "diffusion_perturb",
    "drop_block",
    "drop_block_",
    "drop_block_mask",
    "dropout",
    "dropout_",
    "erase_boxes",
    "feature_jitter",
    "grid_mask",
    "hide_and_seek",
    "mask_apply",
    "mask_fields",
    "mix",
    "mixup",
    "mosaic",
    "noise_inject",
    "noise_inject_",
    "noise_mask_apply",
    "noise_triplet",
    "pack_mask",
    "pairwise_ranking_loss",
    "patch_gather",
    "patch_mask",
    "patch_mix",
    "patch_partition",
    "patch_restore",
    "polygon_boxes",
    "random_erasing",
    "random_erasing_",
    "spec_augment",
    "subset_masks",
    "unpack_mask",
]
