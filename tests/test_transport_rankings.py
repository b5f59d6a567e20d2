"""What stands on Sinkhorn's normalisation: permutations, prototypes, rankings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from regkern.transport.normalize import sinkhorn_normalize
from regkern.transport.permutations import gumbel_noise, gumbel_sinkhorn, hyper_connection
from regkern.transport.prototypes import depict_target, sinkhorn_assign
from regkern.transport.ranking import neural_ndcg, neural_sort
from sample import normal, seed
from torch import Tensor

DOUBLE = torch.float64


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return normal(shape, dtype, 70 + salt)


def close(a: Tensor, b: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=atol)


# ---- permutations ----


def test_gumbel_noise_is_gumbel() -> None:
    x = gumbel_sinkhorn(torch.zeros(200, 200), n_iter=1, log_output=True, seed=seed())
    assert x.shape == (200, 200)
    zeros = torch.zeros(40000, 1, 1, dtype=DOUBLE)
    g = gumbel_noise("test", zeros, seed(), None)
    assert abs(float(g.mean()) - 0.5772156649) < 0.02
    assert abs(float(g.std()) - math.pi / math.sqrt(6)) < 0.02
    assert abs(float((g < 0).double().mean()) - math.exp(-1)) < 0.01


def test_gumbel_sinkhorn() -> None:
    x = draw(2, 5, 5).requires_grad_()
    y = gumbel_sinkhorn(x, 0.5, 100, n_samples=3, seed=seed())
    assert y.shape == (3, 2, 5, 5)
    close(y.sum(-1), torch.ones(3, 2, 5))
    assert not torch.equal(y[0], y[1])
    assert torch.equal(y, gumbel_sinkhorn(x, 0.5, 100, n_samples=3, seed=seed()))
    (g,) = torch.autograd.grad(y.square().sum(), x)
    assert bool(g.isfinite().all())
    close(gumbel_sinkhorn(x, 0.5, noise=0), sinkhorn_normalize(x, tau=0.5))
    order = torch.tensor([2, 0, 4, 1, 3])
    strong = 100.0 * torch.eye(5)[order]
    assert torch.equal(gumbel_sinkhorn(strong, 0.1, seed=seed()).argmax(-1), order)
    with pytest.raises(ValueError, match=r"gumbel_sinkhorn: expected `n_samples` to be at least 1"):
        gumbel_sinkhorn(x, n_samples=0)


def test_hyper_connection() -> None:
    pre, post, residual = draw(7, 4), draw(7, 4, salt=1), draw(7, 4, 4, salt=2)
    w = hyper_connection(pre, post, residual, 10)
    close(w.residual, sinkhorn_normalize(residual, 10, eps=1e-6))
    close(w.residual.sum(-2), torch.ones(7, 4), 1e-5)
    close(w.pre, pre.sigmoid())
    close(w.post, 2 * post.sigmoid())
    with pytest.raises(ValueError, match=r"hyper_connection: expected `pre` \(7, 4\)"):
        hyper_connection(pre[:, :3], post, residual)


# ---- prototypes ----


def test_swav() -> None:
    """The published recipe: exponentials over their sum, then rows and columns in turns."""
    scores = draw(12, 5)
    q = torch.exp(scores / 0.3).t()
    q /= q.sum()
    k, b = q.shape
    for _ in range(3):
        q /= q.sum(1, keepdim=True)
        q /= k
        q /= q.sum(0, keepdim=True)
        q /= b
    expected = (q * b).t()
    ours = sinkhorn_assign(scores.requires_grad_(), 0.3, 3)
    close(ours, expected)
    assert not ours.requires_grad
    # What overflows there.
    assert bool(sinkhorn_assign(1e3 * torch.randn(8, 3)).isfinite().all())


def test_assignment_over_processes(tmp_path: Any) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        scores = draw(12, 5, dtype=torch.float32)
        group = torch.distributed.group.WORLD
        close(sinkhorn_assign(scores, 0.3, group=group), sinkhorn_assign(scores, 0.3), 1e-6)
    finally:
        torch.distributed.destroy_process_group()


def test_depict_target() -> None:
    p = draw(6, 4).softmax(-1)
    p[:, 2] = 0
    q = p / p.sum(0).sqrt()
    q[:, 2] = 0
    close(depict_target(p), q / q.sum(1, keepdim=True))


# ---- rankings ----


def relaxed(s: Tensor, tau: float) -> Tensor:
    n = len(s)
    apart = (s[:, None] - s[None, :]).abs().sum(0)
    rows = [((n + 1 - 2 * i) * s - apart) / tau for i in range(1, n + 1)]
    return torch.stack(rows).softmax(-1)


def test_neural_sort() -> None:
    s = draw(3, 7)
    close(neural_sort(s, 0.7), torch.stack([relaxed(r, 0.7) for r in s]))
    ordered = (neural_sort(s, 1e-5) @ s.unsqueeze(-1)).squeeze(-1)
    close(ordered, s.sort(-1, descending=True).values)
    ties = torch.tensor([1.0, 2.0, 2.0, 0.0])
    close(neural_sort(ties), relaxed(ties, 1.0), 1e-6)
    lengths = torch.tensor([7, 4, 0])
    p = neural_sort(s, 0.7, lengths=lengths)
    close(p[1, :4, :4], relaxed(s[1, :4], 0.7))
    assert float(p[1, 4:].abs().max()) == float(p[1, :, 4:].abs().max()) == 0
    assert float(p[2].abs().max()) == 0
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: neural_sort(x, 0.7, lengths=lengths), s)


def scaled(p: Tensor, n_iter: int) -> Tensor:
    for _ in range(n_iter):
        p = p / p.sum(0, keepdim=True)
        p = p / p.sum(1, keepdim=True)
    return p


def test_neural_ndcg() -> None:
    s, y = draw(3, 6), torch.tensor([[3.0, 0, 1, 2, 0, 1], [0, 0, 1, 0, 2, 3], [0, 0, 0, 0, 1, 1]])
    lengths = torch.tensor([6, 6, 4])
    discount = 1 / torch.log2(torch.arange(2, 8).double())
    for k, transposed in ((None, False), (3, False), (3, True)):
        values = neural_ndcg(s, y, 0.5, k=k, lengths=lengths, transposed=transposed, n_iter=200)
        for i, n in enumerate(lengths.tolist()):
            d = torch.where(torch.arange(n) < (k or n), discount[:n], 0.0)
            gain = torch.exp2(y[i, :n].double()) - 1
            ideal = (gain.sort(descending=True).values * d).sum()
            dcg = (d * (scaled(relaxed(s[i, :n], 0.5), 200) @ gain)).sum()
            close(values[i], dcg / ideal if ideal > 0 else torch.zeros(()), 1e-9)
    best = neural_ndcg(y.double() * 10, y, 1e-3, n_iter=20)
    assert float(best[:2].min()) > 0.99
    x = s.clone().requires_grad_()
    (g,) = torch.autograd.grad(neural_ndcg(x, y, lengths=lengths).sum(), x)
    assert bool(g.isfinite().all())
    assert float(g[2].abs().max()) == float(g[2, 4:].abs().max()) == 0
    noisy = neural_ndcg(x, y, noise=0.1, n_samples=4, seed=seed())
    assert noisy.shape == (3,)
    with pytest.raises(ValueError, match=r"neural_ndcg: expected `relevance` \(3, 6\)"):
        neural_ndcg(s, y[:, :5])
