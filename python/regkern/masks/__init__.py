"""Masks and mixing: DropBlock, dropout, CutMix, MixUp, random erasing, Cutout."""

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
from regkern.masks.patches import (
    MaskedPatches,
    patch_gather,
    patch_mask,
    patch_restore,
)
from regkern.masks.ranking import (
    pairwise_ranking_loss,
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
    "Subsets",
    "correlated_feature_mask",
    "cutmix",
    "cutmix_or_mixup",
    "cutout",
    "drop_block",
    "drop_block_",
    "drop_block_mask",
    "dropout",
    "dropout_",
    "erase_boxes",
    "mask_apply",
    "mask_fields",
    "mix",
    "mixup",
    "pack_mask",
    "pairwise_ranking_loss",
    "patch_gather",
    "patch_mask",
    "patch_partition",
    "patch_restore",
    "random_erasing",
    "random_erasing_",
    "subset_masks",
    "unpack_mask",
]
