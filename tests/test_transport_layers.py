"""Layers of sliced distances, topic models and class-based plans."""

from __future__ import annotations

import pytest
import torch
from regkern.nn.transport.losses import ClassBasedTransport, ECRTMLoss, SlicedWasserstein
from regkern.transport.class_based import class_based_transport
from regkern.transport.sliced import sliced_wasserstein
from regkern.transport.topic import ecrtm_loss
from torch import Tensor


def draw(*shape: int, salt: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(40 + salt))


def test_layers_are_their_functions() -> None:
    x, y = draw(9, 4), draw(12, 4, salt=1)
    theta = draw(5, 4, salt=2)
    layer = SlicedWasserstein(5, 1.5, root=False)
    expected = sliced_wasserstein(x, y, 5, 1.5, root=False, projections=theta)
    assert torch.equal(layer(x, y, projections=theta), expected)
    torch.manual_seed(0)
    first, second = layer(x, y), layer(x, y)
    assert first != second
    topics = ECRTMLoss(100.0, 5.0, max_iter=50)
    assert torch.equal(topics(x, y), 100.0 * ecrtm_loss(x, y, 5.0, max_iter=50))
    rows = torch.arange(9) % 3
    plan = ClassBasedTransport(0.1, max_iter=5)(torch.cdist(x, y), rows)
    assert torch.equal(
        plan.plan, class_based_transport(torch.cdist(x, y), rows=rows, max_iter=5).plan
    )
    for module, text in ((layer, "p=1.5"), (topics, "max_iter=50"), (ClassBasedTransport(), "0.1")):
        assert text in repr(module)


def test_layers_train() -> None:
    x = torch.nn.Parameter(draw(6, 3))
    (SlicedWasserstein(4)(x, draw(8, 3)) + ECRTMLoss(2.0, 3.0)(x, draw(7, 3))).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_errors() -> None:
    with pytest.raises(ValueError, match="SlicedWasserstein: expected `n_projections`"):
        SlicedWasserstein(0)
    with pytest.raises(ValueError, match="SlicedWasserstein: expected `p`"):
        SlicedWasserstein(p=0.5)
    with pytest.raises(ValueError, match="ECRTMLoss: expected `weight`"):
        ECRTMLoss(-1.0)
    with pytest.raises(ValueError, match="ClassBasedTransport: expected `lam`"):
        ClassBasedTransport((0.1, -0.1))
