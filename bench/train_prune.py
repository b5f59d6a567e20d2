"""Prunes the filters of a network while it trains, shrinks it, and measures what is left.

    python bench/train_prune.py [--epochs 40] [--seed 0] [--json results.json]

A convolutional network learns scikit-learn's handwritten digits, once with AdamW and once with
`ProxAdamW` and a group lasso on the channels (filter, γ and β), whose weight ramps up. A third of
the way through, the channels of the smallest norms of every layer go to zero, and what is zero
stays so while the others heal. `shrink` then takes the zero filters out.

Exits with 1 unless at least 70 % of the filters are zero, the test accuracy is within one point of
the dense network's, and the smaller network answers the same in less time.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from regkern.optim.proximal import ProxAdamW
from regkern.optim.report import sparsity_report
from regkern.optim.schedules import CubicRamp
from regkern.optim.shrinking import shrink
from regkern.proximal.envelope import TopKGroups
from regkern.proximal.group_penalties import GroupL2
from regkern.proximal.groups import Groups
from torch import Tensor, nn

CLASSES, BATCH, TEST_SHARE = 10, 64, 4
WIDTHS = (32, 64, 128)
LR, LAM, KEPT = 4e-3, 0.05, 0.3


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 1
    for i, width in enumerate(WIDTHS):
        stride = 1 if i == 0 else 2
        layers += [
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)
    )


#: Filter, γ and β of each channel are one group: what makes it a channel of zeros.
CHANNELS = Groups.union([(0, 0), (1, 0), (2, 0)])


def channels_of(model: nn.Sequential) -> list[list[Tensor]]:
    """Weight, γ and β of each convolution."""
    return [
        [layer.weight, norm.weight, norm.bias]
        for layer, norm in zip(model, list(model)[1:], strict=False)
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    ]


def digits(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0 - 0.5
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, rest = order.tensor_split([len(order) // TEST_SHARE])
    return (images[rest], labels[rest]), (images[test], labels[test])


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    epochs: int,
    seed: int,
    then: Callable[[], None] = lambda: None,
) -> float:
    """Seconds for an epoch."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * steps)
    model.train()
    start = time.perf_counter()
    for epoch in range(epochs):
        if epoch == epochs // 3:
            then()
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return (time.perf_counter() - start) / epochs


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    model.eval()
    return float((model(data[0]).argmax(1) == data[1]).double().mean())


@torch.no_grad()
def milliseconds(model: nn.Module, x: Tensor, calls: int = 20) -> float:
    model.eval()
    best = float("inf")
    for _ in range(calls):
        start = time.perf_counter()
        model(x)
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def run(epochs: int, seed: int) -> dict[str, Any]:
    training, test = digits(seed)
    torch.manual_seed(seed)
    dense = network()
    sparse = copy.deepcopy(dense)
    steps = epochs * (len(training[0]) // BATCH)

    dense_seconds = train(dense, torch.optim.AdamW(dense.parameters(), LR), training, epochs, seed)
    layers = channels_of(sparse)
    grouped = {id(t) for layer in layers for t in layer}
    others = [p for p in sparse.parameters() if id(p) not in grouped]
    penalty = GroupL2(LAM, CHANNELS)
    optimizer = ProxAdamW(
        [*({"params": layer, "penalty": penalty} for layer in layers), {"params": others}],
        LR,
        schedule=CubicRamp(0, steps // 4),
        heal_after=epochs // 3 * (steps // epochs),
    )

    def smallest_to_zero() -> None:
        for layer in layers:
            TopKGroups(CHANNELS, KEPT).prox_([p.detach() for p in layer])

    sparse_seconds = train(sparse, optimizer, training, epochs, seed, smallest_to_zero)

    filters = [m.weight for m in sparse if isinstance(m, nn.Conv2d)]
    report = sparsity_report(filters)
    small, shrunk = shrink(sparse, test[0][:1])
    with torch.no_grad():
        difference = float((small.eval()(test[0]) - sparse.eval()(test[0])).abs().max())
    return {
        "epochs": epochs,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "zero_filters": report.zero_rows / report.rows,
        "filters": [report.rows - report.zero_rows, report.rows],
        "accuracy": {"dense": accuracy(dense, test), "sparse": accuracy(sparse, test),
                     "shrunk": accuracy(small, test)},
        "seconds_per_epoch": {"dense": dense_seconds, "sparse": sparse_seconds},
        "milliseconds": {"dense": milliseconds(dense, test[0]),
                         "shrunk": milliseconds(small, test[0])},
        "parameters": list(shrunk.parameters),
        "difference": difference,
        "report": str(shrunk),
    }  # fmt: skip


def missed(results: dict[str, Any]) -> list[str]:
    accuracies, times = results["accuracy"], results["milliseconds"]
    wanted = {
        "at least 70 % of the filters are zero": results["zero_filters"] >= 0.7,
        "the accuracy is within one point of the dense network's": accuracies["sparse"]
        >= accuracies["dense"] - 0.01,
        "the shrunk network answers the same": results["difference"] < 1e-4
        and accuracies["shrunk"] == accuracies["sparse"],
        "the shrunk network is faster": times["shrunk"] < times["dense"],
    }
    return [text for text, holds in wanted.items() if not holds]


def table(results: dict[str, Any]) -> str:
    accuracies, times = results["accuracy"], results["milliseconds"]
    seconds = results["seconds_per_epoch"]
    left, filters = results["filters"]
    before, after = results["parameters"]
    return "\n".join([
        f"handwritten digits, {results['epochs']} epochs, seed {results['seed']}, "
        f"{results['threads']} threads, torch {results['torch']}",
        f"{'':<22}{'accuracy, %':>12}{'filters':>10}{'parameters':>12}{'s / epoch':>11}{'ms':>8}",
        f"{'AdamW':<22}{100 * accuracies['dense']:>12.2f}{filters:>10}{before:>12}"
        f"{seconds['dense']:>11.3f}{times['dense']:>8.2f}",
        f"{'ProxAdamW, shrunk':<22}{100 * accuracies['shrunk']:>12.2f}{left:>10}{after:>12}"
        f"{seconds['sparse']:>11.3f}{times['shrunk']:>8.2f}",
        f"{results['zero_filters']:.1%} of the filters are zero; outputs differ by at most "
        f"{results['difference']:.1e}.",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is small
    results = run(options.epochs, options.seed)
    failures = missed(results)
    print(table(results))
    print(results["report"])
    for text in failures:
        print(f"MISSED: {text}")
    if options.json is not None:
        options.json.write_text(json.dumps(results | {"missed": failures}, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
