"""What a time method promises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ..depth.engine.explicit import Tableau, Tried
from ..depth.engine.polar import Formulas, NdfSteps, Place
from ..registry import Registry

# What a flow raises when its numbers leave the range in which it can be computed.
FAILURES = (FloatingPointError, torch.linalg.LinAlgError, np.linalg.LinAlgError)

# What a method must remember, beside its time and state, to go on to the bit: numbers and arrays by name.
Memory = Mapping[str, Any]


class Velocity(Protocol):
    """dstate/dt at a time; it may raise Stopped."""

    def __call__(self, t: float, state: Tensor) -> Tensor: ...

    def knows_steps(self, state: Tensor) -> bool:
        """Whether the flow takes whole steps of explicit formulas."""
        ...

    def explicit_steps(self, t: float, state: Tensor, slope: Tensor, h: Any, tableau: Tableau) -> Tried | None:
        """A step of size h of a state along its slope; None where it is to be taken by its stages."""
        ...

    def linearised(self, t: float, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The exact derivative of the velocity as a function of a direction; None where the flow has none."""
        ...

    def knows_jacobian(self, state: Tensor) -> bool:
        """Whether the flow makes that derivative as a matrix, in one go."""
        ...

    def jacobian(self, t: float, state: Tensor) -> Tensor:
        """That matrix `(n, n)` of the n numbers of a state."""
        ...

    def knows_resolvent(self, state: Tensor) -> bool:
        """Whether the flow solves the linear systems of implicit methods itself."""
        ...

    def resolvent(self, t: float, state: Tensor) -> Callable[[float], Callable[[Tensor], Tensor]]:
        """γ ↦ (r ↦ (1 − γJ)⁻¹ r) with the derivative J at a state, or about so."""
        ...

    def implicit_steps(self, state: Tensor, formulas: Formulas) -> NdfSteps | None:
        """What takes whole steps of implicit formulas; None where they are to be taken by velocities."""
        ...

    def implicit_step(self, steps: NdfSteps, here: Place, end: float) -> Place | None:
        """Where one such step leads; None where it is to be taken by velocities."""
        ...


@dataclass(frozen=True)
class Control:
    """Accuracy wanted of a time method.

    Attributes
    ----------
    rtol, atol : float
        Relative and absolute tolerance of adaptive methods, per entry of the state; of any method, of the depth grid.
    step : float or None
        Step size of fixed-step methods (the last step of an interval is shortened); None: one step per output interval.
    solved : float
        How many times more accurately a method that `iterates` solves its equations, as far as round-off lets.
    """

    rtol: float
    atol: float
    step: float | None
    solved: float = 1.0


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
    7. `formula(control, **options)` is the same method for members with steps of their own (`formulas.Formula`), or
       None; a class does not inherit it.
    8. `differentiates`: it asks for the derivative of the velocity as a matrix, of any flow.
    9. `iterates`: a step solves equations, and no more accurately than the tolerances and `Control.solved` ask.
    10. `z`: the end-to-end map of `state`, where the step has told it; else None.
    11. It raises Stopped when it cannot go on; `t` and `state` stay those of the last accepted step.
    """

    one_step: ClassVar[bool] = True
    differentiates: ClassVar[bool] = False
    iterates: ClassVar[bool] = False
    formula: ClassVar[Callable[..., Any] | None] = None
    z: Tensor | None = None

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


def _kind(method: Method) -> type[Any]:
    """The class that makes a method, where it is known to be one."""
    kind: Any = getattr(method, "func", method)
    return kind if isinstance(kind, type) else object


def fixed_steps(method: Method) -> bool:
    """Whether a method has fixed steps, and no use for tolerances."""
    return issubclass(_kind(method), FixedStepper)


def one_step(method: Method) -> bool:
    """Whether a method is known to end its steps where it is told to."""
    kind = _kind(method)
    return issubclass(kind, Stepper) and kind.one_step


def iterates(method: Method) -> bool:
    """Whether the steps of a method are known to depend on the tolerances by more than their size."""
    kind = _kind(method)
    return issubclass(kind, Stepper) and kind.iterates


def differentiates(method: Method) -> bool:
    """Whether a method is known to ask for the derivative of the velocity as a matrix."""
    kind = _kind(method)
    return issubclass(kind, Stepper) and kind.differentiates


def own_steps(method: Method) -> Callable[..., Any] | None:
    """What makes the formula by which members take steps of their own, from the control; None where there is none."""
    # That of a class itself: one that is made of it may take other steps.
    formula = vars(_kind(method)).get("formula")
    return None if formula is None else partial(formula, **getattr(method, "keywords", {}))


METHODS: Registry[Method] = Registry("time method")


def name_of(method: Method) -> str:
    """What a method is registered as, or its class is called."""
    return next((name for name, known in METHODS.items() if known is method), _kind(method).__name__)


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
