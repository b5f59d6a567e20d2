"""Penalties on features and logits that are made of the library's ops."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.spectral.samples import inner_products, normalize_samples, squared_norms


def _matrix(op: str, name: str, value: Tensor) -> None:
    checks.floating(op, name, value)
    if value.dim() != 2:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of two dimensions, got {tuple(value.shape)}"
        )


def beer_penalty(
    features: Tensor,
    next_features: Tensor,
    reward: Tensor,
    weight: Tensor,
    gamma: float = 0.99,
    beta: float | Tensor = 1e-3,
) -> Tensor:
    r"""Keeps successive features as far apart as the Bellman equation allows.

    .. math::
        \beta \cdot \operatorname{mean} \bigl( \cos(\phi, \phi') - UB \bigr)_+, \qquad
        UB = \frac{\lVert \phi \rVert^2 + \gamma^2 \lVert \phi' \rVert^2
            - r^2 / \lVert w \rVert^2}{2 \gamma \lVert \phi \rVert \lVert \phi' \rVert}

    Parameters
    ----------
    features, next_features : Tensor
        φ and φ', (batch, D). φ' and the bound are constants.
    reward : Tensor
        r, (batch).
    weight : Tensor
        w of the last layer Q = ⟨φ, w⟩, any shape.
    gamma : float
        The discount, in (0, 1].
    beta : float or Tensor
        β.

    Returns
    -------
    Tensor
        0-d. A row without features adds 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Norms and products of the rows come from one read of both tensors.

    References
    ----------
    He, Zhou, Huang et al., "Adaptive regularization of representation rank as an implicit
    constraint of Bellman equation", ICLR 2024.
    """
    op = "beer_penalty"
    _matrix(op, "features", features)
    checks.same(op, "next_features", next_features, features, "features")
    if tuple(reward.shape) != (features.shape[0],):
        raise ValueError(
            f"regkern.{op}: expected `reward` of shape ({features.shape[0]},), got "
            f"{tuple(reward.shape)}"
        )
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"regkern.{op}: expected `gamma` in (0, 1], got {gamma}")
    own, along, other = inner_products(features, next_features.detach())
    zero = (own == 0) | (other == 0)
    product = torch.where(zero, 1.0, own) * torch.where(zero, 1.0, other)
    cosine = torch.where(zero, 0.0, along) * product.rsqrt()
    with torch.no_grad():
        r = reward.to(own.dtype)
        w = weight.to(own.dtype).square().sum()
        bound = (own + gamma**2 * other - r.square() / w) / (2.0 * gamma * product.sqrt())
    excess = torch.where(zero, 0.0, torch.relu(cosine - bound))
    return beta * excess.mean()


class FeatureRank(NamedTuple):
    """How many dimensions features fill.

    Attributes
    ----------
    numerical : Tensor
        Singular values of :math:`\\Phi / \\sqrt{N}` above a threshold.
    cumulative : Tensor
        The fewest singular values that have the share 1 − δ of their sum (srank).
    effective : Tensor
        The exponential of the entropy of the singular values' shares.
    """

    numerical: Tensor
    cumulative: Tensor
    effective: Tensor


@torch.no_grad()
def feature_rank(features: Tensor, threshold: float = 1e-2, delta: float = 1e-2) -> FeatureRank:
    """The ranks of (batch, D) features that are reported in reinforcement learning; 0-d tensors.

    Features that are all zero have rank 0.
    """
    _matrix("feature_rank", "features", features)
    wide = features.to(compute_dtype(features))
    values = torch.linalg.svdvals(wide)
    total = values.sum()
    share = values / torch.where(total == 0, 1.0, total)
    few = (share.cumsum(0) < 1.0 - delta).sum() + 1
    entropy = -torch.special.xlogy(share, share).sum()
    return FeatureRank(
        (values / max(wide.shape[0], 1) ** 0.5 > threshold).sum(),
        torch.where(total == 0, 0, few),
        torch.where(total == 0, 0.0, entropy.exp()),
    )


def neural_collapse_penalty(
    features: Tensor,
    labels: Tensor,
    centres: Tensor,
    within: float | Tensor = 1.0,
    between: float | Tensor = 1.0,
) -> Tensor:
    r"""Pulls features to the centre of their class, and the centres apart.

    .. math::
        within \cdot \operatorname{mean}_i \lVert f_i - c_{y_i} \rVert^2
        - between \cdot \frac{1}{K} \sum_k \min_{j \neq k} \arccos \langle \hat{c}_k, \hat{c}_j
        \rangle

    Parameters
    ----------
    features : Tensor
        (batch, D).
    labels : Tensor
        int64, (batch), in [0, K).
    centres : Tensor
        (K, D), K at least 2: learned, or class means. Both terms differentiate them.
    within, between : float or Tensor
        The weights of the two terms.

    Returns
    -------
    Tensor
        0-d.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Liu, Zhang, Hu et al., "Inducing neural collapse in deep long-tailed learning", AISTATS 2023.
    The exact form of the paper's second term was not confirmed.
    """
    op = "neural_collapse_penalty"
    _matrix(op, "features", features)
    _matrix(op, "centres", centres)
    if centres.shape[0] < 2 or centres.shape[1] != features.shape[1]:
        raise ValueError(
            f"regkern.{op}: expected `centres` of shape (at least 2, {features.shape[1]}), got "
            f"{tuple(centres.shape)}"
        )
    gathered = centres.to(features.dtype)[labels]
    pull = (features - gathered).to(compute_dtype(features)).square().sum(1).mean()
    unit = normalize_samples(centres.to(compute_dtype(features)))
    cosine = unit @ unit.mT
    own = torch.eye(len(centres), dtype=torch.bool, device=centres.device)
    nearest = cosine.masked_fill(own, -2.0).amax(1)
    # The derivative of arccos is infinite at ±1.
    limit = 1.0 - 1e-6 if nearest.dtype == torch.float32 else 1.0 - 1e-12
    angle = torch.arccos(nearest.clamp(-limit, limit)).mean()
    return within * pull - between * angle


def ldreg_penalty(
    features: Tensor,
    k: int = 64,
    beta: float | Tensor = 1.0,
    *,
    form: Literal["l1", "l2"] = "l1",
    estimator: Literal["moments", "mle"] = "moments",
) -> Tensor:
    r"""Raises the local intrinsic dimensionality of representations.

    .. math::
        -\beta \operatorname{mean}_i \ln \text{LID}_i \quad (l1), \qquad
        -\beta \bigl(\operatorname{mean}_i (\ln \text{LID}_i)^2\bigr)^{1/2} \quad (l2)

    from the distances :math:`d_{i1} \le … \le d_{ik}` to the k nearest of the batch:
    :math:`\text{LID} = \bar{d}_i / (d_{ik} - \bar{d}_i)` by the method of moments, or
    :math:`-(\frac{1}{k} \sum_j \ln (d_{ij} / d_{ik}))^{-1}` by maximum likelihood.

    Parameters
    ----------
    features : Tensor
        (batch, D).
    k : int
        In [2, batch − 1].
    beta : float or Tensor
        β.
    form, estimator : str
        See above.

    Returns
    -------
    Tensor
        0-d. A point whose k distances are all the same has no estimate and is left out; so are
        duplicates.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Distances are those of a gram, the nearest are found without gradient, and the gradient goes to
    these k alone.

    References
    ----------
    Huang, Campello, Erfani, Ma, Houle and Bailey, "LDReg: local dimensionality regularized
    self-supervised learning", ICLR 2024.
    """
    op = "ldreg_penalty"
    _matrix(op, "features", features)
    checks.one_of(op, "form", form, ("l1", "l2"))
    checks.one_of(op, "estimator", estimator, ("moments", "mle"))
    if not 2 <= k < features.shape[0]:
        raise ValueError(f"regkern.{op}: expected `k` in [2, {features.shape[0] - 1}], got {k}")
    wide = features.to(compute_dtype(features))
    with torch.no_grad():
        square = squared_norms(wide)
        near = square[None, :] - 2.0 * (wide @ wide.mT)
        near.fill_diagonal_(torch.inf)
        index = near.topk(k, dim=1, largest=False).indices
    step = wide[:, None, :] - wide[index]
    squares = squared_norms(step.reshape(-1, wide.shape[1])).reshape(index.shape)
    apart = squares > 0
    distance = torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
    farthest = distance.amax(1)
    if estimator == "moments":
        mean = distance.mean(1)
        gap = farthest - mean
        known = gap > 0
        log_lid = torch.where(known, mean, 1.0).log() - torch.where(known, gap, 1.0).log()
    else:
        known = (farthest > 0) & apart.all(1)
        safe = torch.where(known[:, None], distance, 1.0)
        fall = (torch.where(known, farthest, 1.0).log() - safe.log().mean(1)).clamp(min=0.0)
        known = known & (fall > 0)
        log_lid = -torch.where(known, fall, 1.0).log()
    log_lid = torch.where(known, log_lid, 0.0)
    count = known.sum().clamp(min=1)
    if form == "l1":
        return -beta * log_lid.sum() / count
    square_mean = log_lid.square().sum() / count
    zero = square_mean == 0
    return -beta * torch.where(zero, 0.0, torch.where(zero, 1.0, square_mean).sqrt())


def spectral_decoupling(
    logits: Tensor, lam: float | Tensor = 1e-3, target: float | Tensor = 0.0
) -> Tensor:
    r"""A penalty on logits, to be added to the cross-entropy.

    .. math:: \frac{\lambda}{2} \operatorname{mean}_i \lVert \hat{y}_i - \gamma \rVert^2

    Parameters
    ----------
    logits : Tensor
        (batch, ...).
    lam : float or Tensor
        λ.
    target : float or Tensor
        γ: one number, or one for each class.

    Returns
    -------
    Tensor
        0-d.

    References
    ----------
    Pezeshki, Kaba, Bengio, Courville, Precup and Lajoie, "Gradient starvation: a learning
    proclivity in neural networks", NeurIPS 2021.
    """
    checks.floating("spectral_decoupling", "logits", logits)
    return 0.5 * lam * squared_norms(logits - target).mean()


def similarity_penalty(a: Tensor, b: Tensor) -> Tensor:
    r"""The difference of the similarities within two batches, of audio and of text, say.

    .. math:: \frac{1}{N^2} \lVert \hat{A} \hat{A}^\top - \hat{B} \hat{B}^\top \rVert_F^2

    with rows of unit length (a row of zeros is similar to none).

    Parameters
    ----------
    a, b : Tensor
        (N, D) and (N, E).

    Returns
    -------
    Tensor
        0-d.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    "Enhance audio generation controllability through representation similarity regularization",
    2023. The paper's norm was not confirmed.
    """
    op = "similarity_penalty"
    _matrix(op, "a", a)
    _matrix(op, "b", b)
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"regkern.{op}: expected `b` with a batch of {a.shape[0]}, got {tuple(b.shape)}"
        )
    units = [normalize_samples(t.to(compute_dtype(a))) for t in (a, b)]
    grams = [u @ u.mT for u in units]
    return squared_norms(grams[0] - grams[1]).sum() / max(a.shape[0], 1) ** 2


def projection_penalty(projection: Tensor, lam: float | Tensor = 0.15) -> Tensor:
    r""":math:`\lambda \lVert P \rVert_F` of the square matrix before a tied output embedding, with
    gradient 0 at P = 0.

    References
    ----------
    Press and Wolf, "Using the output embedding to improve language models", EACL 2017.
    """
    checks.floating("projection_penalty", "projection", projection)
    square = squared_norms(projection.reshape(1, -1))[0]
    zero = square == 0
    return lam * torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
