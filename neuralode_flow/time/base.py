"""What a time method promises, and the watch kept over the velocity while it runs."""

from __future__ import annotations

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ..checks import all_finite
from ..flows.base import Flow
from ..registry import Registry
from .endings import Stopped
from .members import advice, culprits, not_finite, of_members

# What a flow raises when its numbers leave the range in which it can be computed.
FAILURES = (FloatingPointError, torch.linalg.LinAlgError)

_EPS = sys.float_info.epsilon

# What a method must remember, beside its time and state, to go on to the bit: numbers and arrays by name.
Memory = Mapping[str, Any]


class Velocity(Protocol):
    """dstate/dt at a time; it may raise Stopped."""

    def __call__(self, t: float, state: Tensor) -> Tensor: ...

    def linearised(self, t: float, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The exact derivative of the velocity as a function of a direction; None where the flow has none."""
        ...


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


@dataclass(frozen=True, eq=False)
class Start:
    """Where a time method begins.

    Attributes
    ----------
    velocity : Velocity
    t : float
    state : Tensor
    end : float
        Last time of the run.
    control : Control
    memory : Memory
        One that `Stepper.memory` gave lets the method go on to the bit; {"h": …} alone proposes the first step.
    """

    velocity: Velocity
    t: float
    state: Tensor
    end: float
    control: Control
    memory: Memory


class Stepper(ABC):
    """A time method in motion.

    1. `Stepper(start, **options)` stands at (start.t, start.state); the options tell methods of one kind apart.
    2. `advance(goal)` takes one accepted step. A one-step method does not go beyond `goal`, where it ends exactly; one
       that interpolates may go as far as `end`.
    3. `t`, `state`, `h`: where the last accepted step ended, and its size.
    4. `at(t)` is the state inside the last step, as accurate as the step.
    5. `sketch(t)` is about that state, for one more velocity evaluation a step at most.
    6. `history` lists in words what the method did on its own, such as a change of solver.
    7. It raises Stopped when it cannot go on; `t` and `state` stay those of the last accepted step.
    """

    one_step: ClassVar[bool] = True

    def __init__(self, start: Start, **options: Any) -> None:
        self.velocity = start.velocity
        self.t = start.t
        self.state = start.state
        self.end = start.end
        self.control = start.control
        self.h = float(start.memory.get("h", 0.0))
        self.history: list[str] = []
        self._options = options
        self._before = start
        self._known: dict[float, Tensor] = {}  # velocities at the ends of the step that was sketched

    def advance(self, goal: float) -> None:
        """One accepted step."""
        self._before = self.here(self.memory() if self.one_step else {})
        self._step(goal)
        self.h = self.t - self._before.t

    def here(self, memory: Memory) -> Start:
        """A start where this method stands."""
        return Start(self.velocity, self.t, self.state, self.end, self.control, memory)

    @abstractmethod
    def _step(self, goal: float) -> None:
        """Moves `t` and `state` by one accepted step."""

    def at(self, t: float) -> Tensor:
        """The state inside the last step; a one-step method repeats the step, ending at t."""
        if t == self.t:
            return self.state
        if t == self._before.t:
            return self._before.state
        again = self._again(replace(self._before, end=t))
        while again.t < t:
            again.advance(t)
        return again.state

    def sketch(self, t: float) -> Tensor:
        """About the state inside the last step: of a one-step method the cubic through both ends and their slopes."""
        if not self.one_step:
            return self.at(t)
        before, h = self._before, self.t - self._before.t
        first, last = self._slopes()
        s = (t - before.t) / h
        chord = self.state - before.state
        bend = (1 - s) * (h * first - chord) - s * (h * last - chord)
        return before.state + s * chord + s * (1 - s) * bend

    def _slopes(self) -> tuple[Tensor, Tensor]:
        """The velocity at both ends of the last step; what a method knows of it, it need not evaluate."""
        ends = ((self._before.t, self._before.state), (self.t, self.state))
        self._known = {t: self._known[t] if t in self._known else self.velocity(t, state) for t, state in ends}
        return self._known[self._before.t], self._known[self.t]

    def _again(self, start: Start) -> Stepper:
        """The same method elsewhere."""
        return type(self)(start, **self._options)

    def memory(self) -> dict[str, Any]:
        """See Memory."""
        return {"h": self.h} if self.h else {}


class Method(Protocol):
    """Makes a Stepper."""

    def __call__(self, start: Start) -> Stepper: ...


def fixed_steps(method: Method) -> bool:
    """Whether a method has fixed steps, and no use for tolerances."""
    kind = getattr(method, "func", method)
    return isinstance(kind, type) and issubclass(kind, FixedStepper)


def one_step(method: Method) -> bool:
    """Whether a method is known to end its steps where it is told to."""
    kind = getattr(method, "func", method)
    return isinstance(kind, type) and issubclass(kind, Stepper) and kind.one_step


METHODS: Registry[Method] = Registry("time method")


# With one time asked for more often than this the step size has shrunk to nothing: torchdiffeq guards that by `assert`
# only, which `python -O` removes. The stages of a step are far fewer; an implicit method asks once per entry of the
# state for each Jacobian.
_STAGNATION = 1000
_JACOBIANS = 20


class Watch:
    """Counts velocity evaluations and stops a run that leaves the finite numbers, its budgets, or the spot.

    Attributes
    ----------
    flow : Flow
        It may be exchanged for the same flow on another depth grid.
    evaluations, products : int
        Velocity evaluations and Jacobian–vector products so far.
    """

    def __init__(
        self,
        flow: Flow,
        max_evaluations: int,
        max_seconds: float | None = None,
    ) -> None:
        self.flow = flow
        self.max_evaluations = max_evaluations
        self.max_seconds = max_seconds
        self.evaluations = 0
        self.products = 0
        self.members = torch.Size()  # the leading axes of a batch
        self.good: Tensor | None = None  # a state at which the velocity can be computed
        self._started = time.perf_counter()
        self._last = float("-inf")
        self._stuck = 0

    def resume(self, evaluations: int, products: int, seconds: float) -> None:
        """Counts on from what a run had spent before."""
        self.evaluations, self.products = evaluations, products
        self._started = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Wall time of the run, also before it was resumed."""
        return time.perf_counter() - self._started

    def __call__(self, t: float, state: Tensor) -> Tensor:
        self._spend(t)
        self.evaluations += 1
        if abs(t - self._last) > 8 * _EPS * abs(t):
            self._stuck, self._last = 0, t
        self._stuck += 1
        if self._stuck > _STAGNATION + _JACOBIANS * state.numel():
            raise Stopped("underflow", f"the step size underflowed at t = {t:.6g}: the tolerance cannot be met there")
        return self._computed(t, self.flow.velocity, state)

    def linearised(self, t: float, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """See Velocity; every product counts as one evaluation, which it costs."""
        linearised = getattr(self.flow, "linearised", lambda _: None)
        try:
            derivative = linearised(state)
        except FAILURES as error:
            raise Stopped("velocity", f"the velocity could not be linearised at t = {t:.6g}: {error}") from error
        if derivative is None:
            return None

        def product(direction: Tensor) -> Tensor:
            self._spend(t)
            self.evaluations += 1
            self.products += 1
            return self._computed(t, derivative, direction)

        return product

    def _spend(self, t: float) -> None:
        if self.evaluations >= self.max_evaluations:
            raise Stopped(
                "evaluations", f"the budget of {self.max_evaluations} velocity evaluations was used up at t = {t:.6g}"
            )
        if self.max_seconds is not None and self.seconds > self.max_seconds:
            raise Stopped(
                "seconds", f"the budget of wall time was used up at t = {t:.6g}, after {self.seconds:.3g} seconds"
            )

    def _computed(self, t: float, work: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
        try:
            value = work(argument)
        except FAILURES as error:
            which = culprits(work, FAILURES, argument, self.good, self.members)
            raise Stopped(
                "velocity",
                f"the velocity{of_members(which)} could not be computed at t = {t:.6g}: {error}{advice(which)}",
            ) from error
        if not all_finite(value):
            which = not_finite(value, self.members)
            raise Stopped(
                "not_finite",
                f"the velocity{of_members(which)} is not finite at t = {t:.6g}: the flow blew up, or its step was too "
                f"large{advice(which)}",
            )
        return value


class FixedStepper(Stepper):
    """Equal steps of at most `control.step` between the output times."""

    def __init__(self, start: Start, **options: Any) -> None:
        super().__init__(start, **options)
        memory = start.memory
        self._interval = (start.t, start.t)
        self._k = 0
        if "interval" in memory:
            self._interval = (float(memory["interval"][0]), float(memory["interval"][1]))
            self._k = int(memory["k"])

    def _step(self, goal: float) -> None:
        if self.t == self._interval[1] or self._interval[1] != goal:
            self._interval, self._k = (self.t, goal), 0
        start, end = self._interval
        n = substeps(end - start, self.control.step)
        after = end if self._k + 1 == n else start + (end - start) * (self._k + 1) / n
        self.state = self._fixed_step(self.t, after)
        self.t, self._k = after, self._k + 1

    @abstractmethod
    def _fixed_step(self, start: float, end: float) -> Tensor:
        """The state after one step from `self.state`."""

    def _again(self, start: Start) -> Stepper:
        return super()._again(replace(start, memory={}))

    def memory(self) -> dict[str, Any]:
        return super().memory() | {"interval": np.array(self._interval), "k": self._k}


def substeps(length: float, step: float | None) -> int:
    """The number of equal steps of at most `step` in an interval; 1 without a step."""
    return 1 if step is None else max(1, math.ceil(length * (1 - 1e-12) / step))
