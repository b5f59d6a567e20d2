"""Patterns that change in several processes: the same in all, as in one with the whole batch."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from regkern.nn.sparse.conv import SparseConv1d, SparseConv2d
from regkern.nn.sparse.linear import SparseLinear
from regkern.optim import sparse_training
from regkern.optim.sparse_processes import Processes, fingerprint
from regkern.optim.sparse_training import SparseTraining
from regkern.reference.sparse import updates as reference
from regkern.sparse.selection import random_pattern
from torch import Tensor, nn


class Board:
    """What as many threads as processes hand to each other."""

    def __init__(self, size: int) -> None:
        self.size, self.slots = size, [torch.empty(0)] * size
        self.barrier = threading.Barrier(size, timeout=120)

    def gather(self, rank: int, t: Tensor) -> list[Tensor]:
        self.slots[rank] = t
        self.barrier.wait()
        parts = [part.clone() for part in self.slots]
        self.barrier.wait()
        return parts


class Threads(Processes):
    """A thread that takes the part of a process."""

    mine = threading.local()

    def __init__(self, op: str, group: Any = None) -> None:
        self._op, self.size = op, self.mine.board.size

    def gather(self, t: Tensor) -> list[Tensor]:
        parts: list[Tensor] = self.mine.board.gather(self.mine.rank, t)
        return parts

    def sum(self, t: Tensor) -> Tensor:
        return torch.stack(self.gather(t)).sum(0)

    def first(self, t: Tensor) -> Tensor:
        return self.gather(t)[0]


def _together(size: int, work: Callable[[int], Any]) -> list[Any]:
    """Results or errors of the ranks."""
    board, results = Board(size), [None] * size

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        Threads.mine.board, Threads.mine.rank = board, rank
        try:
            results[rank] = work(rank)
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sparse_training, "Processes", Threads)
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def _network(salt: int = 0) -> nn.Sequential:
    torch.manual_seed(salt)
    random = torch.Generator().manual_seed(salt)
    options: dict[str, Any] = {"density": 0.3, "generator": random, "dtype": torch.float64}
    return nn.Sequential(
        SparseConv2d(2, 4, 3, 2, 1, padding_mode="circular", activation="relu", **options),
        nn.Flatten(2),
        SparseConv1d(4, 6, 3, padding="same", **options),
        nn.Flatten(1),
        SparseLinear(54, 5, **options),
    )


def _batch(step: int) -> Tensor:
    random = torch.Generator().manual_seed(step)
    return torch.randn(12, 2, 6, 6, generator=random, dtype=torch.float64)


def _masks(model: nn.Module) -> list[Tensor]:
    return [m.pattern.mask() for m in model if hasattr(m, "pattern")]  # type: ignore[attr-defined]


def _train(
    model: nn.Module, rank: int, size: int, average: Callable[[Tensor], Tensor], method: str
) -> list[Tensor]:
    """All masks on the way."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    # Of several generators the first one decides.
    random = torch.Generator().manual_seed(rank)
    training = SparseTraining(model, optimizer, method, end=9, every=2, generator=random)
    masks = []
    for step in range(5):
        optimizer.zero_grad()
        model(_batch(step).chunk(size)[rank]).square().mean().backward()
        for p in model.parameters():
            assert p.grad is not None
            p.grad = average(p.grad)
        optimizer.step()
        training.step()
        masks += _masks(model)
    return masks


def _alone(method: str = "rigl") -> list[Tensor]:
    return _train(_network(), 0, 1, lambda g: g, method)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_as_in_one_process(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def average(g: Tensor) -> Tensor:
        return Threads("").sum(g) / 3

    # Threads share torch's generator, so models are made before.
    models = [_network() for _ in range(3)]
    results = _together(3, lambda rank: _train(models[rank], rank, 3, average, method))
    monkeypatch.setattr(sparse_training, "Processes", Processes)
    alone = _alone(method)
    assert not torch.equal(alone[0], alone[-3])
    for masks in results:
        assert not isinstance(masks, Exception), masks
        for a, b in zip(masks, alone, strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("threads")
def test_candidates() -> None:
    """Of the places that one of the processes would take, those of the largest sums."""
    size = 2
    model = _network()
    dense = [
        m.to_linear() if isinstance(m, SparseLinear) else m.to_conv()
        for m in model
        if hasattr(m, "pattern")
    ]

    def twin(x: Tensor) -> Tensor:
        first, second, third = dense
        y = second(torch.relu(first(x)).flatten(2))
        result: Tensor = third(y.flatten(1))
        return result

    gradients = []
    for x in _batch(0).chunk(size):
        loss = twin(x).square().mean()
        by_weight = torch.autograd.grad(loss, [m.weight for m in dense])
        gradients.append([g.flatten(1) for g in by_weight])

    def work(rank: int) -> list[Tensor]:
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), 0.0)
        training = SparseTraining(
            own,
            optimizer,
            end=9,
            every=1,
            fraction=lambda _: 0.4,
            exchange="candidates",
        )
        own(_batch(0).chunk(size)[rank]).square().mean().backward()
        training.step()
        return _masks(own)

    results = _together(size, work)
    layers = [m for m in model if hasattr(m, "pattern")]
    for i, layer in enumerate(layers):
        mask = layer.pattern.mask()  # type: ignore[operator, union-attr]
        weight = layer.dense_weight().detach().flatten(1)  # type: ignore[operator]
        moving = round(0.4 * int(mask.sum()))
        kept = reference.prune(weight, mask, int(mask.sum()) - moving)
        named = torch.zeros_like(mask)
        for of_rank in gradients:
            named |= reference.grow(of_rank[i], kept, moving) & ~kept
        assert int(named.sum()) > moving
        total = (gradients[0][i] + gradients[1][i]).abs() * named
        expected = reference.grow(total, kept, moving)
        for masks in results:
            assert not isinstance(masks, Exception), masks
            assert torch.equal(masks[i], expected)


