"""Statistics of features, divergences of samples and random directions: laws, corners, errors."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from regkern.nn.spectral import features as layers
from regkern.reference.spectral import adversarial as adversarial_reference
from regkern.reference.spectral import features as reference
from regkern.spectral import adversarial, directions, feature_recipes, features, samples
from torch import Tensor, nn

DOUBLE = torch.float64
INF = float("inf")


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(100 + salt)
    return torch.randn(shape, dtype=DOUBLE, generator=generator).to(dtype)


def seed() -> Tensor:
    return torch.tensor([3, 4])


def close(a: Tensor, b: Tensor, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


# ---- VICReg, Barlow twins, whitening, IsoScore* ----

# Fewer rows than features take the other gram.
SHAPES = pytest.mark.parametrize("shape", [(4, 11), (9, 5)], ids=["wide", "tall"])


@SHAPES
def test_feature_penalties_and_all_their_derivatives(shape: tuple[int, int]) -> None:
    x, y = draw(*shape).requires_grad_(), draw(*shape, salt=1).requires_grad_()
    ones: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (features.whitening_penalty, reference.whitening_penalty),
        (features.covariance_penalty, reference.covariance_penalty),
        (features.variance_penalty, reference.variance_penalty),
        (features.iso_score, reference.iso_score),
    ]
    for ours, theirs in ones:
        close(ours(x), theirs(x))
        close(torch.autograd.grad(ours(x), x)[0], torch.autograd.grad(theirs(x), x)[0])
        assert torch.autograd.gradgradcheck(ours, x, fast_mode=True)
    for ours, theirs in (
        (features.vicreg_loss, reference.vicreg_loss),
        (features.barlow_twins_loss, reference.barlow_twins_loss),
    ):
        close(ours(x, y), theirs(x, y))
        for a, b in zip(
            torch.autograd.grad(ours(x, y), (x, y)),
            torch.autograd.grad(theirs(x, y), (x, y)),
            strict=True,
        ):
            close(a, b)
        assert torch.autograd.gradgradcheck(ours, (x, y), fast_mode=True)


def test_weights_of_vicreg_are_differentiable() -> None:
    x, y = draw(6, 4), draw(6, 4, salt=1)
    weights = torch.tensor([2.0, 3.0, 0.5], dtype=DOUBLE, requires_grad=True)
    features.vicreg_loss(x, y, *weights).backward()
    parts = torch.stack(
        [reference.vicreg_loss(x, y, *(float(i == k) for i in range(3))) for k in range(3)]
    )
    assert weights.grad is not None
    close(weights.grad, parts)


def test_a_feature_that_does_not_vary_has_no_gradient() -> None:
    x = draw(8, 3)
    x[:, 1] = 2.5
    x.requires_grad_()
    loss = features.vicreg_loss(x, x.detach(), eps=0.0) + features.barlow_twins_loss(
        x, x.detach(), eps=0.0
    )
    (g,) = torch.autograd.grad(loss, x)
    assert bool(g.isfinite().all())
    assert bool((g[:, 1] == 0).all())


def test_points_that_are_the_same_have_no_isotropy() -> None:
    x = torch.ones(5, 3, requires_grad=True)
    score = features.iso_score(x)
    assert score == 0
    assert bool((torch.autograd.grad(score, x)[0] == 0).all())
    line = draw(40, 1) @ draw(1, 5)
    assert features.iso_score(line).abs() < 1e-12
    ball = torch.linalg.qr(draw(64, 5) - draw(64, 5).mean(0))[0]
    close(features.iso_score(ball - ball.mean(0)), reference.iso_score(ball))


def test_iso_score_with_a_covariance_of_many() -> None:
    x = draw(7, 4).requires_grad_()
    c0 = draw(4, 4, salt=2)
    c0 = c0 @ c0.mT
    close(features.iso_score(x, 0.3, c0), reference.iso_score(x, 0.3, c0))
    assert torch.autograd.gradcheck(lambda t: features.iso_score(t, 0.3, c0), x, fast_mode=True)
    close(features.isotropy_penalty(x, -2.0), -2.0 * (1 - features.iso_score(x)))


def test_covariances_of_features_that_hardly_correlate_keep_their_digits() -> None:
    # With float32 sums of all squares the off-diagonal ones would be lost in those of variances.
    basis = torch.linalg.qr(draw(256, 4) - draw(256, 4).mean(0))[0] * 16
    x = basis - basis.mean(0)
    x = x + 1e-5 * draw(256, 4, salt=3)
    ours = features.covariance_penalty(x.float()).double()
    torch.testing.assert_close(
        ours, reference.covariance_penalty(x.float().double()), rtol=5e-2, atol=0
    )


def test_halves_are_computed_in_float32() -> None:
    x = draw(16, 6, dtype=torch.bfloat16).requires_grad_()
    y = features.vicreg_loss(x, x.detach() * 0.5)
    assert y.dtype == torch.float32
    torch.testing.assert_close(
        y.double(), reference.vicreg_loss(x.double(), x.double() * 0.5), rtol=1e-5, atol=1e-5
    )
    assert torch.autograd.grad(y, x)[0].dtype == torch.bfloat16


def test_autocast_leaves_the_grams_alone() -> None:
    x = draw(16, 6, dtype=torch.float32)
    expected = features.covariance_penalty(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features.covariance_penalty(x), expected)


class _Ranks:
    """Two processes as two threads, with the collectives that they call."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.own = threading.local()
        self.given: dict[int, Tensor] = {}

    def get_world_size(self, group: object) -> int:
        return self.size

    def get_rank(self, group: object) -> int:
        rank: int = self.own.rank
        return rank

    def _all(self, x: Tensor) -> list[Tensor]:
        self.given[self.own.rank] = x.clone()
        self.barrier.wait()
        found = [self.given[r] for r in range(self.size)]
        self.barrier.wait()
        return found

    def all_gather(self, out: list[Tensor], x: Tensor, group: object) -> None:
        for to, found in zip(out, self._all(x), strict=True):
            to.copy_(found)

    def all_reduce(self, x: Tensor, group: object) -> None:
        x.copy_(torch.stack(self._all(x)).sum(0))


