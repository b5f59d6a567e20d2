"""Fine-tunes a transformer with all of its weights, and with one entry in a hundred of them.

    python bench/train_masked.py [--quick] [--density 0.01] [--json results.json]

A character model first reads the documentation that ships with Python (`pydoc_data.topics`), and is
fine-tuned on the source of some of its modules: once every weight, with AdamW, and once the entries
of its linear layers whose gradients had the largest mean squares (as RoSA selects them), with AdamW
on the vector of these. Both start from the same model and see the same batches.

Prints the loss on text that neither has seen, bytes of gradients and optimizer states, the most
that a step allocates at a time (torch's profiler, CPU), and the time of a step. Exits with 1 if the
masked run gains less than 40 % of what the dense one does, or has more states than entries.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import json
import pydoc_data.topics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from regkern.nn.sparse.masked import MaskedLinear
from regkern.sparse import SparsePattern
from regkern.sparse.deltas import SparseDelta
from regkern.sparse.selection import GradientSquares
from torch import Tensor, nn
from torch.nn import functional as F

CHARACTERS = 128
MODULES = ("argparse", "ast", "datetime", "decimal", "difflib", "doctest", "inspect", "optparse")
MODULES += ("pathlib", "pickle", "statistics", "subprocess", "tarfile", "threading", "typing")


def encoded(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8).long()


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Documentation, source, and source that is not trained on."""
    topics = "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    sources = [inspect.getsource(importlib.import_module(name)) for name in MODULES]
    return encoded(topics), encoded("\n".join(sources[:-2])), encoded("\n".join(sources[-2:]))


# ---- the network ----


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Network(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, length: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        """The mean loss of predicting each character from those before it."""
        given, wanted = text[:, :-1], text[:, 1:]
        x = self.characters(given) + self.places.weight[: given.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), wanted.flatten())


# ---- training ----


class Run(NamedTuple):
    model: nn.Module
    optimizer: torch.optim.Optimizer
    trained: list[nn.Parameter]


def batches(text: Tensor, size: int, length: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - length - 1, (size,), generator=generator)
        yield torch.stack([text[s : s + length + 1] for s in starts.tolist()])


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    optimizer.zero_grad()
    model(batch).backward()
    optimizer.step()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Iterator[Tensor], steps: int
) -> None:
    for _ in range(steps):
        stepped(model, optimizer, next(data))


def step_seconds(runs: dict[str, Run], batch: Tensor, rounds: int) -> dict[str, float]:
    """The quickest step of each, one after the other in every round."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            stepped(run.model, run.optimizer, batch)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def evaluated(model: nn.Module, text: Tensor, size: int, length: int, steps: int) -> float:
    data = batches(text, size, length, seed=99)
    with torch.no_grad():
        return sum(float(model(next(data))) for _ in range(steps)) / steps


def select(
    model: Network, data: Iterator[Tensor], density: float, rounds: int
) -> dict[str, Tensor]:
    """Masks of the weights of the linear layers, by their mean squared gradients."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    squares = GradientSquares([m.weight for m in layers.values()])
    for _ in range(rounds):
        model.zero_grad()
        model(next(data)).backward()
        squares.add()
    model.zero_grad()
    return dict(zip(layers, squares.mask(fraction=density, per_tensor=False), strict=True))


def masked(model: Network, masks: dict[str, Tensor]) -> Network:
    """The model with the masked entries trained, and nothing else."""
    model.requires_grad_(False)
    masks = {name: mask for name, mask in masks.items() if bool(mask.any())}
    for name, mask in masks.items():
        place, _, last = name.rpartition(".")
        parent = model.get_submodule(place)
        layer = MaskedLinear(getattr(parent, last), SparsePattern.from_mask(mask), form="delta")
        setattr(parent, last, layer)
    return model


# ---- memory ----


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Bytes of gradients, and of the optimizer's states."""
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    states = sum(
        t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim() > 0
    )
    return gradients, states


def peak(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> int:
    """The most bytes that a step has allocated at a time, gradients included."""
    optimizer.zero_grad()
    with torch.profiler.profile(profile_memory=True) as profile:
        stepped(model, optimizer, batch)
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    most = now = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        now += change
        most = max(most, now)
    return most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small network and few steps")
    parser.add_argument("--density", type=float, default=0.01, help="share that is trained")
    parser.add_argument("--json", type=Path, help="where results are written")
    args = parser.parse_args()
    width, depth, size, length = (128, 2, 8, 64) if args.quick else (256, 4, 8, 128)
    first, second = (120, 80) if args.quick else (1000, 400)
    documentation, source, held_out = texts()

    torch.manual_seed(0)
    start = Network(width, 4, depth, length)
    optimizer = torch.optim.AdamW(start.parameters(), lr=2e-3)
    train(start, optimizer, batches(documentation, size, length, 1), first)
    before = evaluated(start, held_out, size, length, 20)
    masks = select(start, batches(source, size, length, 2), args.density, 8)
    count = sum(p.numel() for p in start.parameters())
    print(f"{count} weights; loss {before:.3f} of source before it was fine-tuned on")

    runs, results = {}, {}
    for kind, rate in (("dense", 1e-3), ("masked", 5e-3)):
        model = copy.deepcopy(start)
        if kind == "masked":
            model = masked(model, masks)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        train(model, optimizer, batches(source, size, length, 3), second)
        gradients, states = held(model, optimizer)
        runs[kind] = Run(model, optimizer, trained)
        results[kind] = {
            "loss": evaluated(model, held_out, size, length, 20),
            "trained": sum(p.numel() for p in trained),
            "gradient_bytes": gradients,
            "state_bytes": states,
        }
    delta = SparseDelta.extract(
        {f"{n}.weight": runs["masked"].model.get_submodule(n).weight for n in masks},
        {f"{n}.weight": start.get_submodule(n).weight for n in masks},
    )
    batch = next(batches(source, size, length, 4))
    seconds = step_seconds(runs, batch, 10)
    for kind, run in runs.items():
        row = results[kind]
        row["step_seconds"] = seconds[kind]
        row["peak_bytes"] = peak(run.model, run.optimizer, batch)
        print(
            f"{kind:>6}: loss {row['loss']:.3f}; {row['trained']} trained, gradients "
            f"{row['gradient_bytes'] / 2**20:.3f} and states {row['state_bytes'] / 2**20:.3f} MiB; "
            f"a step allocates {row['peak_bytes'] / 2**20:.1f} MiB and takes "
            f"{row['step_seconds'] * 1e3:.1f} ms"
        )
    gain = (before - results["masked"]["loss"]) / (before - results["dense"]["loss"])
    print(f"the masked run has {gain:.0%} of the dense run's gain, in {delta}")
    if args.json:
        report: dict[str, Any] = {
            "before": before,
            "density": args.density,
            "gain": gain,
            **results,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    few = results["masked"]["state_bytes"] == 8 * results["masked"]["trained"]
    return 0 if gain >= 0.4 and few else 1


if __name__ == "__main__":
    sys.exit(main())
