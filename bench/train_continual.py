"""Learns one task after the other, with and without a penalty of spectral norms.

    python bench/train_continual.py [--tasks 20] [--seed 0] [--json results.json]

A network learns scikit-learn's handwritten digits; then the ten labels trade places, and it learns
them anew, and so on. Weights that grow from task to task make it learn ever more slowly.
`SpectralPenalty` keeps every spectral norm near 1 by adding its gradients after the backward.

Exits with 1 unless the penalty gives five points more accuracy over the last half of the tasks,
keeps the spectral norms below those without it, and costs less than 5 % of a step of a larger
network.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from regkern.spectral.spectral_penalties import SpectralPenalty
from torch import Tensor, nn

CLASSES, BATCH, EPOCHS = 10, 64, 2
WIDTH, DEPTH, LR, WEIGHT = 128, 5, 5e-3, 1e-2


def network(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(64, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16.0
    return images - images.mean(0), torch.tensor(data.target)


def learn(model: nn.Module, tasks: int, weight: float, seed: int) -> list[float]:
    """The accuracy on each task while it is learnt, each batch before its step."""
    images, classes = digits()
    generator = torch.Generator().manual_seed(seed)
    penalty = SpectralPenalty(model, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), LR)
    accuracies = []
    for _ in range(tasks):
        labels = torch.randperm(CLASSES, generator=generator)[classes]
        right = 0
        for _ in range(EPOCHS):
            order = torch.randperm(len(images), generator=generator)
            for chosen in order.split(BATCH):
                y = model(images[chosen])
                loss = F.cross_entropy(y, labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                if weight > 0:
                    penalty.add_gradients_(weight)
                optimizer.step()
                right += int((y.argmax(1) == labels[chosen]).sum())
        accuracies.append(right / (EPOCHS * len(images)))
    return accuracies


def largest(model: nn.Module) -> float:
    """The largest singular value of all layers."""
    weights = [p.detach() for p in model.parameters() if p.dim() > 1]
    return max(float(torch.linalg.svdvals(w)[0]) for w in weights)


def cost(steps: int = 12) -> dict[str, float]:
    """Milliseconds of a step and of the penalty, of a network that is large enough to measure."""
    torch.manual_seed(0)
    model = network(1024, 5)
    penalty = SpectralPenalty(model)
    optimizer = torch.optim.Adam(model.parameters(), LR, fused=True)
    x, y = torch.randn(512, 64), torch.randint(0, CLASSES, (512,))
    best = {"step": float("inf"), "penalty": float("inf")}
    for _ in range(steps):
        start = time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        middle = time.process_time()
        penalty.add_gradients_(WEIGHT)
        end = time.process_time()
        best["step"] = min(best["step"], 1e3 * (middle - start))
        best["penalty"] = min(best["penalty"], 1e3 * (end - middle))
    return best


def run(tasks: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    plain = network(WIDTH, DEPTH)
    regular = copy.deepcopy(plain)
    return {
        "tasks": tasks,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "accuracy": {
            "plain": learn(plain, tasks, 0.0, seed),
            "penalty": learn(regular, tasks, WEIGHT, seed),
        },
        "sigma": {"plain": largest(plain), "penalty": largest(regular)},
        "milliseconds": cost(),
    }


def late(accuracies: list[float]) -> float:
    """The mean over the last half of the tasks."""
    half = accuracies[len(accuracies) // 2 :]
    return sum(half) / len(half)


def missed(results: dict[str, Any]) -> list[str]:
    accuracies, sigma = results["accuracy"], results["sigma"]
    times = results["milliseconds"]
    wanted = {
        "five points more late with the penalty": late(accuracies["penalty"])
        > late(accuracies["plain"]) + 0.05,
        "smaller spectral norms with the penalty": sigma["penalty"] < sigma["plain"],
        "the penalty takes less than 5 % of a step": times["penalty"] < 0.05 * times["step"],
    }
    return [text for text, holds in wanted.items() if not holds]


def table(results: dict[str, Any]) -> str:
    lines = [
        f"permuted labels of handwritten digits, {results['tasks']} tasks, seed {results['seed']}, "
        f"{results['threads']} threads, torch {results['torch']}",
    ]
    for name, accuracies in results["accuracy"].items():
        by_task = " ".join(f"{100 * a:5.1f}" for a in accuracies)
        lines.append(f"{name:<8} accuracy, %: {by_task}   largest σ {results['sigma'][name]:.2f}")
    times = results["milliseconds"]
    share = times["penalty"] / times["step"]
    lines.append(
        f"a step of a network of width 1024 takes {times['step']:.1f} ms, the penalty "
        f"{times['penalty']:.2f} ms: {share:.1%}"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is small
    results = run(options.tasks, options.seed)
    failures = missed(results)
    print(table(results))
    for text in failures:
        print(f"MISSED: {text}")
    if options.json is not None:
        options.json.write_text(json.dumps(results | {"missed": failures}, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