def test_all_processes_together_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = _Ranks(2)
    monkeypatch.setattr(features, "dist", ranks)
    batches = draw(2, 2, 4, 3)
    found: dict[int, tuple[Tensor, ...]] = {}

    def run(rank: int) -> None:
        ranks.own.rank = rank
        x, y = (b.clone().requires_grad_() for b in batches[rank])
        loss = features.vicreg_loss(x, y, 0.0, 2.0, 1.0, group="both")  # type: ignore[arg-type]
        found[rank] = (loss.detach(), *torch.autograd.grad(loss, (x, y)))

    threads = [threading.Thread(target=run, args=(r,)) for r in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    whole = batches.transpose(0, 1).reshape(2, 8, 3)
    x, y = (b.clone().requires_grad_() for b in whole)
    expected = reference.vicreg_loss(x, y, 0.0, 2.0, 1.0)
    gradients = torch.autograd.grad(expected, (x, y))
    for rank in range(2):
        close(found[rank][0], expected.detach())
        for a, b in zip(found[rank][1:], gradients, strict=True):
            # The sum over both processes, each of which has the whole loss.
            close(a, 2 * b[4 * rank : 4 * rank + 4])


def test_a_process_group_of_one(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        x, y = draw(5, 3).requires_grad_(), draw(5, 3, salt=1)
        together = features.vicreg_loss(x, y, group=dist.group.WORLD)
        alone = features.vicreg_loss(x, y)
        assert torch.equal(together, alone)
        close(torch.autograd.grad(together, x)[0], torch.autograd.grad(alone, x)[0])
        assert torch.autograd.gradgradcheck(
            lambda t: features.vicreg_loss(t, y, group=dist.group.WORLD), x, fast_mode=True
        )
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: features.vicreg_loss(draw(1, 3), draw(1, 3)), ValueError, "batch of at least 2"),
        (lambda: features.vicreg_loss(draw(4, 3), draw(4, 2)), ValueError, "`y` like `x`"),
        (lambda: features.barlow_twins_loss(draw(4), draw(4)), ValueError, "shape"),
        (lambda: features.whitening_penalty(torch.ones(3, 3).int()), TypeError, "dtype"),
        (lambda: features.iso_score(draw(4, 1)), ValueError, "at least 2 features"),
        (lambda: features.iso_score(draw(4, 3), 0.5), ValueError, "`covariance` with `zeta`"),
        (lambda: features.iso_score(draw(4, 3), 2.0, draw(3, 3)), ValueError, r"\[0, 1\]"),
        (lambda: features.variance_penalty(draw(4, 3), eps=-1.0), ValueError, "`eps`"),
        (lambda: feature_recipes.ldreg_penalty(draw(4, 3), 4), ValueError, "`k` in"),
        (lambda: adversarial.softmax_kl(draw(4, 3), draw(4, 3), 2), ValueError, "`dim` in"),
        (lambda: adversarial.softmax_kl(draw(4, 3), draw(3, 4)), ValueError, "like `p_logits`"),
        (lambda: samples.normalize_samples(draw(4, 3), draw(3)), ValueError, "`scale`"),
        (
            lambda: samples.normalize_samples(draw(4, 3), lengths=torch.ones(3).long()),
            ValueError,
            "`lengths`",
        ),
        (lambda: samples.normalize_samples(draw(2, 3), mask=torch.ones(2)), ValueError, "`mask`"),
        (lambda: samples.difference_penalty(draw(3), draw(3), -1.0), ValueError, "at least 0"),
        (lambda: directions.random_directions(draw(3), "cauchy"), ValueError, "one of"),
        (lambda: directions.add_noise(draw(3), 1.0, seed=torch.ones(2)), ValueError, "`seed`"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


# ---- recipes ----


def test_beer_penalty() -> None:
    phi, after = draw(6, 5).requires_grad_(), draw(6, 5, salt=1) * 0.1 + draw(6, 5)
    with torch.no_grad():
        phi[2] = 0.0
    reward, weight, gamma = draw(6, salt=2), draw(5, salt=3), 0.9
    own, other = phi.norm(dim=1), after.norm(dim=1)
    bound = (own**2 + gamma**2 * other**2 - reward**2 / weight.square().sum()) / (
        2 * gamma * own * other
    )
    cosine = (phi * after).sum(1) / (own * other)
    kept = torch.arange(6) != 2
    expected = 0.5 * torch.relu(cosine - bound.detach())[kept].sum() / 6
    ours = feature_recipes.beer_penalty(phi, after, reward, weight, gamma, 0.5)
    close(ours, expected)
    assert ours > 0
    (g,) = torch.autograd.grad(ours, phi)
    (h,) = torch.autograd.grad(expected, phi)
    close(g[kept], h[kept])
    assert bool((g[2] == 0).all())


def test_feature_rank() -> None:
    x = (
        torch.linalg.qr(draw(40, 6))[0]
        * math.sqrt(40)
        @ torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=DOUBLE))
    )
    rank = feature_recipes.feature_rank(x)
    assert (int(rank.numerical), int(rank.cumulative)) == (3, 3)
    assert rank.effective == pytest.approx(3.0)
    assert [float(r) for r in feature_recipes.feature_rank(torch.zeros(4, 3))] == [0, 0, 0]


