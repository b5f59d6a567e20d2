"""The definition of every op in plain torch: what tests and benchmarks compare with.

Readable and slow. Draws the same bits as the kernels, so results agree exactly or to rounding.
"""

from regkern.reference.masks import (
    cutmix,
    cutmix_or_mixup,
    cutout,
    drop_block,
    drop_block_mask,
    erase_boxes,
    mask_apply,
    mix,
    mixup,
    random_erasing,
)
from regkern.reference.quantize.rounding import fake_quantize, round_to

__all__ = [
    "cutmix",
    "cutmix_or_mixup",
    "cutout",
    "drop_block",
    "drop_block_mask",
    "erase_boxes",
    "fake_quantize",
    "mask_apply",
    "mix",
    "mixup",
    "random_erasing",
    "round_to",
]
