"""The formats that numbers can be rounded to, by name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch

#: What the field calls them, and torch's dtypes.
_ALIASES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp8_e4m3": "e4m3fn",
    "fp8_e5m2": "e5m2",
    "fp6_e2m3": "e2m3fn",
    "fp6_e3m2": "e3m2fn",
    "fp4_e2m1": "e2m1fn",
    "fp4": "e2m1fn",
    # Without a suffix: the OCP formats, which are finite.
    "e4m3": "e4m3fn",
    "e2m3": "e2m3fn",
    "e3m2": "e3m2fn",
    "e2m1": "e2m1fn",
    "mxfp8": "mxfp8_e4m3",
}
_ELEMENTS = {"bfloat16": "e8m7", "float16": "e5m10", "tf32": "e8m10"}
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "e4m3fn": torch.float8_e4m3fn,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2": torch.float8_e5m2,
    "e5m2fnuz": torch.float8_e5m2fnuz,
}
_MX = {
    "mxfp8_e4m3": "e4m3fn",
    "mxfp8_e5m2": "e5m2",
    "mxfp6_e2m3": "e2m3fn",
    "mxfp6_e3m2": "e3m2fn",
    "mxfp4": "e2m1fn",
    "mxint8": "int:-127:127",
}
KNOWN = (
    "bfloat16, float16, tf32, e4m3fn, e4m3fnuz, e5m2, e5m2fnuz, e2m3fn, e3m2fn, e2m1fn, eXmY "
    "(eXmYfn, eXmYfnuz, eXmYieee), int2 to int16, uint2 to uint16, fixedW.F (W bits, F of them "
    "after the point), mxfp8_e4m3, mxfp8_e5m2, mxfp6_e2m3, mxfp6_e3m2, mxfp4, mxint8, bfp2 to "
    "bfp16, nvfp4"
)


@dataclass(frozen=True)
class Format:
    """A set of numbers that others are rounded to.

    Attributes
    ----------
    name : str
    element : str
        How the kernels call the format of one element.
    kind : {"floating", "integer"}
    exponent_bits, mantissa_bits, bias : int
        Of a floating element.
    max : float
        The largest finite number of an element, unscaled.
    infinity, nan, negative_zero : bool
        Whether a floating element has them.
    low, high : int
        Of an integer element.
    step : float
        What integers are multiplied by: 2^-F of a fixed-point format, else 1.
    rule : {None, "mx", "nvfp4"}
        How scales are computed from a block, if they are.
    block_size : int, optional
        Elements that share a scale.
    dtype : torch.dtype, optional
        The storage that torch has for an element.
    """

    name: str
    element: str
    kind: Literal["floating", "integer"]
    exponent_bits: int = 0
    mantissa_bits: int = 0
    bias: int = 0
    max: float = 0.0
    infinity: bool = False
    nan: bool = False
    negative_zero: bool = True
    low: int = 0
    high: int = 0
    step: float = 1.0
    rule: Literal["mx", "nvfp4"] | None = None
    block_size: int | None = None
    dtype: torch.dtype | None = None

    @property
    def bits(self) -> int:
        """Bits of an element."""
        if self.kind == "integer":
            return max(2, math.ceil(math.log2(self.high - self.low + 1)))
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def saturates(self) -> bool:
        """Whether torch's cast to the format saturates; formats without infinity and NaN do."""
        fnuz = self.kind == "floating" and not self.negative_zero
        return not self.infinity and not fnuz


def _floating(name: str, element: str, dtype: torch.dtype | None) -> Format | None:
    match = re.fullmatch(r"e([2-8])m(\d+)(fn|fnuz|ieee)?", element)
    if match is None:
        return None
    exponent, mantissa, suffix = int(match[1]), int(match[2]), match[3] or "ieee"
    if mantissa > 22 or (exponent == 8 and suffix != "ieee"):
        return None
    finite, fnuz = suffix != "ieee", suffix == "fnuz"
    bias = 2 ** (exponent - 1) - (not fnuz)
    # A NaN has a code beside the infinities, in place of -0, or as the last code of 8 bits or more.
    nan = not finite or fnuz or 1 + exponent + mantissa >= 8
    last_is_nan = nan and suffix == "fn"
    top = 2**exponent - 1 - (not finite) - (last_is_nan and mantissa == 0)
    fraction = 2.0 - (2.0 if last_is_nan and mantissa > 0 else 1.0) * 2.0**-mantissa
    return Format(
        name,
        f"e{exponent}m{mantissa}" + (suffix if finite else ""),
        "floating",
        exponent,
        mantissa,
        bias,
        math.ldexp(fraction, top - bias),
        infinity=not finite,
        nan=nan,
        negative_zero=not fnuz,
        dtype=dtype,
    )


def _integer(name: str, low: int, high: int, step: float = 1.0) -> Format:
    largest = max(-low, high) * step
    return Format(name, f"int:{low}:{high}", "integer", max=largest, low=low, high=high, step=step)


# Not functools.lru_cache, which torch.compile warns of.
_PARSED: dict[str, Format | None] = {}


def _named(name: str) -> Format | None:
    if name not in _PARSED:
        _PARSED[name] = _parsed(name)
    return _PARSED[name]


def _parsed(name: str) -> Format | None:
    name = _ALIASES.get(name, name)
    if name in _MX or name == "nvfp4" or re.fullmatch(r"bfp([2-9]|1[0-6])", name):
        bits = int(name[3:]) if name.startswith("bfp") else 8
        high = 2 ** (bits - 1) - 1
        element = "e2m1fn" if name == "nvfp4" else _MX.get(name, f"int:{-high}:{high}")
        base = (
            _integer(name, -high, high)
            if element.startswith("int")
            else _floating(name, element, None)
        )
        assert base is not None
        rule: Literal["mx", "nvfp4"] = "nvfp4" if name == "nvfp4" else "mx"
        size = 16 if name == "nvfp4" else 32
        return Format(**{**base.__dict__, "rule": rule, "block_size": size})
    if match := re.fullmatch(r"(u?)int(\d+)", name):
        bits = int(match[2])
        if not 2 <= bits <= 16:
            return None
        low = 0 if match[1] else -(2 ** (bits - 1))
        return _integer(name, low, low + 2**bits - 1)
    if match := re.fullmatch(r"fixed(\d+)\.(-?\d+)", name):
        word, fraction = int(match[1]), int(match[2])
        if not 2 <= word <= 16 or abs(fraction) > 100:
            return None
        return _integer(name, -(2 ** (word - 1)), 2 ** (word - 1) - 1, 2.0**-fraction)
    return _floating(name, _ELEMENTS.get(name, name), _DTYPES.get(name))


def format_of(op: str, value: str | torch.dtype | Format) -> Format:
    """The format of that name (or dtype), or a ValueError that lists the known ones."""
    if isinstance(value, Format):
        return value
    name = value
    if isinstance(value, torch.dtype):
        name = str(value).removeprefix("torch.").removeprefix("float8_")
    found: Format | None = _named(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"regkern.{op}: expected `format` to be one of {KNOWN}; got {value!r}")
    return found