def test_neural_collapse_penalty() -> None:
    # A simplex: all centres at the same angle, arccos(−1/2) for three in the plane.
    angles = torch.arange(3, dtype=DOUBLE) * (2 * math.pi / 3)
    centres = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 2, 1, 1])
    f = centres[labels] + 0.5
    value = feature_recipes.neural_collapse_penalty(f, labels, centres)
    assert float(value) == pytest.approx(0.5 - 2 * math.pi / 3)
    moved = draw(3, 4).requires_grad_()
    points = draw(4, 4, salt=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, c: feature_recipes.neural_collapse_penalty(a, labels, c, 2.0, 3.0),
        (points, moved),
        fast_mode=True,
    )


@pytest.mark.parametrize("estimator", ["moments", "mle"])
def test_ldreg_penalty(estimator: str) -> None:
    x = draw(10, 3).requires_grad_()

    def definition(t: Tensor) -> Tensor:
        total = []
        for i in range(10):
            d = torch.stack([(t[i] - t[j]).norm() for j in range(10) if j != i]).sort().values[:4]
            if estimator == "moments":
                total.append((d.mean() / (d[-1] - d.mean())).log())
            else:
                total.append(-(-(d / d[-1]).log().mean()).log())
        return -torch.stack(total).mean()

    ours = feature_recipes.ldreg_penalty(x, 4, estimator=estimator)
    close(ours, definition(x))
    close(torch.autograd.grad(ours, x)[0], torch.autograd.grad(definition(x), x)[0])
    same = torch.zeros(6, 2, requires_grad=True)
    value = feature_recipes.ldreg_penalty(same, 3, estimator=estimator, form="l2")
    assert value == 0
    assert bool((torch.autograd.grad(value, same)[0] == 0).all())


def test_small_recipes() -> None:
    z = draw(4, 3).requires_grad_()
    decoupling = feature_recipes.spectral_decoupling(z, 0.5)
    close(torch.autograd.grad(decoupling, z)[0], 0.5 * z.detach() / 4)
    a, b = draw(4, 3), draw(4, 5, salt=1)
    u, v = torch.nn.functional.normalize(a), torch.nn.functional.normalize(b)
    expected = (u @ u.mT - v @ v.mT).square().sum() / 16
    close(feature_recipes.similarity_penalty(a, b), expected)
    zero = torch.zeros(3, 3, requires_grad=True)
    penalty = feature_recipes.projection_penalty(zero)
    assert bool((torch.autograd.grad(penalty, zero)[0] == 0).all())
    close(feature_recipes.projection_penalty(a), 0.15 * a.norm())