@pytest.mark.usefixtures("threads")
def test_errors_are_everybodys() -> None:
    models = [_network(0), _network(1)]

    def other_patterns(rank: int) -> None:
        model = models[rank]
        SparseTraining(model, torch.optim.SGD(model.parameters(), 0.1), end=9)

    for error in _together(2, other_patterns):
        assert isinstance(error, RuntimeError)
        assert "the same patterns and values" in str(error)
        assert "'0', '2', '4'" in str(error)

    def other_values(rank: int) -> None:
        model = copy.deepcopy(models[0])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        training = SparseTraining(model, optimizer, "set", end=9, every=1)
        before = _masks(model)
        with torch.no_grad():
            model[4].values.mul_(torch.arange(model[4].pattern.nnz) % (2 + rank))  # type: ignore[operator, union-attr]
        try:
            training.step()
        finally:
            for a, b in zip(before, _masks(model), strict=True):
                assert torch.equal(a, b)

    for error in _together(2, other_values):
        assert isinstance(error, RuntimeError)
        assert "different patterns of '4'" in str(error)

    def no_backward(rank: int) -> None:
        model = copy.deepcopy(models[0])
        training = SparseTraining(model, torch.optim.SGD(model.parameters(), 0.1), end=9, every=1)
        y = model(_batch(0))
        if rank == 0:
            y.sum().backward()
        training.step()

    for error in _together(2, no_backward):
        assert isinstance(error, RuntimeError)
        assert "a backward through '0'" in str(error)


def test_fingerprints() -> None:
    seen = set()
    for salt in range(20):
        for nnz in (1, 2, 30):
            random = torch.Generator().manual_seed(salt)
            pattern = random_pattern((9, 40), nnz, generator=random)
            seen.add(int(fingerprint(pattern)))
    # Chance may take the same place twice.
    assert len(seen) > 55
    a, b = (random_pattern((9, 40), 7, generator=torch.Generator().manual_seed(1)) for _ in "ab")
    assert torch.equal(fingerprint(a), fingerprint(b))


def test_wrong_groups() -> None:
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="`exchange` to be one of"):
        SparseTraining(model, optimizer, end=9, exchange="all")
    with pytest.raises(ValueError, match=r"torch\.distributed to be initialized"):
        SparseTraining(model, optimizer, end=9, process_group=object())


def _process(rank: int, folder: Path) -> None:
    """One of two, whose gradients DistributedDataParallel averages."""
    from torch import distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=100),
    )
    try:
        model = _network()
        parallel = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        with pytest.raises(NotImplementedError, match="'gradual'"):
            SparseTraining(parallel, optimizer, "gradual", end=9, density=0.1)
        training = SparseTraining(parallel, optimizer, end=9, every=2)
        masks = []
        for step in range(5):
            optimizer.zero_grad()
            parallel(_batch(step).chunk(2)[rank]).square().mean().backward()
            optimizer.step()
            training.step()
            masks += _masks(model)
        torch.save(masks, folder / f"{rank}.pt")
        # The reducer goes before the group does.
        del parallel, training
        gc.collect()
    finally:
        dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    # The other one is this one.
    other = multiprocessing.get_context("spawn").Process(target=_process, args=(1, tmp_path))
    other.start()
    try:
        _process(0, tmp_path)
        other.join(100)
    finally:
        other.kill()
    assert other.exitcode == 0
    alone = _alone()
    for rank in (0, 1):
        for a, b in zip(torch.load(tmp_path / f"{rank}.pt"), alone, strict=True):
            assert torch.equal(a, b)
