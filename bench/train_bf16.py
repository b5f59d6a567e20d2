"""Trains one network in float32, in bfloat16, and in bfloat16 with stochastically rounded updates.

    python bench/train_bf16.py [--epochs 20] [--lr 1e-4] [--seeds 0 1 2] [--json results.json]

A multilayer perceptron learns scikit-learn's handwritten digits with AdamW at a learning rate whose
updates are mostly below half an ulp of a bfloat16 weight, 2⁻⁹ of it: rounded to nearest they are
lost, and training stalls; rounded stochastically they count on average, and training goes on as in
float32, with half the memory of the weights. The three runs of a seed have the same split, initial
weights and order of batches.

Exits with 1 unless the stochastic runs reach float32's mean test accuracy to within 2 % and the
loss of the plain bfloat16 runs ends higher than theirs.
The same seeds give the same results on the same machine and number of threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import regkern.optim
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, WIDTH, BATCH, TEST_SHARE = 10, 128, 32, 4

Make = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]

#: Name of the run: dtype of the weights, optimizer.
RUNS: dict[str, tuple[torch.dtype, Make]] = {
    "float32": (torch.float32, lambda p, lr: torch.optim.AdamW(p, lr)),
    "bfloat16": (torch.bfloat16, lambda p, lr: torch.optim.AdamW(p, lr)),
    "stochastic": (torch.bfloat16, lambda p, lr: regkern.optim.AdamW(p, lr)),
    "stochastic, bfloat16 states": (
        torch.bfloat16,
        lambda p, lr: regkern.optim.AdamW(p, lr, state_dtype=torch.bfloat16),
    ),
}


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16.0 - 0.5
    return images, torch.tensor(data.target)


class Linear(nn.Linear):
    """Weights of any dtype, arithmetic in float32: what is compared is how weights are updated."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float(), self.bias.float())


def network() -> nn.Module:
    return nn.Sequential(
        Linear(64, WIDTH), nn.ReLU(), Linear(WIDTH, WIDTH), nn.ReLU(), Linear(WIDTH, CLASSES)
    )


def train(
    name: str, data: tuple[Tensor, Tensor], seed: int, epochs: int, lr: float
) -> dict[str, float]:
    dtype, make = RUNS[name]
    images, labels = data
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, rest = order.tensor_split([len(order) // TEST_SHARE])
    batches = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = network().to(dtype)
    optimizer = make(list(model.parameters()), lr)
    start = time.perf_counter()
    for _ in range(epochs):
        shuffled = rest[torch.randperm(len(rest), generator=batches)]
        for chosen in shuffled.split(BATCH):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        final = F.cross_entropy(model(images[rest]), labels[rest])
        right = model(images[test]).argmax(1) == labels[test]
    return {
        "loss": float(final),
        "accuracy": float(right.double().mean()),
        "seconds": seconds / epochs,
    }


def compare(seeds: list[int], epochs: int, lr: float) -> dict[str, Any]:
    data = digits()
    runs = {name: [train(name, data, seed, epochs, lr) for seed in seeds] for name in RUNS}
    return {
        "seeds": seeds,
        "epochs": epochs,
        "lr": lr,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "runs": runs,
    }


def mean(results: dict[str, Any], name: str, what: str) -> float:
    return statistics.mean(run[what] for run in results["runs"][name])


def spread(results: dict[str, Any], name: str, what: str) -> float:
    values = [run[what] for run in results["runs"][name]]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def verdict(results: dict[str, Any]) -> tuple[bool, str]:
    lag = mean(results, "float32", "accuracy") - mean(results, "stochastic", "accuracy")
    stall = mean(results, "bfloat16", "loss") / mean(results, "stochastic", "loss")
    return lag < 0.02 and stall > 1.0, (
        f"Stochastic rounding is {100 * lag:+.2f} % behind float32 in accuracy; rounding to "
        f"nearest ends with {stall:.1f} times its loss."
    )


def table(results: dict[str, Any]) -> str:
    lines = [
        f"handwritten digits, AdamW, lr {results['lr']:g}, {results['epochs']} epochs, seeds "
        f"{', '.join(map(str, results['seeds']))}, {results['threads']} threads, "
        f"torch {results['torch']}",
        f"{'':<28}{'training loss':>18}{'test accuracy, %':>20}{'s / epoch':>12}",
    ]
    for name in results["runs"]:
        loss, accuracy, seconds = (
            mean(results, name, what) for what in ("loss", "accuracy", "seconds")
        )
        lines.append(
            f"{name:<28}{loss:>10.4f} ± {spread(results, name, 'loss'):.4f}"
            f"{100 * accuracy:>12.2f} ± {100 * spread(results, name, 'accuracy'):.2f}"
            f"{seconds:>12.3f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    options = parser.parse_args()
    results = compare(options.seeds, options.epochs, options.lr)
    fine, text = verdict(results)
    print(table(results))
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(results | {"fine": fine}, indent=1) + "\n")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