# ---- samples ----


def test_a_zero_sample_stays_zero() -> None:
    x = draw(3, 5).requires_grad_()
    with torch.no_grad():
        x[1] = 0.0
    y = samples.normalize_samples(x, 2.0)
    assert bool((y[1] == 0).all())
    (g,) = torch.autograd.grad((y * draw(3, 5, salt=1)).sum(), x, create_graph=True)
    assert bool((g[1] == 0).all())
    (h,) = torch.autograd.grad(g.square().sum(), x)
    assert bool(h.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e-7, 6e4])
def test_norms_do_not_underflow_or_overflow(dtype: torch.dtype, size: float) -> None:
    x = torch.full((2, 64), size if dtype != torch.float32 else size**4, dtype=dtype)
    y = samples.normalize_samples(x)
    torch.testing.assert_close(y, torch.full_like(y, 0.125), rtol=1e-2, atol=0)


def test_lengths_and_masks_say_the_same() -> None:
    x, lengths = draw(3, 5, 2), torch.tensor([5, 0, 3])
    mask = torch.arange(5) < lengths[:, None]
    y = samples.normalize_samples(x, 0.5, lengths=lengths)
    assert torch.equal(y, samples.normalize_samples(x, 0.5, mask=mask))
    assert bool((y[~mask] == 0).all())
    close(y[0], 0.5 * x[0] / x[0].norm())


def test_small_perturbations_keep_their_divergence() -> None:
    p = draw(5, 10)
    q = p + 1e-5 * draw(5, 10, salt=1)
    p32, q32 = p.float(), q.float()
    exact = adversarial_reference.softmax_kl(p32.double(), q32.double())
    ours = adversarial.softmax_kl(p32, q32).double()
    torch.testing.assert_close(ours, exact, rtol=0.05, atol=0)
    q32.requires_grad_()
    (g,) = torch.autograd.grad(adversarial.softmax_kl(p32, q32).sum(), q32)
    difference = (q32.double().softmax(1) - p32.double().softmax(1)).detach()
    torch.testing.assert_close(g.double(), difference, rtol=0.05, atol=1e-8)


def test_classes_that_are_ruled_out() -> None:
    p, q = draw(4, 6), draw(4, 6, salt=1)
    p[0, 1] = q[0, 1] = p[0, 3] = q[0, 3] = -INF
    p[1, 2] = -INF  # q has it: no harm
    q[2, 2] = -INF  # p has it: infinite
    p[3] = q[3] = -INF
    q.requires_grad_()
    value = adversarial.softmax_kl(p, q)
    keep = [0, 2, 4, 5]
    close(value[0], adversarial_reference.softmax_kl(p[0, keep], q[0, keep]))
    close(value[1], adversarial_reference.softmax_kl(p[1], q[1]))
    assert value[2] == INF
    assert value[3] == 0
    (g,) = torch.autograd.grad(value[[0, 1, 3]].sum(), q, create_graph=True)
    assert bool(g.isfinite().all())
    assert bool((g[0, [1, 3]] == 0).all())
    assert bool((g[3] == 0).all())
    (h,) = torch.autograd.grad(g.square().sum(), q)
    assert bool(h.isfinite().all())
    twice = adversarial.softmax_kl(p.clone().requires_grad_(), q.detach(), both=True)
    assert twice.requires_grad
    assert not adversarial.softmax_kl(p.clone().requires_grad_(), q.detach()).requires_grad


def test_entropy() -> None:
    z = draw(3, 5)
    z[0, 1] = -INF
    p = z.softmax(1)
    expected = -torch.special.xlogy(p, p).sum(1)
    close(adversarial.softmax_entropy(z, reduction="none"), expected)


def _quadratic(x: Tensor) -> Tensor:
    """Logits whose divergence grows in the first coordinate alone."""
    return torch.stack([3.0 * x[:, 0], 0.1 * x[:, 1], 0.0 * x[:, 2]], 1)


