"""Shrinkage of the weights to which a loss is not sensitive, fused with the step of SGD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register
from regkern.proximal.penalty import threshold

_shrink_ = register("sensitivity_shrink_", lambda *args, **kwargs: None)


def sensitivity_shrink_(
    params: Tensor | Sequence[Tensor],
    grads: Tensor | Sequence[Tensor],
    lr_lambda: float | Tensor,
    kind: Literal["lobster", "rescaled", "rows", "irrelevance"] = "lobster",
    *,
    lr: float | Tensor | None = None,
    sensitivities: Tensor | Sequence[Tensor] | None = None,
    keep: Tensor | Sequence[Tensor] | None = None,
) -> None:
    r"""Shrinks weights that matter little, in place, of all tensors in one call.

    .. math:: w \leftarrow w - \eta\, g - c\, w\, \varphi

    with c = ``lr_lambda``, η = ``lr`` (no step where it is None) and

    ===============  =====================================================================
    ``kind``         :math:`\varphi`
    ===============  =====================================================================
    ``lobster``      :math:`(1 - |g|)_+`
    ``rescaled``     :math:`1 - |g| / \max |g|`, the maximum over the tensor; 1 where all
                     of g is 0
    ``rows``         :math:`(1 - S_i)_+` with a sensitivity given for every row (neuron) i
    ``irrelevance``  :math:`e^{-|g|}`
    ===============  =====================================================================

    Parameters
    ----------
    params : Tensor or sequence of Tensor
        What is overwritten. Dtypes may differ; any strides.
    grads : Tensor or sequence of Tensor
        Of the shapes and dtypes of ``params``: gradients, or what stands for sensitivities.
    lr_lambda : float or Tensor
        The learning rate times λ, at least 0; one element.
    kind : str
        One of the table: LOBSTER, its rescaled form, SeReNe, irrelevance.
    lr : float or Tensor, optional
        The learning rate of a plain step in the same pass.
    sensitivities : Tensor or sequence of Tensor, optional
        For ``rows``: (rows) numbers for each of ``params``, whose rows are those of dimension 0.
    keep : Tensor or sequence of Tensor, optional
        Pruning masks: bool of the parameters' shapes, or int32 words of 32 elements each
        (`top_k_mask` gives both). What is not kept becomes 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd; leaves that require gradients may be written. Bytes moved: weights
    and gradients read and weights written, in one pass; ``rescaled`` reads gradients once before.

    References
    ----------
    Tartaglione, Bragagnolo, Fiandrotti and Grangetto, "LOss-Based SensiTivity rEgulaRization",
    Neural Networks 2022. Tartaglione et al., "SeReNe: sensitivity-based regularization of neurons
    for structured sparsity", TNNLS 2021. Bonetta, Ribero and Cancelliere, "Regularization-based
    pruning of irrelevant weights in deep neural architectures", Applied Intelligence 2023.
    """
    op = "sensitivity_shrink_"
    ws, gs = checks.tensor_list(op, "params", params), checks.tensor_list(op, "grads", grads)
    checks.one_of(op, "kind", kind, ("lobster", "rescaled", "rows", "irrelevance"))
    checks.scale(op, "lr_lambda", lr_lambda)
    if lr is not None:
        checks.scale(op, "lr", lr)
    _as_many(op, "grads", gs, ws)
    for i, (g, w) in enumerate(zip(gs, ws, strict=True)):
        checks.same(op, f"grads[{i}]", g, w, f"params[{i}]")
    if (sensitivities is not None) != (kind == "rows"):
        got = "none" if sensitivities is None else "some"
        raise ValueError(
            f"regkern.{op}: expected `sensitivities` for kind rows, and for no other, got {got}"
        )
    ss: list[Tensor] = []
    if sensitivities is not None:
        ss = checks.tensor_list(op, "sensitivities", sensitivities)
        _as_many(op, "sensitivities", ss, ws)
        for i, (s, w) in enumerate(zip(ss, ws, strict=True)):
            rows = w.shape[0] if w.dim() > 0 else 1
            if s.numel() != rows:
                raise ValueError(
                    f"regkern.{op}: expected `sensitivities[{i}]` of {rows} numbers, got "
                    f"{tuple(s.shape)}"
                )
            checks.on_device(op, f"sensitivities[{i}]", s, ws[0])
    masks: list[Tensor] = []
    if keep is not None:
        masks = checks.tensor_list(op, "keep", keep, checks.tensor)
        _as_many(op, "keep", masks, ws)
        for i, (m, w) in enumerate(zip(masks, ws, strict=True)):
            checks.on_device(op, f"keep[{i}]", m, ws[0])
            words = m.dtype == torch.int32 and m.numel() == (w.numel() + 31) // 32
            if m.dtype != masks[0].dtype or not (
                words or (m.dtype == torch.bool and m.shape == w.shape)
            ):
                raise ValueError(
                    f"regkern.{op}: expected `keep[{i}]` to be bool of shape {tuple(w.shape)}, or "
                    f"int32 words of 32 elements, as all of them, got {m.dtype}, {tuple(m.shape)}"
                )
    with torch.no_grad():
        for group in checks.by_dtype(ws):
            like = ws[group[0]]
            _shrink_(
                [ws[i] for i in group],
                [gs[i] for i in group],
                [ss[i].to(compute_dtype(like)) for i in group] if ss else [],
                [masks[i] for i in group] if masks else [],
                threshold(like, lr_lambda).reshape(()),
                None if lr is None else threshold(like, lr).reshape(()),
                kind,
            )


def _as_many(op: str, name: str, values: Sequence[Tensor], like: Sequence[Tensor]) -> None:
    if len(values) != len(like):
        raise ValueError(
            f"regkern.{op}: expected as many `{name}` as `params`, {len(like)}, got {len(values)}"
        )
