"""``--check``: our op against its reference, outputs and gradients, on the small shape."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from regkern.bench.case import Case, Inputs, Run


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in a result: a tensor, or a tuple, list, dict or dataclass of results."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_of(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return [tensor for field in fields for tensor in tensors_of(getattr(value, field.name))]
    return []


def with_grad(inputs: Inputs) -> Inputs:
    """The same inputs, with ``x`` a leaf that gradients reach."""
    return {**inputs, "x": inputs["x"].detach().requires_grad_()}


def _results(run: Run, inputs: Inputs, backward: bool) -> list[torch.Tensor]:
    if not backward:
        return tensors_of(run({**inputs, "x": inputs["x"].clone()}))
    inputs = with_grad(inputs)
    outputs = tensors_of(run(inputs))
    generator = torch.Generator(outputs[0].device).manual_seed(0)
    weight = torch.empty_like(outputs[0]).normal_(generator=generator)
    return [*outputs, *torch.autograd.grad(outputs[0], [inputs["x"]], weight)]


def difference(
    case: Case, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> str | None:
    """How our op differs from its reference on inputs of ``shape``, or None where it does not."""
    inputs = case.make(shape, dtype, device)
    backward = case.differentiable and dtype.is_floating_point
    try:
        ours = _results(case.ours, inputs, backward)
        expected = _results(case.reference, inputs, backward)
        if len(ours) != len(expected):
            return f"{len(ours)} tensors, but the reference returns {len(expected)}"
        for result, reference in zip(ours, expected, strict=True):
            # λ of a mix is float32: a tie between two bytes may fall to the other side.
            byte: dict[str, Any] = {"rtol": 0.0, "atol": 1.0} if result.dtype == torch.uint8 else {}
            torch.testing.assert_close(result, reference, equal_nan=True, **byte)
    except Exception as error:
        return reason(error)
    return None


def reason(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 160 else text[:157] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
