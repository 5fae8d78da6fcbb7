"""The solver classes of `scipy.integrate`, driven step by step, under their own names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import scipy.integrate
import torch
from torch import Tensor

from .base import METHODS, Control, Stopped, Velocity

# Their own interpolation between steps is of lower order than the step, so steps are made to end on output times.
ENDING_ON_OUTPUTS = ("RK23", "RK45", "DOP853", "Radau")
# Interpolation by the polynomial of the method itself is as accurate as the step.
INTERPOLATING = ("BDF", "LSODA")


def solve(velocity: Velocity, state: Tensor, times: list[float], control: Control, *, name: str) -> Iterator[Tensor]:
    """Any solver class of SciPy; the state is handed over as a flat float64 array."""

    def right_hand_side(t: float, y: np.ndarray) -> np.ndarray:
        return velocity(t, to_state(y)).reshape(-1).double().cpu().numpy()

    def to_state(y: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(y)).to(state).reshape(state.shape)

    ending = name in ENDING_ON_OUTPUTS
    first_bound = times[1] if ending else times[-1]
    start = state.reshape(-1).double().cpu().numpy()
    solver = getattr(scipy.integrate, name)(
        right_hand_side, times[0], start, first_bound, rtol=control.rtol, atol=control.atol
    )
    for time in times[1:]:
        if ending:
            solver.t_bound, solver.status = time, "running"
        while solver.t < time:
            proposed = getattr(solver, "h_abs", 0.0)
            message = solver.step()
            if solver.status == "failed":
                raise Stopped(f"{name} of SciPy stopped at t = {solver.t:.6g}: {message}")
            if ending and solver.t == time:
                solver.h_abs = max(solver.h_abs, proposed)  # a step cut short says nothing about the next one
        yield to_state(solver.y if solver.t == time else solver.dense_output()(time))


for _name in (*ENDING_ON_OUTPUTS, *INTERPOLATING):
    METHODS.register(_name)(partial(solve, name=_name))
