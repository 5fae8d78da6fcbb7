"""Promises of objects that users write, measured: a derivative that is claimed against differences of the function."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .checks import is_memory

Kind = TypeVar("Kind", bound=type)


class Once:
    """Objects that have passed a check, remembered without being kept alive, and classes whose objects need none."""

    def __init__(self) -> None:
        self._passed: dict[int, weakref.ref[Any]] = {}
        self._tested: set[type] = set()

    def tested(self, kind: Kind) -> Kind:
        """Marks a class of the library, which its tests check: a first use need not take the time. No subclass."""
        self._tested.add(kind)
        return kind

    def __contains__(self, value: object) -> bool:
        if type(value) in self._tested:
            return True
        known = self._passed.get(id(value))
        return known is not None and known() is value

    def add(self, value: object) -> None:
        """Remembers an object; one that cannot be referenced weakly is checked every time."""
        key = id(value)
        try:
            self._passed[key] = weakref.ref(value, lambda _: self._passed.pop(key, None))
        except TypeError:
            return


def kind(value: object) -> dict[str, Any]:
    """dtype and device that an object works with: those of the first tensor it holds, else float64 where torch is."""
    for part in getattr(value, "__dict__", {}).values():
        if isinstance(part, Tensor) and part.is_floating_point():
            return {"dtype": part.dtype, "device": part.device}
    return {"dtype": torch.float64, "device": torch.get_default_device()}


class Source:
    """Normal random numbers that are the same every time and leave torch's own generator alone."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str) -> None:
        self._generator = torch.Generator(device="cpu").manual_seed(0)
        self._kind: dict[str, Any] = {"dtype": dtype, "device": device}

    def __call__(self, *shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return numbers.to(**self._kind)


class Contradiction(NamedTuple):
    """A derivative that differences deny: what was claimed and what they say, along one direction."""

    claimed: float
    measured: float
    where: int  # member of the batch

    def __str__(self) -> str:
        member = f"of member {self.where} " if self.where else ""
        return f"along one direction the derivative {member}is {self.measured:.6g}, and {self.claimed:.6g} is claimed"


Function = Callable[[Tensor], Tensor]  # (..., *shape) → (...)
Derivative = Callable[[Tensor, Tensor], Tensor]  # (at, along) → (...)

# Steps of the differences, in lengths; those that suit smooth functions come first.
_STEPS = (1e-3, 1e-4, 1e-5, 1e-2, 1e-6, 1e-1, 1e-7)
# Those that have to be no nearer to the claim, as far as round-off tells.
_FINEST = (1e-8, 1e-9, 1e-10)
_PROBES = 3
# A claim counts as met within this part of the size of the slope ...
_MET = 1e-5
# ... and as denied beyond this multiple of what three differences differ by, and this part of the slope.
_DENIED, _LEAST = 100.0, 1e-4


def denied(
    function: Function, derivative: Derivative, z: Tensor, lengths: list[float], source: Source
) -> Contradiction | None:
    """A contradiction between a function and its claimed derivative near z, where there is one beyond doubt.

    At random points at each of the `lengths` from z the claim is compared with central differences of several steps.
    It is met where one of them has it; it is denied where three that follow each other agree on something else, far
    better than they differ from the claim, and no smaller step leaves it for the claim. Round-off, kinks, flat spots
    and what oscillates between two points therefore deny nothing. It takes two denials at one length, and no probe
    there at which the claim is met.

    Parameters
    ----------
    function : callable, (..., *shape) → (...)
    derivative : callable
        (at, along) → (...), the derivative at a point along a direction of the same shape.
    z : Tensor (..., *shape)
    lengths : list of float
        Sizes of an entry of the distance from z.
    source : Source

    Returns
    -------
    Contradiction or None
        That of the last probe.
    """
    for length in lengths:
        denials = []
        for _ in range(_PROBES):
            at, along = z + 0.3 * length * source(*z.shape), length * source(*z.shape)
            try:
                found = _probe(function, derivative, at, along)
            except Exception as error:  # outside of where the function is defined
                if is_memory(error):
                    raise
                continue
            if found is None:
                break
            if found is not _OPEN:
                denials.append(found)
        else:
            if len(denials) >= 2:
                return denials[-1]
    return None


_OPEN = Contradiction(math.nan, math.nan, -1)


def _probe(function: Function, derivative: Derivative, at: Tensor, along: Tensor) -> Contradiction | None:
    """None where the claim is met, a contradiction where it is denied, `_OPEN` where neither can be said."""
    claimed = derivative(at, along).detach().double().reshape(-1)
    values = function(at).detach().double().reshape(-1)
    noise = 8 * torch.finfo(at.dtype).eps * values.abs()
    slopes: dict[float, Tensor] = {}
    met = torch.zeros(claimed.shape, dtype=torch.bool, device=claimed.device)

    def slope(step: float) -> Tensor:
        if step not in slopes:
            ahead, behind = (function(at + sign * step * along).detach().double().reshape(-1) for sign in (1, -1))
            slopes[step] = (ahead - behind) / (2 * step)
        return slopes[step]

    for step in _STEPS:
        met |= (slope(step) - claimed).abs() <= _MET * (slopes[step].abs() + claimed.abs())
        met |= (slopes[step] == 0) & (claimed == 0)
        if bool(met.all()):
            return None
    steps = sorted(slopes, reverse=True)
    for coarse, middle, fine in zip(steps, steps[1:], steps[2:], strict=False):
        apart = torch.maximum((slopes[coarse] - slopes[middle]).abs(), (slopes[middle] - slopes[fine]).abs())
        doubt = _DENIED * torch.maximum(apart, noise / fine) + _LEAST * (slopes[middle].abs() + claimed.abs())
        gap = (slopes[middle] - claimed).abs()
        # Differences that are all zero may be below what the function resolves inside.
        wrong = ~met & (gap > doubt) & (slopes[middle] != 0)
        # What is finer than these steps shows in smaller ones.
        for finer in (*steps[steps.index(fine) + 1 :], *_FINEST):
            if bool(wrong.any()):
                wrong &= (slope(finer) - slopes[middle]).abs() <= gap / 2 + noise / finer
        if bool(wrong.any()):
            member = int(torch.where(wrong, gap / (slopes[middle].abs() + claimed.abs()), -1).argmax())
            return Contradiction(float(claimed[member]), float(slopes[middle][member]), member)
    return _OPEN
