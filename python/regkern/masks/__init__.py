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
from regkern.masks.events import (
    bernoulli,
    bernoulli_log_prob,
    bernoulli_mask,
    observed_dropout,
    subnetwork_mask,
)
from regkern.masks.gradient_variance import (
    gradient_direction_variance,
)
from regkern.masks.heads import (
    compact_dropout_linear,
    multi_sample_dropout_linear,
)
from regkern.masks.low_rank import (
    lora_dropout,
)
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
from regkern.masks.prefixes import (
    nested_dropout,
    prefix_weights,
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
from regkern.masks.weights import (
    mixout,
    mixout_,
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
    "bernoulli",
    "bernoulli_log_prob",
    "bernoulli_mask",
    "beta_log_prob",
    "beta_noise",
    "box_mask",
    "compact_dropout_linear",
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
    "gradient_direction_variance",
    "grid_mask",
    "hide_and_seek",
    "lora_dropout",
    "mask_apply",
    "mask_fields",
    "mix",
    "mixout",
    "mixout_",
    "mixup",
    "mosaic",
    "multi_sample_dropout_linear",
    "nested_dropout",
    "noise_inject",
    "noise_inject_",
    "noise_mask_apply",
    "noise_triplet",
    "observed_dropout",
    "pack_mask",
    "pairwise_ranking_loss",
    "patch_gather",
    "patch_mask",
    "patch_mix",
    "patch_partition",
    "patch_restore",
    "polygon_boxes",
    "prefix_weights",
    "random_erasing",
    "random_erasing_",
    "spec_augment",
    "subnetwork_mask",
    "subset_masks",
    "unpack_mask",
]
