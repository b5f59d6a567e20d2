"""Training with patterns that change: RigL, SET and gradual magnitude pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.nn.sparse.base import SparseLayer
from regkern.optim.schedules import CubicRamp
from regkern.optim.sparse_gradients import Gradients
from regkern.optim.sparse_processes import Processes
from regkern.optim.sparse_schedules import CosineDecay
from regkern.proximal.thresholds import top_k_mask
from regkern.sparse.growing import random_free, where
from regkern.sparse.pattern import SparsePattern
from regkern.sparse.places import pattern_at, places_of
from regkern.sparse.updates import prune, update_pattern

_METHODS = ("rigl", "set", "gradual")
_EXCHANGES = ("panels", "candidates")


class SparseTraining:
    r"""Changes the patterns of a network's sparse layers while it trains.

    Every ``every`` steps up to ``end``, in each layer of ``nnz`` entries,

    - ``"rigl"``: the :math:`f(t)\,nnz` entries of the smallest magnitudes go, and as many come
      where the gradients of the step just made are largest, with the value 0;
    - ``"set"``: as many come at random places;
    - ``"gradual"``: entries go until the density of :class:`CubicRamp` is met, per layer or over
      all layers together.

    Optimizers keep the state of the entries that stay. An entry that goes and comes back in the
    same update has never gone.

    Parameters
    ----------
    model : nn.Module
        With layers like ``regkern.nn.SparseLinear``.
    optimizer : torch.optim.Optimizer
        Of their ``values``, and of what else there is.
    method : str
        As above.
    end : int
        The step from which patterns stay; steps count from 1.
    every : int, default 100
        ΔT.
    begin : int, default 0
        Nothing changes up to this step.
    fraction : float or function of int
        f: α of a :class:`CosineDecay` to ``end`` for RigL, the same number always for SET, or any
        function of the step. Default: 0.3. Not used by ``"gradual"``.
    density : float
        The density at ``end``, for ``"gradual"`` alone. It starts from the density that there is.
    scope : str
        ``"layer"``, or ``"global"``: the smallest magnitudes of all layers go. For ``"gradual"``.
    averages : modules
        Copies of the model, such as averages of its weights: their layers of the same names get
        the same patterns, and their values move along.
    generator : torch.Generator, optional
        Of SET's places, on the CPU; its state is saved. Of several processes the first one's
        places are taken.
    process_group : torch.distributed.ProcessGroup, optional
        The processes that train the network together, each with a part of the batch, and whose
        patterns are the same. Default: all, where ``torch.distributed`` is initialized. Each makes
        a SparseTraining and calls ``step`` as often.
    exchange : str
        Which of RigL's gradients several processes exchange. ``"panels"``: all, a panel at a time,
        so that entries come where they would with the whole batch in one process, up to rounding;
        an update sends as many numbers as the dense weights have, and keeps a panel. For
        ``"candidates"`` each process names the places of its own largest gradients, as many as are
        to come, and the largest sums at the places named are taken: that sends O(nnz) numbers, and
        misses places whose gradients are large in sum and in no process. These are more the more
        processes there are and the less their gradients agree.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    NotImplementedError
        For ``"gradual"`` with a DistributedDataParallel, which keeps the sizes that parameters had.
    RuntimeError
        At first and from ``step`` where processes have different patterns, which a number of 64
        bits a layer shows; and where a layer had no backward.

    Notes
    -----
    With ``DistributedDataParallel`` values are the same everywhere and so are the smallest of them;
    pass the wrapped model or the wrapper. It sends buffers before each forward, patterns among
    them, if it is not told not to (``forward_sync_buffers=False``). Losses are to be means over
    parts of one size, or sums: gradients are added with the same weight.

    RigL's gradients are taken from what goes through the layers in the steps of updates alone
    (``due``), with hooks: inputs and gradients of outputs, kept up to the update; the dense
    gradient of a layer is never there. A compiled model has to be called as it was
    (``model._orig_mod``) in those steps, since compiled layers do not call hooks.

    Examples
    --------
    >>> training = SparseTraining(model, optimizer, "rigl", end=30_000)
    >>> for x, y in data:
    ...     loss(model(x), y).backward()
    ...     optimizer.step()
    ...     training.step()
    ...     optimizer.zero_grad()

    References
    ----------
    U. Evci, T. Gale, J. Menick, P. S. Castro and E. Elsen, "Rigging the lottery: making all tickets
    winners", ICML 2020. D. C. Mocanu et al., "Scalable training of artificial neural networks with
    adaptive sparse connectivity inspired by network science", Nature Communications 2018. M. Zhu
    and S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: str = "rigl",
        *,
        end: int,
        every: int = 100,
        begin: int = 0,
        fraction: float | Callable[[int], float] = 0.3,
        density: float | None = None,
        scope: str = "layer",
        averages: Iterable[nn.Module] = (),
        generator: torch.Generator | None = None,
        process_group: Any = None,
        exchange: str = "panels",
    ) -> None:
        op = "optim.SparseTraining"
        checks.one_of(op, "exchange", exchange, _EXCHANGES)
        checks.one_of(op, "method", method, _METHODS)
        checks.one_of(op, "scope", scope, ("layer", "global"))
        checks.at_least(op, "every", every, 1)
        checks.at_least(op, "end", end, 1)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"regkern.{op}: expected `optimizer` to be a torch.optim.Optimizer, got "
                f"{type(optimizer)}"
            )
        if (density is not None) != (method == "gradual"):
            raise ValueError(
                f'regkern.{op}: expected `density` with the method "gradual", and with no other, '
                f"got {density} with {method!r}"
            )
        if method == "gradual" and isinstance(model, nn.parallel.DistributedDataParallel):
            raise NotImplementedError(
                f"regkern.{op}: expected no DistributedDataParallel with the method 'gradual', "
                "whose parameters get smaller, got one; average gradients otherwise"
            )
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
        if not self.layers:
            raise ValueError(f"regkern.{op}: expected `model` with sparse layers, got none")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in self.layers.items():
            if id(layer.values) not in held:
                raise ValueError(
                    f"regkern.{op}: expected `optimizer` to have the values of every sparse layer, "
                    f"got one without those of {name!r}"
                )
        self.optimizer, self.method, self.scope = optimizer, method, scope
        self.every, self.begin, self.end = every, begin, end
        self.generator, self.exchange = generator, exchange
        self.steps = 0
        self._followers = [
            {n: m for n, m in other.named_modules() if n in self.layers} for other in averages
        ]
        if not callable(fraction):
            checks.probability(op, "fraction", fraction)
            share = float(fraction)
            fraction = CosineDecay(end, share) if method == "rigl" else lambda step: share
        self.fraction = fraction
        self.ramp: CubicRamp | None = None
        if density is not None:
            checks.probability(op, "density", density)
            nnz = sum(layer.pattern.nnz for layer in self.layers.values())
            size = sum(math.prod(layer.pattern.shape) for layer in self.layers.values())
            # Of what there is now, so that layers keep their proportions.
            kept = density * size / max(1, nnz)
            if kept > 1.0:
                raise ValueError(
                    f"regkern.{op}: expected `density` of at most {nnz / size:.4f}, what there is, "
                    f"got {density}"
                )
            self.ramp = CubicRamp(begin, end, initial=1.0, final=kept)
            self._start = {name: layer.pattern.nnz for name, layer in self.layers.items()}
        self._processes = Processes(op, process_group)
        self._processes.check_same({name: m.pattern for name, m in self.layers.items()})
        self._gradients = Gradients(self.layers, lambda: self.due) if method == "rigl" else None

    @property
    def due(self) -> bool:
        """Whether the next call of ``step`` changes patterns."""
        step = self.steps + 1
        if step <= self.begin or step > self.end:
            return False
        if self.method == "gradual" and step == self.end:
            return True
        return (step - self.begin) % self.every == 0 and (step < self.end or self.ramp is not None)

    @torch.no_grad()
    def step(self) -> bool:
        """After each step of the optimizer, before gradients are cleared. Whether it changed
        patterns."""
        due = self.due
        if due:
            if self._gradients is not None:
                self._gradients.check(self._processes)
            patterns = self._patterns(self.steps + 1)
            self._processes.check_same(patterns)
            for name, pattern in patterns.items():
                self._update(name, pattern)
        self.steps += 1
        if self._gradients is not None:
            self._gradients.clear()
        return due

    def _update(self, name: str, pattern: SparsePattern) -> None:
        for follower in self._followers:
            if name in follower:
                update_pattern(follower[name], pattern)
        update_pattern(self.layers[name], pattern, optimizer=self.optimizer)

    def _patterns(self, step: int) -> dict[str, SparsePattern]:
        if self.ramp is not None:
            return self._pruned(self.ramp(step))
        return {name: self._moved(name, layer, step) for name, layer in self.layers.items()}

    def _pruned(self, share: float) -> dict[str, SparsePattern]:
        layers = self.layers
        if self.scope == "layer":
            kept = {n: min(round(share * self._start[n]), m.pattern.nnz) for n, m in layers.items()}
            return {n: prune(m.values, m.pattern, kept[n]).pattern for n, m in layers.items()}
        count = sum(m.pattern.nnz for m in layers.values())
        most = min(round(share * sum(self._start.values())), count)
        masks = top_k_mask([m.values.detach() for m in layers.values()], most)
        return {
            name: pattern_at(places_of(m.pattern)[where(mask)], m.pattern.shape)
            for (name, m), mask in zip(layers.items(), masks, strict=True)
        }

    def _moved(self, name: str, layer: SparseLayer, step: int) -> SparsePattern:
        old = layer.pattern
        moving = round(self.fraction(step) * old.nnz)
        # What is there is not fewer than what moves, and may fill the matrix.
        kept = prune(layer.values, old, old.nnz - moving).pattern
        places = self._places(name, kept, moving)
        return pattern_at(torch.sort(torch.cat([places_of(kept), places])).values, old.shape)

    def _places(self, name: str, kept: SparsePattern, count: int) -> Tensor:
        if self._gradients is None:
            return self._processes.first(random_free(kept, count, self.generator))
        return self._gradients.largest_free(name, kept, count, self._processes, self.exchange)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the generator's state. Patterns are in the model's."""
        random = None if self.generator is None else self.generator.get_state()
        start = self._start if self.ramp is not None else None
        return {"steps": self.steps, "generator": random, "start": start, "ramp": self._kept()}

    def _kept(self) -> float | None:
        return None if self.ramp is None else self.ramp.final

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state, with a model and an optimizer that have loaded theirs."""
        self.steps = int(state_dict["steps"])
        if self.generator is not None and state_dict["generator"] is not None:
            self.generator.set_state(state_dict["generator"])
        if self.ramp is not None and state_dict["start"] is not None:
            self._start = dict(state_dict["start"])
            self.ramp = CubicRamp(self.begin, self.end, 1.0, state_dict["ramp"])

    def remove(self) -> None:
        """Takes the hooks away."""
        if self._gradients is not None:
            self._gradients.remove()

    def __repr__(self) -> str:
        return (
            f"SparseTraining({self.method!r}, layers={len(self.layers)}, every={self.every}, "
            f"begin={self.begin}, end={self.end}, steps={self.steps})"
        )
