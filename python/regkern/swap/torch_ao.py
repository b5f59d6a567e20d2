"""torch.ao's fake quantizer, rebuilt. Imported where one was found: torch.ao is to leave torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization.fake_quantize import FakeQuantizeBase

from regkern.quantize.granularity import blocks_of
from regkern.swap.quantize import round_given


class AoFakeQuantize(FakeQuantizeBase):
    """In the place of ``torch.ao.quantization.FakeQuantize``: its buffers, its observer."""

    # What the old layer had, taken over by `_ao`.
    scale: Tensor
    zero_point: Tensor
    activation_post_process: Any
    is_per_channel: bool
    ch_axis: int
    dtype: torch.dtype
    qscheme: torch.qscheme

    def calculate_qparams(self) -> Any:  # type: ignore[override]
        return self.activation_post_process.calculate_qparams()

    def forward(self, x: Tensor) -> Tensor:
        if self.observer_enabled[0] == 1:
            self.activation_post_process(x.detach())
            for mine, new in zip(
                (self.scale, self.zero_point), self.calculate_qparams(), strict=True
            ):
                if mine.shape != new.shape:
                    mine.resize_(new.shape)
                mine.copy_(new)
        if self.fake_quant_enabled[0] != 1:
            return x
        low = self.activation_post_process.quant_min
        high = self.activation_post_process.quant_max
        granularity = "channel" if self.is_per_channel else "tensor"
        if x.dtype == torch.float64:
            # There 1 / s is rounded to float32 on the way.
            return self._of_double(x, low, high)
        blocks, shape = blocks_of("swap", x, granularity, self.ch_axis)
        if self.scale.numel() != math.prod(shape):
            raise ValueError(
                f"regkern.swap: expected a scale for each of {math.prod(shape)} blocks of the "
                f"input, got {self.scale.numel()}"
            )
        return round_given(x, blocks, self.scale, self.zero_point, low, high)

    def _of_double(self, x: Tensor, low: int, high: int) -> Tensor:
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(
                x, self.scale, self.zero_point, self.ch_axis, low, high
            )
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, low, high)

    def extra_repr(self) -> str:
        return (
            f"quant_min={self.activation_post_process.quant_min}, "
            f"quant_max={self.activation_post_process.quant_max}, qscheme={self.qscheme}, "
            f"ch_axis={self.ch_axis}, observer_enabled={self.observer_enabled}, "
            f"fake_quant_enabled={self.fake_quant_enabled}"
        )

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        # Buffers of one element become as many as there are channels.
        for name in ("scale", "zero_point"):
            if prefix + name in state:
                getattr(self, name).resize_(state[prefix + name].shape)
        super()._load_from_state_dict(state, prefix, *args)
