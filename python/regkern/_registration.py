"""How an op gets its Python side: fake kernel, autograd and vmap.

`torch.library.register_autograd` makes `torch.ops.regkern.*` differentiable in eager mode and under
`torch.compile`, but `torch.func.grad` and `jacrev` refuse it. Calls made inside a functorch
transform, and only those, therefore go through an `autograd.Function` over the same formulas.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

NAMESPACE = "regkern"

_fragment = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]

#: Names of the ops with a derivative.
DIFFERENTIABLE: set[str] = set()

SetupContext = Callable[[Any, tuple[Any, ...], Any], None]
Backward = Callable[..., Any]


def observed() -> bool:
    """Whether somebody looks on who has to see an op as what it is: a compiler or a transform."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


class Op:
    """A raw op that works in eager mode, under `torch.compile` and inside functorch transforms."""

    def __init__(self, name: str, namespace: str = NAMESPACE) -> None:
        self.name = name
        self.namespace = namespace
        self.raw = getattr(getattr(torch.ops, namespace), name).default
        self._arguments = self.raw._schema.arguments
        self._function: type[torch.autograd.Function] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            transformed = torch._C._functorch.peek_interpreter_stack() is not None
            if self._function is not None and transformed:
                # A Function takes positions alone; the schema gives their order and defaults.
                rest = self._arguments[len(args) :]
                named = [kwargs.get(a.name, a.default_value) for a in rest]
                return function_apply(self._function, *args, *named)
            if forward_ad._current_level >= 0:
                self._refuse_tangents(*args, *kwargs.values())
        return self.raw(*args, **kwargs)

    def _refuse_tangents(self, *args: Any) -> None:
        """torch.library drops tangents without a word."""
        for t in (t for arg in args for t in _tensors_of(arg)):
            if forward_ad.unpack_dual(t).tangent is not None:  # type: ignore[no-untyped-call]
                raise NotImplementedError(
                    f"regkern.{self.name}: expected no forward-mode derivatives, which are not "
                    "supported, got a tensor with a tangent"
                )

    def differentiable(self, setup_context: SetupContext, backward: Backward) -> None:
        """Registers the derivative.

        `setup_context(ctx, inputs, output)` sees all arguments in the schema's order, and
        `backward(ctx, *grads)` returns one gradient for each of them. What `backward` calls is
        differentiable itself, or `backward` is wrapped in `once_only`.
        """

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup_context(ctx, inputs, output)

        torch.library.register_autograd(
            f"{self.namespace}::{self.name}", backward, setup_context=setup
        )
        self._function = _transformable(self, setup_context, backward)
        DIFFERENTIABLE.add(self.name)


_QUICK: dict[type[torch.autograd.Function], Any] = {}


