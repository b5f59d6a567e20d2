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

__all__ = [
    "MixParams",
    "Mixed",
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
    "mix",
    "mixup",
    "pack_mask",
    "random_erasing",
    "random_erasing_",
    "unpack_mask",
]
