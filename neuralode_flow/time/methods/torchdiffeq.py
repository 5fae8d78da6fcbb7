"""The methods of torchdiffeq, under their own names, driven step by step.

torchdiffeq interpolates values inside a step at 4th order, far below the tolerance, and says nothing between outputs;
so its solver classes (release 0.2.5) are made to end their steps on the output times, one call for each step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...compat import adaptive_start, adaptive_step, fixed_step, forget_steps, torchdiffeq_solver
from ...looks import Looks, as_one
from ..base import METHODS, FixedStepper, Start, Stepper, Velocity
from ..endings import Stopped
from ..formulas import TorchFormula

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
ONE_STEP = ("euler", "midpoint", "heun2", "heun3", "rk4")
MULTISTEP = ("explicit_adams", "implicit_adams", "fixed_adams")

# Adams methods of many steps are stable for tiny steps only; torchdiffeq's default of 11 blows up at h‖J‖ = 0.05.
ADAMS_STEPS = 4


class _Field:
    """The velocity in the form that torchdiffeq calls."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity = velocity

    def __call__(self, t: Tensor, state: Tensor, *, perturb: object = None) -> Tensor:
        return self.velocity(float(t), state)

    def callback_step(self, *_: Any) -> None: ...

    callback_accept_step = callback_reject_step = callback_step


def _translated(name: str, t: float, work: Callable[[], Any]) -> Any:
    """torchdiffeq's assertions and warnings as the sentence of a status."""
    try:
        with warnings.catch_warnings():
            # "… Solution may be incorrect": a failure, not a remark.
            warnings.filterwarnings("error", message="Functional iteration did not converge")
            return work()
    except (AssertionError, UserWarning) as error:
        code = "underflow" if "underflow" in str(error) else "implicit"
        raise Stopped(code, f"{name} of torchdiffeq stopped after t = {t:.6g}: {error}") from error


def _solver(name: str, start: Start, **options: Any) -> Any:
    control = start.control
    field = _Field(start.velocity)
    return torchdiffeq_solver(name, field, start.state, rtol=control.rtol, atol=control.atol, **options)


class AdaptiveStepper(Stepper):
    """An adaptive Runge–Kutta method; the step size is carried over a step cut short by an output time."""

    formula = TorchFormula

    def __init__(self, start: Start, *, name: str) -> None:
        super().__init__(start, name=name)
        memory, state = start.memory, start.state
        self.name = name
        self._solver = _solver(name, start, first_step=self.h or None)
        slope = step = None
        if "slope" in memory:
            slope = torch.as_tensor(memory["slope"], device=state.device).to(state).reshape(state.shape)
            step = self._time(float(memory["next"]))
        self._run = adaptive_start(self._solver, self._time(start.t), state, slope, step)

    def _time(self, t: float) -> Tensor:
        return torch.tensor(t, dtype=torch.float64, device=self.state.device)

    def _step(self, goal: float) -> None:
        while True:
            proposed = float(self._run.dt)
            cut = self.t + proposed * (1 + 1e-9) >= goal  # no sliver is left over
            start = self._run._replace(dt=self._time(goal - self.t)) if cut else self._run
            ended = _translated(self.name, self.t, partial(adaptive_step, self._solver, start))
            if float(ended.t1) > self.t:
                break
            self._run = ended
        if cut:
            # A step cut short says nothing about the next one.
            longest = self._time(max(float(ended.dt), proposed))
            ended = ended._replace(t1=self._time(goal), dt=longest)
        self._run = ended
        self.t, self.state = float(ended.t1), ended.y1

    def _slopes(self) -> tuple[Tensor, Tensor]:
        return self._before.memory["slope"], self._run.f1

    def memory(self) -> dict[str, Any]:
        return {"h": self.h, "slope": self._run.f1, "next": float(self._run.dt)}


class GridStepper(FixedStepper):
    """A method of fixed steps; the multistep ones keep their memory of earlier slopes."""

    def __init__(self, start: Start, *, name: str) -> None:
        super().__init__(start, name=name)
        self.name = name
        self._multistep, self._uniform = name in MULTISTEP, 0.0
        # One that remembers slopes cannot do a step again.
        self._looks = None if start.state.is_cpu or self._multistep else Looks()
        options = {"max_order": ADAMS_STEPS + 1} if self._multistep else {}
        self._solver = _solver(name, start, **options)

    def _fixed_step(self, start: float, end: float) -> Tensor:
        same = 1e-9 * self._uniform + 4 * math.ulp(max(abs(start), abs(end)))
        if self._multistep and abs(end - start - self._uniform) > same:
            # The formulas are those of equal steps, up to the round-off of times.
            forget_steps(self._solver)
            self._uniform = end - start
        # Times stay on the processor, where they are asked for.
        t0, t1 = (torch.tensor(t, dtype=torch.float64, device="cpu") for t in (start, end))
        step = partial(fixed_step, self._solver, t0, t1, self.state)
        return self.state + as_one(self._looks, lambda: _translated(self.name, start, step))


for _name in ADAPTIVE:
    METHODS.register(_name)(partial(AdaptiveStepper, name=_name))
for _name in (*ONE_STEP, *MULTISTEP):
    METHODS.register(_name)(partial(GridStepper, name=_name))
