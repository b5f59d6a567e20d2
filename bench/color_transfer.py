"""Colour transfer between two photographs by entropic transport between their pixels.

    python bench/color_transfer.py [--pixels 20000] [--out color_transfer.png] [--pot]

Sinkhorn runs on so many random pixels of each picture, without the matrix of their costs. Its
potentials then extend to every pixel of the first picture: pixel x goes where the plan sends it on
average, T(x) = Σ_j P_j(x) y_j with P_j(x) ∝ b_j exp((g_j − |x − y_j|²) / ε), streamed as well.
Needs scikit-learn and pillow, and POT for its numbers beside ours.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch
from regkern.transport.points import PointCost
from regkern.transport.solver import sinkhorn
from torch import Tensor


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def extended(x: Tensor, y: Tensor, g: Tensor, eps: float) -> Tensor:
    """T(x) of all x (n, 3) from the potential g (m,) of y (m, 3)."""
    engine = PointCost(x[None], y[None])
    n, m = len(x), len(y)
    b = torch.full((1, m), 1.0 / m, dtype=torch.float64)
    e = torch.full((1,), eps, dtype=torch.float64)
    given = g.double()[None]
    f = engine.softmin(b, given, e, False)
    ones = torch.ones((1, n), dtype=torch.float64)
    return engine.apply(ones, b, f, given, e, y[None], False)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=20_000)
    parser.add_argument("--eps", type=float, default=1e-2, help="of colours in [0, 1]")
    parser.add_argument("--tol", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("color_transfer.png"))
    parser.add_argument("--pot", action="store_true", help="POT's lazy solver as well")
    options = parser.parse_args()

    from PIL import Image
    from sklearn.datasets import load_sample_images

    torch.set_num_threads(options.threads)
    pictures = [torch.from_numpy(p.copy()) for p in load_sample_images().images]
    colours = [p.reshape(-1, 3).float() / 255 for p in pictures]
    generator = torch.Generator().manual_seed(0)
    x, y = (
        c[torch.randperm(len(c), generator=generator)[: options.pixels]].contiguous()
        for c in colours
    )
    before = peak_megabytes()
    start = time.perf_counter()
    plan = sinkhorn(
        x=x, y=y, eps=options.eps, tol=options.tol, max_iter=2000, acceleration="anderson"
    )
    solved = time.perf_counter()
    mapped = extended(colours[0], y, plan.g, options.eps)
    done = time.perf_counter()
    print(
        f"regkern: {len(x)} x {len(y)} pixels, {int(plan.iterations)} iterations, error "
        f"{float(plan.error):.1e}: {solved - start:.2f} s; {len(mapped)} pixels mapped: "
        f"{done - solved:.2f} s; peak memory {before:.0f} -> {peak_megabytes():.0f} MB"
    )
    result = (mapped.clamp(0, 1) * 255).round().to(torch.uint8).reshape(pictures[0].shape)
    Image.fromarray(torch.cat([*pictures, result], 1).numpy()).save(options.out)
    print(f"{options.out}: source, target, source in the colours of the target")
    if options.pot:
        pot(x, y, options.eps, int(plan.iterations))


def pot(x: Tensor, y: Tensor, eps: float, iterations: int) -> None:
    from ot.bregman import empirical_sinkhorn

    # Iterations cost the same: two of them are measured.
    some = 2
    for batch in (256, 1024):
        before, start = peak_megabytes(), time.perf_counter()
        settings: dict[str, Any] = {"numIterMax": some, "stopThr": 0.0, "warn": False}
        empirical_sinkhorn(x, y, eps, isLazy=True, batchSize=batch, **settings)
        seconds = (time.perf_counter() - start) * iterations / some
        print(
            f"POT lazy, batches of {batch}: {iterations} iterations in {seconds:.1f} s (from "
            f"{some}); peak memory {before:.0f} -> {peak_megabytes():.0f} MB"
        )


if __name__ == "__main__":
    main()
