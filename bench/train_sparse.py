"""Trains a residual network with sparse weights from scratch: accuracy, time and memory.

    python bench/train_sparse.py [--width 64] [--epochs 12] [--seeds 0] [--json results.json]
    python bench/train_sparse.py --quick

A network of the shape of ResNet-18 learns scikit-learn's handwritten digits, upscaled to 32 x 32:
dense; with masks on dense weights, as is usual; and with regkern's sparse layers. The sparse runs
have 10 % and 5 % of the weights of every layer but the first and the last, and RigL changes their
patterns. The masked runs do the same with the dense gradients, by sorts.

Exits with 1 if the mean test accuracy of a sparse run is below that of the dense one by two
standard errors or more *and* by 1 % or more; without ``--quick`` also if an epoch is not 1.5 times
(10 %) and 2.5 times (5 %) as fast as a dense one, or an update takes longer than a step of the
dense network. ``--quick`` is a small network of a few epochs, for which time says nothing.
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

import torch
import torch.nn.functional as F
from regkern.bench.memory import peak_bytes
from regkern.optim.sparse_schedules import CosineDecay
from regkern.optim.sparse_training import SparseTraining
from regkern.reference.sparse import updates as reference
from regkern.sparse.densities import layer_densities
from regkern.swap.sparse import FORMS
from torch import Tensor, nn

CLASSES, BATCH, TEST_SHARE = 10, 64, 4
DENSITIES = {0.1: 1.5, 0.05: 2.5}  # and how many times as fast an epoch is to be
LR, ALPHA = 0.1, 0.3


# ---- the network ----


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def network(width: int) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(1, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(4):
        out = width * 2**stage
        layers += [Block(channels, out, 1 if stage == 0 else 2), Block(out, out, 1)]
        channels = out
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)
    )


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that become sparse: all but the first and the last."""
    known = {name: m for name, m in model.named_modules() if type(m) in FORMS}
    first, last = "0", next(reversed(dict(model.named_children())))
    return {name: m for name, m in known.items() if name not in (first, last)}


def patterns_of(model: nn.Module, density: float, distribution: str) -> dict[str, float]:
    shapes = {name: tuple(m.weight.shape) for name, m in prunable(model).items()}  # type: ignore[arg-type]
    return layer_densities(shapes, density, distribution)


# ---- runs ----