def function_apply(function: Any, *args: Any) -> Any:
    """`function.apply`, without the third of its time that goes into looking up its signature.

    torch does that where `forward` stands apart from `setup_context`, which transforms and
    compilation need, and nobody else.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return function.apply(*args)
    if function not in _QUICK:
        _QUICK[function] = _joined(function)
    return _QUICK[function].apply(*args)


def _joined(function: Any) -> Any:
    if function.setup_context is torch.autograd.Function.setup_context:
        return function  # its forward has the context already

    class Joined(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = function.forward(*args)
            function.setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return function.backward(ctx, *grads)

    Joined.__name__ = function.__name__
    return Joined


def _transformable(
    op: Op, setup: SetupContext, gradient: Backward
) -> type[torch.autograd.Function]:
    """The same formulas, for functorch transforms only."""

    class Transformable(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            # One transform has been peeled off; there may be more outside.
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return gradient(ctx, *grads)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            return _loop(op, info, in_dims, args)

    Transformable.__name__ = op.name
    return Transformable


def _loop(call: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], args: Any) -> Any:
    """The vmap rule of any op: a call per element of the batch, the results stacked in front."""
    results = [
        call(*(_select(arg, dim, i) for arg, dim in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if not isinstance(results[0], tuple | list):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(column) for column in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _select(arg: Any, dim: Any, i: int) -> Any:
    """Element i of a batched argument; of a list, that of its batched members."""
    if isinstance(dim, list | tuple):
        return [_select(a, d, i) for a, d in zip(arg, dim, strict=True)]
    return arg if dim is None else arg.select(dim, i)


def register(name: str, fake: Callable[..., Any], namespace: str = NAMESPACE) -> Op:
    """Registers fake kernel and vmap rule of an op and returns its caller."""
    op = Op(name, namespace)
    qualified = f"{namespace}::{name}"
    torch.library.register_fake(qualified)(fake)
    if op.raw._schema.is_mutable:
        _track_mutation(op)
    else:

        def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            # The dispatcher is below the transform here, so the raw op it is. Arguments at their
            # default are not handed over.
            return _loop(op.raw, info, tuple(in_dims[: len(args)]), args)

        torch.library.register_vmap(qualified, rule)
    return op


class _Refusal(torch.autograd.Function):
    """The identity on a gradient. It has no derivative, and says so."""

    generate_vmap_rule = True

    @staticmethod
    def forward(op: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"regkern.{ctx.op}: expected no second derivative, which it has not")


def refuse_second(op: str, gradient: Any, sources: Iterable[Any]) -> Any:
    """The gradient, whose derivative by any of the sources is refused."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return gradient
    wanted = [t for t in sources if isinstance(t, Tensor) and t.requires_grad]
    if not wanted or not isinstance(gradient, Tensor):
        return gradient
    return function_apply(_Refusal, op, gradient, *wanted)


def once_only(op: str) -> Callable[[Backward], Backward]:
    """Decorates the backward of an op that has no second derivative.

    torch's `once_differentiable` looks at the incoming gradients alone: with a constant one, as in
    a gradient penalty, the second derivative would be silently zero. This one looks at the saved
    tensors as well.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def once(ctx: Any, *grads: Any) -> Any:
            with torch.no_grad():
                results = backward(ctx, *grads)
            one = not isinstance(results, tuple)
            sources = (*grads, *ctx.saved_tensors)
            refused = tuple(refuse_second(op, r, sources) for r in ((results,) if one else results))
            return refused[0] if one else refused

        return once

    return decorate


def composite(schema: str, function: Callable[..., Any]) -> None:
    """Defines an op that decomposes into others, gradients and all."""
    _fragment.define(schema)  # type: ignore[no-untyped-call]
    name = schema.split("(")[0]
    _fragment.impl(name, function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]


def _track_mutation(op: Op) -> None:
    """What torch's own in-place ops do: bump versions, and refuse what would be a wrong gradient.

    A custom op has no autograd kernel for its in-place form, so a change of a tensor that another
    op saved would go unnoticed, and so would a missing gradient of the change itself.
    """
    arguments = op.raw._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info is not None]

    def kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and any(t.requires_grad for a in args for t in _tensors_of(a)):
            raise RuntimeError(
                f"{op.namespace}::{op.name}: expected no input to require gradients, got one that "
                "does; the public functions are differentiable"
            )
        for i in written:
            torch.autograd.graph.increment_version(args[i])  # a tensor or a list of them
        with torch._C._AutoDispatchBelowAutograd():
            return op.raw.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    _fragment.impl(op.name, kernel, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]


def _tensors_of(arg: Any) -> Iterable[Tensor]:
    """The tensors of an argument: a tensor, or a list of them."""
    if isinstance(arg, Tensor):
        return (arg,)
    return [t for t in arg if isinstance(t, Tensor)] if isinstance(arg, list | tuple) else ()


def dense_like(x: Tensor) -> Tensor:
    """An empty tensor as the ops allocate it: channels last where x is, else row-major."""
    if not x.is_contiguous():
        for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if x.dim() == rank and x.is_contiguous(memory_format=layout):
                return torch.empty_like(x, memory_format=layout)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What the kernels compute in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
