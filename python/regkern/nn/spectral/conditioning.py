"""Weights with rows or columns of norm 1."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from regkern import _checks as checks
from regkern.spectral.row_norms import row_equilibrate

Side = Literal["rows", "columns", "both"]


class WeightConditioning(nn.Module):
    """The parametrization that :func:`weight_conditioning` registers.

    Parameters
    ----------
    side : {"rows", "columns", "both"}
        As :func:`~regkern.spectral.row_norms.row_equilibrate` takes it.
    """

    def __init__(self, side: Side = "rows") -> None:
        super().__init__()
        checks.one_of("WeightConditioning", "side", side, ("rows", "columns", "both"))
        self.side: Side = side

    def forward(self, weight: Tensor) -> Tensor:
        return row_equilibrate(weight, self.side)

    def extra_repr(self) -> str:
        return f"side={self.side!r}"


def weight_conditioning(
    module: nn.Module, name: str = "weight", *, side: Side = "rows"
) -> nn.Module:
    r"""A layer whose weight is equilibrated: rows (or columns) of norm 1 in every forward.

    .. math:: \hat W = \operatorname{diag}(1 / \lVert W_{i:} \rVert_2)\, W

    Parameters
    ----------
    module : torch.nn.Module
        A layer with a weight of at least two dimensions.
    name : str
        The parameter.
    side : {"rows", "columns", "both"}
        What has norm 1.

    Returns
    -------
    torch.nn.Module
        ``module``, with a parametrization; W itself is trained.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Saratchandran, Wang and Lucey, "Weight conditioning for smooth optimization of neural
    networks", ECCV 2024.
    """
    checks.tensor("weight_conditioning", name, getattr(module, name, None))
    return parametrize.register_parametrization(module, name, WeightConditioning(side))
