"""Transport between clouds: whole iterations, their corners and memory,
and the Triton kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recording import Call, Recorder
from regkern.reference.transport import dense as dense_reference
from regkern.reference.transport import points as reference
from regkern.transport.points import PointCost
from regkern.transport.points_triton import points_softmin
from regkern.transport.solver import sinkhorn
from torch import Tensor

DOUBLE = torch.float64


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(900 + salt)
    return torch.randn(shape, dtype=DOUBLE, generator=generator).to(dtype)


def close(a: Tensor, b: Tensor, tol: float = 1e-10) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=tol, atol=tol)


def record() -> list[Call]:
    """Solves by every kernel, in which rows and columns are done over or not."""
    with Recorder() as recorder:
        for d, cost_fn in ((3, "sqeuclidean"), (3, "euclidean"), (9, "sqeuclidean")):
            for dtype, eps in ((torch.float32, 1e-2), (torch.float32, 1.0), (DOUBLE, 1e-3)):
                x, y = draw(2, 35, d, dtype=dtype), 3.0 + draw(2, 133, d, salt=1, dtype=dtype)
                sinkhorn(x=x, y=y, eps=eps, cost_fn=cost_fn, tol=None, max_iter=2)
    return recorder.calls


# ---- whole iterations ----


@pytest.mark.parametrize("cost_fn", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("eps", [1.0, 1e-3], ids=["mild", "every row is done over"])
@pytest.mark.parametrize("size", [(70, 133, 3), (41, 300, 9)], ids=str)
def test_an_iteration_matches_its_definition(
    cost_fn: str, eps: float, size: tuple[int, int, int]
) -> None:
    n, m, d = size
    x, y = draw(2, n, d), 3.0 + draw(2, m, d, salt=1)
    a, b = (draw(2, k, salt=k).square() + 0.1 for k in (n, m))
    # Weights of zero, and one that is next to it.
    a[:, 1], b[:, 3], b[:, 4] = 0.0, 0.0, 1e-40
    a, b = a / a.sum(-1, True), b / b.sum(-1, True)
    e = torch.full((2,), eps, dtype=DOUBLE)
    found = sinkhorn(x=x, y=y, a=a, b=b, eps=e, cost_fn=cost_fn, tol=None, max_iter=4)
    f, g = dense_reference.potentials(reference.costs(x, y, cost_fn), a, b, e, iterations=4)
    close(found.f, f)
    close(found.g, g)
    single = sinkhorn(
        x=x.float(), y=y.float(), a=a, b=b, eps=e, cost_fn=cost_fn, tol=None, max_iter=4
    )
    # Rounded products are divided by ε: relative to the costs, nothing else is lost.
    scale = float(reference.costs(x, y, cost_fn).abs().max())
    close(single.f / scale, f / scale, 2e-6)
    close(single.g / scale, g / scale, 2e-6)


@pytest.mark.parametrize("d", [3, 12])
def test_what_is_not_a_number_or_infinite(d: int) -> None:
    x, y = draw(40, d), draw(140, d, salt=1)
    y[5] = torch.inf
    b = torch.full((140,), 1 / 139, dtype=DOUBLE)
    b[5] = 0.0
    options: dict[str, Any] = {"eps": 0.5, "tol": None, "max_iter": 3}
    kept = torch.arange(140) != 5
    found = sinkhorn(x=x, y=y, b=b, **options)
    close(found.f, sinkhorn(x=x, y=y[kept], b=b[kept], **options).f)
    assert found.g[5] == torch.inf
    x[7, 0] = torch.nan
    found = sinkhorn(x=x, y=y[kept], **options)
    assert found.f[7].isnan()
    assert found.g.isnan().all()


def test_far_clusters_keep_their_distances() -> None:
    # Multiples of 1/64 on either side of an origin that is 1000 away: centring does not help.
    def cloud(n: int) -> Tensor:
        t = (draw(n, 2, salt=n, dtype=torch.float32) * 64).round() / 64
        return t + 1000.0 * (torch.arange(n) % 2 * 2 - 1)[:, None]

    x, y = cloud(120), cloud(140)
    options: dict[str, Any] = {"eps": 0.5, "tol": None, "max_iter": 10}
    ours, exact = (sinkhorn(x=x.to(t), y=y.to(t), **options) for t in (torch.float32, DOUBLE))
    close(ours.f, exact.f, 1e-5)
    close(ours.g, exact.g, 1e-5)


def test_memory_is_that_of_the_points() -> None:
    n, d = 3000, 3
    x, y = (draw(n, d, salt=s, dtype=torch.float32) for s in (0, 1))
    sinkhorn(x=x[:9], y=y[:9], eps=0.3, tol=None, max_iter=1)
    with torch.profiler.profile(profile_memory=True) as profile:
        sinkhorn(x=x, y=y, eps=0.3, tol=None, max_iter=2)
    taken = sum(
        max(0, event.self_cpu_memory_usage) for event in profile.events() if event is not None
    )
    # All that was ever allocated in tensors, freed or not.
    assert taken < 1200 * n < 0.5 * n * n


# ---- the Triton kernel ----


@pytest.mark.parametrize(
    ("sizes", "cost_fn"),
    [((2, 70, 130, 20), "sqeuclidean"), ((1, 5, 3, 70), "cosine"), ((1, 0, 4, 2), "dot")],
    ids=str,
)
def test_triton_softmin_in_the_interpreter(sizes: tuple[int, ...], cost_fn: str) -> None:
    pytest.importorskip("triton")
    batch, n, m, d = sizes
    x, y = (draw(batch, k, d, salt=k, dtype=torch.float32) for k in (n, m))
    b, g = draw(batch, m).square(), draw(batch, m, salt=1)
    b[:, 1], g[:, 2] = 0.0, torch.inf
    eps = torch.full((batch,), 0.7, dtype=DOUBLE)
    ours = points_softmin(x, y, b, g, eps, cost_fn, "triton")
    exact = PointCost(x.double(), y.double(), cost_fn).softmin(b, g, eps, False)
    torch.testing.assert_close(ours, exact, rtol=3e-6, atol=3e-5)


def test_engines_of_the_softmin(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (draw(1, k, 20, salt=k, dtype=torch.float32) for k in (4, 5))
    b, g = torch.full((1, 5), 0.2, dtype=DOUBLE), draw(1, 5)
    eps = torch.ones((1,), dtype=DOUBLE)
    expected = PointCost(x, y).softmin(b, g, eps, False)
    assert torch.equal(points_softmin(x, y, b, g, eps), expected)
    assert torch.equal(points_softmin(x, y, b, g, eps, engine="compiled"), expected)
    with pytest.raises(ValueError, match="`engine` to be one of"):
        points_softmin(x, y, b, g, eps, engine="fast")
    with pytest.raises(ValueError, match="`x` and `y` of shapes"):
        points_softmin(x, y[..., :3], b, g, eps)
    with pytest.raises(ValueError, match="`weights` of shape"):
        points_softmin(x, y, b.float(), g, eps)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"CUDA tensors|triton, which is not installed"):
        points_softmin(x, y, b, g, eps, engine="triton")
    monkeypatch.setattr("regkern.transport.points_triton.triton", None)
    with pytest.raises(ValueError, match="triton, which is not installed"):
        points_softmin(x, y, b, g, eps, engine="triton")


@pytest.mark.parametrize("rho", [None, (0.8, None)], ids=str)
def test_sinkhorn_by_triton_in_the_interpreter(rho: Any) -> None:
    pytest.importorskip("triton")
    x, y = draw(2, 6, 5).float(), draw(2, 9, 5).float() + 0.5
    x[1] *= 2
    how: dict[str, Any] = {"x": x, "y": y, "eps": 2.0, "tol": 1e-2, "check_every": 3, "rho": rho}
    ours, other = sinkhorn(engine="triton", **how), sinkhorn(**how)
    assert torch.equal(ours.iterations, other.iterations)
    assert torch.equal(ours.status, other.status)
    for name in ("f", "g", "value", "error"):
        torch.testing.assert_close(getattr(ours, name), getattr(other, name), rtol=1e-4, atol=1e-5)


def test_triton_in_sinkhorn_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(4, 3).float(), draw(5, 3).float()
    how: dict[str, Any] = {"x": x, "y": y, "eps": 0.5, "engine": "triton"}
    with pytest.raises(ValueError, match="`engine` to be one of triton"):
        sinkhorn(**{**how, "engine": "compiled"})
    with pytest.raises(ValueError, match="`engine` None of costs"):
        sinkhorn(torch.zeros(3, 4), eps=0.5, engine="triton")
    with pytest.raises(ValueError, match="made of products"):
        sinkhorn(cost_fn="euclidean", **how)
    with pytest.raises(ValueError, match="neither scaling nor"):
        sinkhorn(acceleration="anderson", **how)
    with pytest.raises(ValueError, match="float32 or a half"):
        sinkhorn(**{**how, "x": x.double(), "y": y.double()})
    monkeypatch.setattr("regkern.transport.points_triton.triton", None)
    with pytest.raises(ValueError, match="not installed"):
        sinkhorn(**how)
