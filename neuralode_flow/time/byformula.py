"""Methods by their formulas: where the flow takes whole steps of them, and on accelerators.

There the processor looks at one number for each step that is tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..depth.engine.explicit import Tableau
from ..looks import Looks, as_one
from .base import Method, Start, Stepper, name_of, own_steps
from .endings import Stopped
from .formulas import Attempt, ExplicitFormula


class ByFormula(Stepper):
    """A method by its formula for members, of which this is one; states, stages and errors stay on their device.

    Parameters
    ----------
    start : Start
    method : Method
        One that has a formula.
    postpones : bool
        Whether looks at the numbers of a step are taken as one.
    """

    def __init__(self, start: Start, *, method: Method, postpones: bool = True) -> None:
        super().__init__(start, method=method, postpones=postpones)
        self._formula = own_steps(method)(start.control).on(start.state.device)  # type: ignore[misc]
        self._looks = Looks() if postpones else None
        self._name = name_of(method)
        self._later: Iterator[float] = iter(())  # how long after the start of the step the next velocities are
        y = self._formula.flat(start.state[None])
        kept = self._formula.remembered(start.memory)
        if kept is not None:
            f, self._next = torch.as_tensor(kept[0], device=y.device).to(y).reshape(y.shape), kept[1]
        else:
            f = self(np.arange(1), y)[0].clone()  # the flow may put its next velocity where this one is
            first = self.h or float(self._formula.first(self, y, f, start.end - start.t)[0])
            self._next = min(first, start.end - start.t)
        self._f = f

    def __call__(self, rows: np.ndarray, y: Tensor) -> tuple[Tensor, np.ndarray]:
        velocity = self.velocity(self.t + next(self._later, 0.0), self._state(y))
        return self._formula.flat(velocity[None]), np.ones(1, dtype=bool)

    def jacobians(self, rows: np.ndarray, y: Tensor) -> tuple[Tensor, np.ndarray]:
        return self.velocity.jacobian(self.t, self._state(y))[None], np.ones(1, dtype=bool)

    def explicit_steps(self, y: Tensor, f: Tensor, h: np.ndarray, tableau: Tableau) -> Attempt | None:
        if self._looks is not None:
            return None
        shape = self.state.shape
        tried = self.velocity.explicit_steps(self.t, y.reshape(shape), f.reshape(shape), h[0], tableau)
        if tried is None:
            return None
        ahead, slope = tried.ahead.reshape(y.shape), tried.slope.reshape(y.shape)
        return Attempt(np.arange(1), ahead, slope, np.array([tried.error]))

    def _state(self, y: Tensor) -> Tensor:
        return y.to(self.state).reshape(self.state.shape)

    def _step(self, goal: float) -> None:
        formula, t = self._formula, np.array([self.t])
        y, h = formula.flat(self.state[None]), np.array([self._next])
        begun, again = h, np.zeros(1, dtype=bool)
        while True:
            plan = formula.plan(t, h, goal, begun, again)
            if plan.lost.any():
                raise Stopped(
                    "underflow",
                    f"the step size of {self._name} underflowed at t = {self.t:.6g}: the tolerance is not met",
                )
            tried = self._tried(y, plan.h)
            accepted, h = formula.judged(tried.error, plan, again, plan.end == goal)
            if accepted.all():
                break
            again = ~accepted
        self.t, self.state = float(plan.end[0]), self._state(tried.y)
        self._ends, self._f, self._next = (self._f, tried.f), tried.f, float(h[0])

    def _tried(self, y: Tensor, h: np.ndarray) -> Attempt:
        """A step that is tried; its error over the tolerance is no number where there is a doubt."""
        looks = self._looks
        if looks is None:
            self._later = iter(self._formula.delays * h)
            return self._formula.tried(self, y, self._f, h)

        def work() -> Attempt:
            self._later = iter(self._formula.delays * h)
            tried = self._formula.tried(self, y, self._f, h)
            error = tried.error
            if looks.doubts:
                error = torch.where(looks.doubt(), torch.nan, error)
            return tried._replace(error=error.cpu())

        return as_one(looks, work, lambda tried: not bool(torch.isfinite(tried.error).all()))

    def _slopes(self) -> tuple[Tensor, Tensor]:
        first, last = map(self._state, self._ends)
        return first, last

    def memory(self) -> dict[str, Any]:
        return self._formula.memory(self._f[0], self._next) | {"h": self.h}


def in_motion(method: Method, start: Start) -> Stepper:
    """The method at its start: by its formula where the state is on an accelerator, or the flow takes whole steps."""
    formula, away = own_steps(method), on_device(start.state)
    if formula is None or not (away or (_explicit(formula) and start.velocity.knows_steps(start.state))):
        return method(start)
    return ByFormula(start, method=method, postpones=away)


def on_device(state: Tensor) -> bool:
    """Whether a state is on an accelerator."""
    return not state.is_cpu


def _explicit(formula: Any) -> bool:
    """Whether what makes a formula makes an explicit one."""
    kind = formula.func if isinstance(formula, partial) else formula
    return isinstance(kind, type) and issubclass(kind, ExplicitFormula)
