"""regkern: fused CPU and CUDA kernels for regularization, as differentiable PyTorch ops."""

from regkern._library import build_info  # loads the libraries: first

# isort: split
from regkern.masks import (
    Mixed,
    MixParams,
    cutmix,
    cutmix_or_mixup,
    cutout,
    drop_block,
    drop_block_,
    drop_block_mask,
    erase_boxes,
    mask_apply,
    mix,
    mixup,
    pack_mask,
    random_erasing,
    random_erasing_,
    unpack_mask,
)
from regkern.quantize import (
    encode,
    fake_quantize,
    round_gradient,
    round_to,
    round_to_,
    stochastic_round,
    stochastic_round_,
)
from regkern.random import make_seed
from regkern.swap import SwapReport, swap

__version__ = "0.1.0"

__all__ = [
    "MixParams",
    "Mixed",
    "SwapReport",
    "build_info",
    "cutmix",
    "cutmix_or_mixup",
    "cutout",
    "drop_block",
    "drop_block_",
    "drop_block_mask",
    "encode",
    "erase_boxes",
    "fake_quantize",
    "make_seed",
    "mask_apply",
    "mix",
    "mixup",
    "pack_mask",
    "random_erasing",
    "random_erasing_",
    "round_gradient",
    "round_to",
    "round_to_",
    "stochastic_round",
    "stochastic_round_",
    "swap",
    "unpack_mask",
]
