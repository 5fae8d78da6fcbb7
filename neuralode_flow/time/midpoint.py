"""The implicit midpoint rule: it keeps every quadratic law of the flow to round-off."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from .base import METHODS, Control, Stopped, Velocity, substeps

_MAX_SWEEPS = 200


@METHODS.register("implicit_midpoint")
def implicit_midpoint(velocity: Velocity, state: Tensor, times: list[float], control: Control) -> Iterator[Tensor]:
    """y₁ = y₀ + h v((y₀ + y₁)/2), of order 2, by fixed-point iteration to round-off (Hairer–Lubich–Wanner VIII.6)."""
    for start, end in itertools.pairwise(times):
        for t0, t1 in itertools.pairwise(substeps(start, end, control.step)):
            state = _step(velocity, state, t0, t1 - t0)
        yield state


def _step(velocity: Velocity, state: Tensor, t: float, h: float) -> Tensor:
    slope = velocity(t, state)
    previous, round_off = float("inf"), 1e4 * torch.finfo(state.dtype).eps
    for _ in range(_MAX_SWEEPS):
        update = velocity(t + h / 2, state + h / 2 * slope)
        change = h * float((update - slope).abs().max())
        slope = update
        # The changes shrink until they are round-off; then they stop shrinking.
        if change == 0 or (change >= previous and change < round_off * (1 + float(state.abs().max()))):
            return state + h * slope
        previous = change
    raise Stopped(f"implicit_midpoint found no solution at t = {t:.6g} with step {h:.3g}: use a smaller step")
