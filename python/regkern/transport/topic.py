"""The cost of an entropic plan as a loss: clusters of word embeddings around topics (ECRTM)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply, once_only


def _scaled_kernel(cost: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    return torch.exp((f[:, None] + g - cost) / eps)


def entropic_potentials(
    cost: Tensor, a: Tensor, b: Tensor, eps: float, max_iter: int, tol: float, check_every: int
) -> tuple[Tensor, Tensor, Tensor]:
    """f, g and the error of Sinkhorn's iteration by products with a kernel.

    The potentials so far are part of the kernel, which is computed again every ``check_every``
    iterations: scalings stay near 1, whatever ε is. Rows and columns with a weight each have a
    kernel entry of 1 to begin with. Ends at an error (L1 of the rows, over the mass) of ``tol``:
    what is left of ``max_iter`` then changes nothing.
    """
    inf = torch.full((), torch.inf, dtype=cost.dtype, device=cost.device)
    f = torch.where(b > 0, cost, inf).amin(1)
    g = torch.where(a[:, None] > 0, cost - f[:, None], inf).amin(0)
    done = torch.zeros((), dtype=torch.bool, device=cost.device)
    error = torch.full((), torch.inf, dtype=cost.dtype, device=cost.device)
    for begin in range(0, max_iter, check_every):
        kernel = _scaled_kernel(cost, f, g, eps)
        u, v = torch.ones_like(a), torch.ones_like(b)
        for _ in range(min(check_every, max_iter - begin)):
            u = 1.0 / (kernel @ (b * v))
            v = 1.0 / (kernel.mT @ (a * u))
        now = (a * (u * (kernel @ (b * v)) - 1.0)).abs().sum() / a.sum()
        f = torch.where(done, f, f + eps * u.log())
        g = torch.where(done, g, g + eps * v.log())
        error = torch.where(done, error, now)
        done = error <= tol
        # On a GPU the host does not wait to see.
        if cost.is_cpu and not torch.compiler.is_compiling() and bool(done):
            break
    return f, g, error


class _PlanCost(torch.autograd.Function):
    """⟨P, C⟩ with its derivative through the plan.

    With H = P ⊙ C, its sums r of rows and c of columns, and (λ, μ) from
    [diag(P1) P; Pᵀ diag(Pᵀ1)] (λ, μ) = (r, c), dC = P + P ⊙ (λ ⊕ μ − C) / ε. The system is solved
    on its smaller side; its null space, constants that go from λ to μ, does not show in dC.
    """

    @staticmethod
    def forward(
        cost: Tensor,
        a: Tensor,
        b: Tensor,
        eps: float,
        max_iter: int,
        tol: float,
        check_every: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        f, g, error = entropic_potentials(cost, a, b, eps, max_iter, tol, check_every)
        plan = a[:, None] * b * _scaled_kernel(cost, f, g, eps)
        value = torch.where(plan == 0, 0.0, plan * cost).sum(dtype=torch.float64)
        return value.to(cost.dtype), plan, error

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        cost, _, _, ctx.eps, *_ = inputs
        _, plan, error = output
        ctx.mark_non_differentiable(plan, error)
        ctx.save_for_backward(cost, plan)

    @staticmethod
    @once_only("ecrtm_loss")
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
        cost, plan = ctx.saved_tensors
        if plan.shape[0] > plan.shape[1]:
            slope = _through_plan(cost.mT, plan.mT, ctx.eps).mT
        else:
            slope = _through_plan(cost, plan, ctx.eps)
        return grad * slope, *(None,) * 6


def _through_plan(cost: Tensor, plan: Tensor, eps: float) -> Tensor:
    wide = plan.double()
    weighted = torch.where(wide == 0, 0.0, wide * cost.double())
    rows, columns = wide.sum(1), wide.sum(0)
    inverse = torch.where(columns > 0, 1.0 / torch.where(columns > 0, columns, 1.0), 0.0)
    r, c = weighted.sum(1), weighted.sum(0)
    schur = torch.diag(rows) - (wide * inverse) @ wide.mT
    # SPD once the constants are no longer its null space; a row without mass has an equation of
    # its own.
    schur = schur + torch.outer(rows, rows) / rows.sum() + torch.diag((rows == 0).double())
    lam = torch.linalg.solve(schur, r - wide @ (inverse * c))
    mu = inverse * (c - wide.mT @ lam)
    slope = wide + (wide * (lam[:, None] + mu) - weighted) / eps
    return slope.to(cost.dtype)


def ecrtm_loss(
    topics: Tensor,
    words: Tensor,
    alpha: float = 20.0,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    max_iter: int = 1000,
    tol: float = 5e-3,
    check_every: int = 10,
) -> Tensor:
    r"""The embedding clustering regularization of topic models.

    .. math:: \langle P, M \rangle, \qquad M_{kv} = |t_k - w_v|^2, \qquad
        P = \operatorname{argmin}_{P 1 = a,\; P^\top 1 = b} \langle P, M \rangle
        + \tfrac{1}{α} \mathrm{KL}(P \,|\, a b^\top)

    The cost alone, without the entropy: its derivative is not the plan, as that of the regularized
    value is (the envelope theorem), but goes through the plan as well. It is had by the implicit
    function theorem, which is what the authors' unrolled loop tends to.

    Parameters
    ----------
    topics, words : Tensor
        t, (K, d), and w, (V, d), of one dtype: float32, float64, bfloat16 or float16.
    alpha : float
        α = 1/ε.
    a, b : Tensor, optional
        Masses of topics, (K,), and of words, (V,). Default: 1/K and 1/V. Not differentiated; a
        point without mass has gradient 0.
    max_iter, tol, check_every : int, float, int
        Sinkhorn's iteration ends at an error of ``tol`` (L1, of the topics' masses), looked at
        every ``check_every`` iterations; what is left after ``max_iter`` is ignored by the
        gradient.

    Returns
    -------
    Tensor
        0-d, float32, or float64 where topics are. To be multiplied with the weight of the loss (the
        authors' is 100 to 250). Differentiable in topics and words, once.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    An iteration is two products with a K x V kernel. The backward is one product of it with itself
    and a system of min(K, V) equations, in float64: nothing is kept of the iterations.

    References
    ----------
    Wu, Dong, Nguyen and Luu, "Effective neural topic modeling with embedding clustering
    regularization", ICML 2023.
    """
    op = "ecrtm_loss"
    checks.floating(op, "topics", topics)
    checks.floating(op, "words", words)
    checks.on_device(op, "words", words, topics)
    if topics.dim() != 2 or words.dim() != 2 or topics.shape[1] != words.shape[1]:
        raise ValueError(
            f"regkern.{op}: expected `topics` of shape (K, d) and `words` of shape (V, d), got "
            f"{tuple(topics.shape)} and {tuple(words.shape)}"
        )
    if topics.dtype != words.dtype:
        raise TypeError(
            f"regkern.{op}: expected `words` of topics' dtype {topics.dtype}, got {words.dtype}"
        )
    if topics.shape[0] == 0 or words.shape[0] == 0:
        raise ValueError(f"regkern.{op}: expected at least one topic and one word, got none")
    checks.scale(op, "alpha", alpha)
    if not alpha > 0:
        raise ValueError(f"regkern.{op}: expected `alpha` above 0, got {alpha}")
    checks.at_least(op, "max_iter", max_iter, 1)
    checks.at_least(op, "check_every", check_every, 1)
    checks.at_least(op, "tol", tol, 0.0)
    kind = compute_dtype(topics)
    masses = []
    for name, given, points in (("a", a, topics), ("b", b, words)):
        count = points.shape[0]
        if given is None:
            masses.append(points.new_full((count,), 1.0 / count, dtype=kind))
            continue
        checks.floating(op, name, given)
        checks.on_device(op, name, given, topics)
        if given.shape != (count,):
            raise ValueError(
                f"regkern.{op}: expected `{name}` of shape ({count},), got {tuple(given.shape)}"
            )
        masses.append(given.detach().to(kind))
    with torch.autocast(topics.device.type, enabled=False):
        t, w = topics.to(kind), words.to(kind)
        # Distances do not change with the origin; products of what is centred lose less.
        centre = t.detach().mean(0)
        t, w = t - centre, w - centre
        square = t.square().sum(1)[:, None] + w.square().sum(1) - 2.0 * (t @ w.mT)
        value: Tensor = function_apply(
            _PlanCost, torch.relu(square), *masses, 1.0 / alpha, max_iter, tol, check_every
        )[0]
    return value