class Run:
    """One training run, epoch by epoch."""

    def __init__(self, model: nn.Module, data: tuple[Tensor, Tensor], seed: int, epochs: int):
        self.model = model
        self.images, self.labels = data
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))
        self.test, self.rest = order.tensor_split([len(order) // TEST_SHARE])
        self.batches = torch.Generator().manual_seed(seed)
        self.steps = len(self.rest) // BATCH
        self.total = epochs * self.steps
        self.optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, LR, total_steps=self.total
        )
        self.seconds: list[float] = []
        self.update_seconds: list[float] = []

    def after_step(self) -> bool:
        """What follows a step of the optimizer, and whether it was an update."""
        return False

    def one(self, chosen: Tensor) -> None:
        loss = F.cross_entropy(self.model(self.images[chosen]), self.labels[chosen])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        start = time.perf_counter()
        if self.after_step():
            self.update_seconds.append(time.perf_counter() - start)
        self.schedule.step()

    def epoch(self) -> None:
        self.model.train()
        start = time.perf_counter()
        shuffled = self.rest[torch.randperm(len(self.rest), generator=self.batches)]
        for chosen in shuffled[: self.steps * BATCH].split(BATCH):
            self.one(chosen)
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def accuracy(self) -> float:
        self.model.eval()
        answers = [self.model(self.images[part]).argmax(1) for part in self.test.split(BATCH)]
        return float((torch.cat(answers) == self.labels[self.test]).double().mean())

    def peak(self) -> int:
        """Bytes that a first step of a copy adds to parameters and patterns."""
        twin = copy.deepcopy(self.model)
        optimizer = torch.optim.SGD(twin.parameters(), LR, momentum=0.9)
        chosen = self.rest[:BATCH]

        def step() -> None:
            F.cross_entropy(twin(self.images[chosen]), self.labels[chosen]).backward()
            optimizer.step()

        return peak_bytes(step)

    def held(self) -> int:
        """Bytes of parameters and buffers, patterns among them."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors)


def schedule_of(run: Run, every: int) -> tuple[int, Callable[[int], float]]:
    """When RigL ends, three quarters of the way, and how much it moves."""
    end = max(every + 1, 3 * run.total // 4)
    return end, CosineDecay(end, ALPHA)


class Sparse(Run):
    """With regkern's layers, at random places of what the dense ones begin with."""

    def __init__(
        self,
        model: nn.Module,
        data: tuple[Tensor, Tensor],
        seed: int,
        epochs: int,
        masks: dict[str, Tensor],
        every: int,
    ) -> None:
        for name, layer in prunable(model).items():
            parent, _, child = name.rpartition(".")
            with torch.no_grad():
                layer.weight.mul_(masks[name])  # type: ignore[operator]
            # What is not 0 is kept.
            sparse = FORMS[type(layer)].there(layer, None)
            setattr(model.get_submodule(parent), child, sparse)
        super().__init__(model, data, seed, epochs)
        end, fraction = schedule_of(self, every)
        self.training = SparseTraining(
            model, self.optimizer, "rigl", end=end, every=every, fraction=fraction
        )

    def after_step(self) -> bool:
        return self.training.step()


class Masked(Run):
    """With masks on dense weights, and RigL by the dense gradients."""

    def __init__(
        self,
        model: nn.Module,
        data: tuple[Tensor, Tensor],
        seed: int,
        epochs: int,
        masks: dict[str, Tensor],
        every: int,
    ) -> None:
        super().__init__(model, data, seed, epochs)
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.layers = prunable(model)
        self.every, self.count = every, 0
        self.end, self.fraction = schedule_of(self, every)
        self.gradients: dict[str, Tensor] = {}
        self.optimizer.register_step_pre_hook(self.mask_gradients)
        self.mask_weights()

    @torch.no_grad()
    def mask_gradients(self, *_: Any) -> None:
        for name, layer in self.layers.items():
            weight: Any = layer.weight
            self.gradients[name] = weight.grad
            weight.grad = weight.grad * self.masks[name]

    @torch.no_grad()
    def mask_weights(self) -> None:
        for name, layer in self.layers.items():
            weight: Any = layer.weight
            weight.mul_(self.masks[name])

    @torch.no_grad()
    def after_step(self) -> bool:
        self.count += 1
        self.mask_weights()
        if self.count % self.every or self.count >= self.end:
            return False
        for name, layer in self.layers.items():
            weight: Any = layer.weight
            mask = self.masks[name]
            nnz = int(mask.sum())
            moving = round(self.fraction(self.count) * nnz)
            kept = reference.prune(weight, mask, nnz - moving)
            new = reference.grow(self.gradients[name], kept, moving)
            weight.mul_(new & mask)
            self.optimizer.state[weight]["momentum_buffer"].mul_(new & mask)
            self.masks[name] = new
        return True


def digits(size: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0 - 0.5
    return F.interpolate(images, size=(size, size), mode="bilinear"), torch.tensor(data.target)


def random_masks(
    model: nn.Module, density: float, distribution: str, seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, share in patterns_of(model, density, distribution).items():
        shape = model.get_submodule(name).weight.shape  # type: ignore[union-attr]
        masks[name] = torch.rand(shape, generator=generator) < share  # type: ignore[arg-type]
    return masks


def compare(
    width: int,
    size: int,
    epochs: int,
    seeds: list[int],
    densities: list[float],
    distribution: str,
    every: int,
) -> dict[str, Any]:
    data = digits(size)
    names = ["dense"]
    names += [f"{kind} {d:.0%}" for d in densities for kind in ("masked", "sparse")]
    results: dict[str, Any] = {
        name: {
            "accuracy": [],
            "seconds": [],
            "update_seconds": [],
            "peak_bytes": 0,
            "held_bytes": 0,
        }
        for name in names
    }
    ratios: dict[str, list[float]] = {name: [] for name in names}
    steps = 1
    for seed in seeds:
        torch.manual_seed(seed)
        first = network(width)
        runs: dict[str, Run] = {"dense": Run(copy.deepcopy(first), data, seed, epochs)}
        for density in densities:
            masks = random_masks(first, density, distribution, seed)
            for kind, make in (("masked", Masked), ("sparse", Sparse)):
                runs[f"{kind} {density:.0%}"] = make(
                    copy.deepcopy(first), data, seed, epochs, masks, every
                )
        steps = runs["dense"].steps
        for name, run in runs.items():
            results[name]["peak_bytes"], results[name]["held_bytes"] = run.peak(), run.held()
        # In turns, so that what else the machine does hits all alike.
        for _ in range(epochs):
            for run in runs.values():
                run.epoch()
        for name, run in runs.items():
            results[name]["accuracy"].append(run.accuracy())
            results[name]["seconds"].append(statistics.median(run.seconds))
            results[name]["update_seconds"] += run.update_seconds
            pairs = zip(runs["dense"].seconds, run.seconds, strict=True)
            ratios[name] += [dense / mine for dense, mine in pairs]
    for name in names:
        results[name]["times_faster"] = statistics.median(ratios[name])
        updates = results[name]["update_seconds"]
        results[name]["update_seconds"] = statistics.median(updates) if updates else 0.0
    return {
        "width": width,
        "size": size,
        "epochs": epochs,
        "seeds": seeds,
        "distribution": distribution,
        "steps_per_epoch": steps,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "test_images": len(data[0]) // TEST_SHARE,
        "runs": results,
    }


def table(results: dict[str, Any]) -> str:
    lines = [
        f"handwritten digits of {results['size']} x {results['size']}, width {results['width']}, "
        f"{results['epochs']} epochs, seeds {', '.join(map(str, results['seeds']))}, "
        f"{results['threads']} threads, torch {results['torch']}",
        f"{'':<14}{'accuracy, %':>12}{'s / epoch':>12}{'faster':>9}{'ms / step':>12}"
        f"{'ms / update':>13}{'MB held':>10}{'MB a step':>11}",
    ]
    for name, run in results["runs"].items():
        seconds = statistics.mean(run["seconds"])
        lines.append(
            f"{name:<14}{100 * statistics.mean(run['accuracy']):>12.2f}{seconds:>12.3f}"
            f"{run['times_faster']:>8.2f}x{1e3 * seconds / results['steps_per_epoch']:>12.1f}"
            f"{1e3 * run['update_seconds']:>13.1f}{run['held_bytes'] / 1e6:>10.2f}"
            f"{run['peak_bytes'] / 1e6:>11.2f}"
        )
    return "\n".join(lines)


def complaints(results: dict[str, Any], densities: list[float], timed: bool) -> list[str]:
    found = []
    dense = results["runs"]["dense"]
    step = statistics.mean(dense["seconds"]) / results["steps_per_epoch"]
    for density in densities:
        name = f"sparse {density:.0%}"
        run = results["runs"][name]
        difference = statistics.mean(run["accuracy"]) - statistics.mean(dense["accuracy"])
        # Runs of few seeds may by chance differ less than the finite test set alone lets them.
        variance = [
            max(
                statistics.variance(values) if len(values) > 1 else 0.0,
                mean * (1.0 - mean) / results["test_images"],
            )
            for values in (run["accuracy"], dense["accuracy"])
            for mean in (statistics.mean(values),)
        ]
        error = math.sqrt(sum(variance) / len(run["accuracy"]))
        if difference <= -0.01 and difference <= -2.0 * error:
            found.append(f"{name} is {-100 * difference:.2f} % less accurate than dense")
        if timed and run["times_faster"] < DENSITIES.get(density, 0.0):
            found.append(
                f"{name}: an epoch is {run['times_faster']:.2f} times as fast as dense, "
                f"not {DENSITIES[density]}"
            )
        if timed and run["update_seconds"] > step:
            found.append(f"{name}: an update takes longer than a dense step")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, help="channels of the first stage; 64 is ResNet-18")
    parser.add_argument("--size", type=int, help="height and width of the images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--densities", type=float, nargs="+")
    parser.add_argument("--distribution", default="uniform")
    parser.add_argument("--every", type=int, default=20, help="steps between updates")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    options = parser.parse_args()
    width = options.width or (12 if options.quick else 64)
    size = options.size or (16 if options.quick else 32)
    epochs = options.epochs or (6 if options.quick else 12)
    densities = options.densities or ([0.2] if options.quick else list(DENSITIES))
    results = compare(
        width, size, epochs, options.seeds, densities, options.distribution, options.every
    )
    print(table(results))
    found = complaints(results, densities, timed=not options.quick)
    print("\n".join(found) if found else "All as it should be.")
    if options.json is not None:
        options.json.write_text(json.dumps(results | {"complaints": found}, indent=1) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
