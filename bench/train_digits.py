"""Trains the same network with the usual layers and with regkern's, and compares accuracy and time.

    python bench/train_digits.py [--epochs 30] [--seeds 0 1 2] [--json results.json]

A small residual network with DropBlock and CutMix learns scikit-learn's handwritten digits. The
reference layers are torchvision's, or where it is not installed the same thing in plain torch. The
other run differs in two lines: `regkern.swap(model)`, and `regkern.nn.CutMix`. Each seed gives both
the same split, initial weights and order of batches; the masks and boxes are drawn from the same
laws, but not the same.

Exits with 1 if the mean test accuracies differ by two standard errors or more *and* by 1 % or more.
The same seeds give the same accuracies on the same machine and number of threads.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import regkern
import torch
import torch.nn.functional as F
from regkern.bench import rivals
from regkern.nn import CutMix, DropBlock2d
from regkern.swap import register_swap
from torch import Tensor, nn

SIZE, CLASSES, BATCH, TEST_SHARE = 16, 10, 64, 4
P, BLOCK = 0.1, 3

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


# ---- the reference layers, where torchvision is not installed ----


class EagerDropBlock2d(nn.Module):
    """DropBlock in seven passes, as torchvision has it."""

    def __init__(self, p: float, block_size: int) -> None:
        super().__init__()
        self.p = p
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        n, c, h, w = x.shape
        k = min(self.block_size, h, w)
        gamma = self.p * h * w / (k**2 * (h - k + 1) * (w - k + 1))
        seeds = x.new_empty((n, c, h - k + 1, w - k + 1)).bernoulli_(gamma)
        seeds = F.pad(seeds, [k // 2] * 4)
        mask = 1 - F.max_pool2d(seeds, k, stride=1, padding=k // 2)
        return x * mask * (mask.numel() / (1e-6 + mask.sum()))


@register_swap(f"{__name__}.EagerDropBlock2d")
def _drop_block(old: EagerDropBlock2d) -> nn.Module:
    return DropBlock2d(old.p, old.block_size, gamma="paper")


class EagerCutMix(nn.Module):
    """CutMix with one box per batch, as torchvision has it."""

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        side = 0.5 * math.sqrt(1.0 - float(torch.rand(())))
        half_h, half_w = int(side * height), int(side * width)
        cy, cx = int(torch.randint(height, ())), int(torch.randint(width, ()))
        y0, y1 = max(cy - half_h, 0), min(cy + half_h, height)
        x0, x1 = max(cx - half_w, 0), min(cx + half_w, width)
        out = x.clone()
        out[..., y0:y1, x0:x1] = x.roll(1, 0)[..., y0:y1, x0:x1]
        lam = 1.0 - (y1 - y0) * (x1 - x0) / (height * width)
        soft = F.one_hot(labels, CLASSES).float()
        return out, lam * soft + (1.0 - lam) * soft.roll(1, 0)


def reference_layers() -> tuple[str, type[nn.Module], Augment]:
    """Name, DropBlock layer and CutMix to compare with."""
    try:
        ops, v2 = map(rivals.torchvision, ("torchvision.ops", "torchvision.transforms.v2"))
    except (ImportError, RuntimeError):
        return "plain torch", EagerDropBlock2d, EagerCutMix()
    return "torchvision", ops.DropBlock2d, v2.CutMix(num_classes=CLASSES)


# ---- the network ----


class Block(nn.Module):
    """Two convolutions around a shortcut, with DropBlock after each convolution and the sum."""

    def __init__(self, channels: int, out: int, stride: int, drop: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.drop1 = drop()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.drop2 = drop()
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop1(torch.relu(self.norm1(self.conv1(x))))
        return self.drop2(torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x)))


def network(drop_block: type[nn.Module]) -> nn.Module:
    def drop() -> nn.Module:
        return drop_block(P, BLOCK)

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1, drop),
        Block(16, 32, 2, drop),
        Block(32, 64, 2, drop),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


# ---- training ----


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0 - 0.5
    return F.interpolate(images, size=(SIZE, SIZE), mode="bilinear"), torch.tensor(data.target)


class Training:
    """One training run, epoch by epoch, with random numbers of its own."""

    def __init__(
        self,
        model: nn.Module,
        augment: Augment,
        data: tuple[Tensor, Tensor],
        seed: int,
        epochs: int,
    ) -> None:
        self.model, self.augment = model, augment
        self.images, self.labels = data
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))
        self.test, self.rest = order.tensor_split([len(order) // TEST_SHARE])
        self.batches = torch.Generator().manual_seed(seed)
        self.steps = len(self.rest) // BATCH
        self.optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, 0.1, total_steps=epochs * self.steps
        )
        self.random = torch.Generator().manual_seed(seed).get_state()
        self.seconds: list[float] = []

    def epoch(self) -> None:
        torch.set_rng_state(self.random)
        start = time.perf_counter()
        shuffled = self.rest[torch.randperm(len(self.rest), generator=self.batches)]
        for chosen in shuffled[: self.steps * BATCH].split(BATCH):
            x, target = self.augment(self.images[chosen], self.labels[chosen])
            loss = F.cross_entropy(self.model(x), target)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        self.seconds.append(time.perf_counter() - start)
        self.random = torch.get_rng_state()

    def accuracy(self) -> float:
        self.model.eval()
        with torch.no_grad():
            answer = self.model(self.images[self.test]).argmax(1)
        return float((answer == self.labels[self.test]).double().mean())


def compare(seeds: list[int], epochs: int) -> dict[str, Any]:
    data = digits()
    name, drop_block, cutmix = reference_layers()
    # One box per batch, as the reference has it.
    ours = CutMix(num_classes=CLASSES, per="batch")
    accuracy: dict[str, list[float]] = {name: [], "regkern": []}
    seconds: dict[str, list[float]] = {name: [], "regkern": []}
    ratios = []
    for seed in seeds:
        torch.manual_seed(seed)
        theirs = network(drop_block)
        model = copy.deepcopy(theirs)
        report = regkern.swap(model)
        if len(report.swapped) != 6 or report.left:
            raise RuntimeError(str(report))
        runs = {
            name: Training(theirs, cutmix, data, seed, epochs),
            "regkern": Training(model, ours, data, seed, epochs),
        }
        # In turns, so that what else the machine does hits both alike.
        for _ in range(epochs):
            for run in runs.values():
                run.epoch()
        for key, run in runs.items():
            accuracy[key].append(run.accuracy())
            seconds[key].append(statistics.median(run.seconds))
        pairs = zip(runs["regkern"].seconds, runs[name].seconds, strict=True)
        ratios += [mine / reference for mine, reference in pairs]
    return {
        "reference": name,
        "seeds": seeds,
        "epochs": epochs,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "test_images": len(data[0]) // TEST_SHARE,
        "accuracy": accuracy,
        "seconds_per_epoch": seconds,
        "time_ratio": statistics.median(ratios),
    }


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def agreement(results: dict[str, Any]) -> tuple[bool, str]:
    theirs, ours = results["accuracy"][results["reference"]], results["accuracy"]["regkern"]
    difference = statistics.mean(ours) - statistics.mean(theirs)
    # A mean over few runs may by chance spread less than the finite test set alone does.
    per_run = [
        max(spread(values) ** 2, mean * (1.0 - mean) / results["test_images"])
        for values in (theirs, ours)
        for mean in (statistics.mean(values),)
    ]
    error = math.sqrt(sum(per_run) / len(ours))
    agree = abs(difference) < 2.0 * error or abs(difference) < 0.01
    word = "agree" if agree else "DISAGREE"
    return agree, (
        f"The accuracies {word}: they differ by {100 * difference:+.2f} %, "
        f"with a standard error of {100 * error:.2f} %."
    )


def table(results: dict[str, Any]) -> str:
    lines = [
        f"handwritten digits, {results['epochs']} epochs, seeds "
        f"{', '.join(map(str, results['seeds']))}, {results['threads']} threads, "
        f"torch {results['torch']}",
        f"{'':<14}{'s / epoch':>18}{'test accuracy, %':>20}",
    ]
    for name, accuracies in results["accuracy"].items():
        seconds = results["seconds_per_epoch"][name]
        lines.append(
            f"{name:<14}{statistics.mean(seconds):>10.3f} ± {spread(seconds):.3f}"
            f"{100 * statistics.mean(accuracies):>13.2f} ± {100 * spread(accuracies):.2f}"
        )
    lines.append(
        f"An epoch takes {results['time_ratio']:.2f} of the reference's time (median of pairs)."
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    options = parser.parse_args()
    results = compare(options.seeds, options.epochs)
    agree, verdict = agreement(results)
    print(table(results))
    print(verdict)
    if options.json is not None:
        options.json.write_text(json.dumps(results | {"agree": agree}, indent=1) + "\n")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
