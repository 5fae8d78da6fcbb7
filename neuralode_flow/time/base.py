"""What a time method promises, and the watch kept over the velocity while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..registry import Registry

# What a flow raises when its numbers leave the range in which it can be computed.
FAILURES = (FloatingPointError, torch.linalg.LinAlgError)

_EPS = sys.float_info.epsilon


class Stopped(Exception):
    """A run cannot go on; the message is the sentence that becomes its status."""


class Velocity(Protocol):
    """dstate/dt at a time; it may raise Stopped."""

    def __call__(self, t: float, state: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Control:
    """Accuracy wanted of a time method.

    Attributes
    ----------
    rtol, atol : float
        Relative and absolute tolerance of adaptive methods, per entry of the state.
    step : float or None
        Step size of fixed-step methods (the last step of an interval is shortened); None: one step per output interval.
    """

    rtol: float
    atol: float
    step: float | None


class Method(Protocol):
    """`method(velocity, state, times, control)` yields the state at times[1], times[2], …, each as accurate as a step.

    A method raises Stopped when it cannot go on; the states that it has yielded stay valid.
    """

    def __call__(self, velocity: Velocity, state: Tensor, times: list[float], control: Control) -> Iterator[Tensor]: ...


METHODS: Registry[Method] = Registry("time method")


# With one time asked for more often than this the step size has shrunk to nothing: torchdiffeq guards that by `assert`
# only, which `python -O` removes. The stages of a step are far fewer; an implicit method asks once per entry of the
# state for each Jacobian.
_STAGNATION = 1000
_JACOBIANS = 20


@dataclass
class Watch:
    """Counts velocity evaluations and stops a run that leaves the finite numbers, its budget, or the spot."""

    velocity: Callable[[Tensor], Tensor]
    max_evaluations: int
    evaluations: int = 0
    started: float = field(default_factory=time.perf_counter)
    _last: float = float("-inf")
    _stuck: int = 0

    def __call__(self, t: float, state: Tensor) -> Tensor:
        if self.evaluations >= self.max_evaluations:
            raise Stopped(f"the budget of {self.max_evaluations} velocity evaluations was used up at t = {t:.6g}")
        self.evaluations += 1
        if abs(t - self._last) > 8 * _EPS * abs(t):
            self._stuck, self._last = 0, t
        self._stuck += 1
        if self._stuck > _STAGNATION + _JACOBIANS * state.numel():
            raise Stopped(f"the step size underflowed at t = {t:.6g}: the tolerance cannot be met there")
        try:
            velocity = self.velocity(state)
        except FAILURES as error:
            raise Stopped(f"the velocity could not be computed at t = {t:.6g}: {error}") from error
        if not bool(torch.isfinite(velocity).all()):
            raise Stopped(f"the velocity is not finite at t = {t:.6g}: the flow blew up, or its step was too large")
        return velocity

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def substeps(start: float, end: float, step: float | None) -> list[float]:
    """Grid from start to end, both included, in equal steps of at most `step`."""
    n = 1 if step is None else max(1, -(-(end - start) * (1 - 1e-12) // step))
    return [*(start + (end - start) * k / n for k in range(int(n))), end]
