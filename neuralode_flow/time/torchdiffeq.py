"""The methods of torchdiffeq, under their own names."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from functools import partial

import torch
import torchdiffeq
from torch import Tensor

from .base import METHODS, Control, Stopped, Velocity, substeps

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
ONE_STEP = ("euler", "midpoint", "heun2", "heun3", "rk4")
MULTISTEP = ("explicit_adams", "implicit_adams", "fixed_adams")

# Adams methods of many steps are stable for tiny steps only; torchdiffeq's default of 11 blows up at h‖J‖ = 0.05.
ADAMS_STEPS = 4


class _Field:
    """The velocity in the form that torchdiffeq calls; it keeps the longest step of an interval."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity = velocity
        self.longest = 0.0

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        return self.velocity(float(t), state)

    def callback_step(self, t0: Tensor, state: Tensor, dt: Tensor) -> None:
        # Called with the step that the controller proposes, before it is cut to end on an output time.
        self.longest = float(dt)


def adaptive(velocity: Velocity, state: Tensor, times: list[float], control: Control, *, name: str) -> Iterator[Tensor]:
    """An adaptive Runge–Kutta method, made to end a step on every output time.

    torchdiffeq interpolates values inside a step at 4th order, far below the tolerance, so each output interval is
    solved by a call of its own; the step size is carried over.
    """
    field = _Field(velocity)
    for start, end in itertools.pairwise(times):
        segment = torch.tensor([start, end], dtype=torch.float64, device=state.device)
        options: dict[str, object] = {"step_t": segment[1:]}
        if field.longest > 0:
            options["first_step"] = min(field.longest, end - start)
        values = _odeint(field, state, segment, name, options, control)
        state = values[-1]
        yield state


def fixed(velocity: Velocity, state: Tensor, times: list[float], control: Control, *, name: str) -> Iterator[Tensor]:
    """A method of fixed steps on a grid that contains the output times (multistep methods keep their memory)."""
    field = _Field(velocity)
    segments = [times] if name in MULTISTEP else [list(pair) for pair in itertools.pairwise(times)]
    for segment in segments:
        parts = [substeps(a, b, control.step) for a, b in itertools.pairwise(segment)]
        grid = torch.tensor(sorted(set(itertools.chain(*parts))), dtype=torch.float64, device=state.device)
        options: dict[str, object] = {"grid_constructor": lambda func, y0, t, grid=grid: grid}
        if name in MULTISTEP:
            options["max_order"] = ADAMS_STEPS + 1
        points = torch.tensor(segment, dtype=torch.float64, device=state.device)
        values = _odeint(field, state, points, name, options, control)
        state = values[-1]
        yield from values[1:]


def _odeint(
    field: _Field, state: Tensor, times: Tensor, name: str, options: dict[str, object], control: Control
) -> Tensor:
    solve = partial(torchdiffeq.odeint, method=name, rtol=control.rtol, atol=control.atol, options=options)
    try:
        if name not in MULTISTEP:
            return solve(field, state, times)
        with warnings.catch_warnings():
            # "… Solution may be incorrect": a failure, not a remark.
            warnings.filterwarnings("error", message="Functional iteration did not converge")
            return solve(field, state, times)
    except (AssertionError, UserWarning) as error:
        raise Stopped(f"{name} of torchdiffeq stopped after t = {float(times[0]):.6g}: {error}") from error


for _name in ADAPTIVE:
    METHODS.register(_name)(partial(adaptive, name=_name))
for _name in (*ONE_STEP, *MULTISTEP):
    METHODS.register(_name)(partial(fixed, name=_name))