@pytest.mark.parametrize("xi", [1e-4, 1e-1])
def test_virtual_adversarial_loss_finds_the_steepest_direction(xi: float) -> None:
    x = torch.zeros(4, 3)
    loss = adversarial.virtual_adversarial_loss(
        _quadratic, x, xi=xi, eps=0.5, n_iter=3, seed=seed()
    )
    uniform = torch.zeros(1, 3)
    worst = max(
        float(adversarial.softmax_kl(uniform, _quadratic(torch.tensor([[s * 0.5, 0.0, 0.0]]))))
        for s in (-1, 1)
    )
    least = min(
        float(adversarial.softmax_kl(uniform, _quadratic(torch.tensor([[s * 0.5, 0.0, 0.0]]))))
        for s in (-1, 1)
    )
    assert 0.97 * least <= float(loss) <= 1.01 * worst


def test_virtual_adversarial_loss_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))
    x = draw(8, 3, dtype=torch.float32)
    first = adversarial.virtual_adversarial_loss(model, x, eps=0.5, seed=seed())
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    for _ in range(30):
        optimizer.zero_grad()
        loss = adversarial.virtual_adversarial_loss(model, x, eps=0.5)
        (loss + 0.0 * adversarial.softmax_entropy(model(x))).backward()
        optimizer.step()
    last = adversarial.virtual_adversarial_loss(model, x, eps=0.5, seed=seed())
    assert float(last.detach()) < 0.5 * float(first.detach())


def test_adversarial_text() -> None:
    weight, counts = draw(5, 3).requires_grad_(), torch.tensor([4, 1, 0, 2, 1])
    text = torch.tensor([0, 0, 0, 0, 1, 3, 3, 4])
    v = adversarial.normalize_embeddings(weight, counts)
    close(v[text].mean(0), torch.zeros(3, dtype=DOUBLE))
    close(v[text].var(0, correction=0), torch.ones(3, dtype=DOUBLE))
    words = v[torch.tensor([[0, 1, 3], [4, 2, 2]])].detach().requires_grad_()
    lengths = torch.tensor([3, 1])
    loss = (words * draw(2, 3, 3, salt=5)).square().sum()
    r = adversarial.adversarial_perturbation(loss, words, 0.25, lengths=lengths)
    close(r.flatten(1).norm(dim=1), torch.full((2,), 0.25, dtype=DOUBLE))
    assert bool((r[1, 1:] == 0).all())


# ---- random directions ----


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_directions_of_a_list(kind: str) -> None:
    like = [torch.empty(3, 50), torch.empty(0), torch.empty(7, dtype=DOUBLE), torch.empty(130)]
    ours = directions.random_directions(like, kind, scale=0.5, seed=seed())
    shapes = [tuple(t.shape) for t in like]
    expected = adversarial_reference.random_directions(shapes, kind, 0.5, seed())
    for t, a, b in zip(like, ours, expected, strict=True):
        assert a.dtype == t.dtype
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-6)
    alone = directions.random_directions(like[0], kind, scale=0.5, seed=seed())
    assert torch.equal(alone, ours[0])
    noisy = directions.add_noise(torch.ones(3, 50), 0.5, kind, seed=seed())
    assert torch.equal(noisy, 1.0 + alone)


def test_moments_of_directions() -> None:
    torch.manual_seed(0)
    signs = directions.random_directions(torch.empty(40000), "rademacher", seed=seed())
    assert bool((signs.abs() == 1).all())
    assert abs(float(signs.mean())) < 0.02
    assert abs(float((signs[1:] * signs[:-1]).mean())) < 0.02
    ball = directions.sphere_directions(torch.empty(500, 3), scale=2.0)
    close(ball.norm(dim=1), torch.full((500,), 2.0), 1e-6)
    assert float(ball.mean(0).abs().max()) < 0.2


def test_noise_has_a_gradient_in_its_size() -> None:
    x = draw(3, 5).requires_grad_()
    std = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, s: directions.add_noise(a, s, seed=seed()), (x, std), fast_mode=True
    )


# ---- modules ----


def test_loss_modules() -> None:
    x, y = draw(6, 4), draw(6, 4, salt=1)
    close(layers.VICRegLoss(2.0, 3.0, 0.5)(x, y), features.vicreg_loss(x, y, 2.0, 3.0, 0.5))
    close(layers.BarlowTwinsLoss(0.1)(x, y), features.barlow_twins_loss(x, y, 0.1))
    iso = layers.IsotropyPenalty(2.0)
    close(iso(x), features.isotropy_penalty(x, 2.0))
    assert "lam=0.1" in repr(layers.BarlowTwinsLoss(0.1))
    model = nn.Linear(4, 3)
    vat = layers.VirtualAdversarialLoss(eps=0.5)
    assert vat(model, x.float()).requires_grad
