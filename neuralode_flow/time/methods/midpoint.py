"""The implicit midpoint rule: it keeps every quadratic law of the flow to round-off."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import METHODS, FixedStepper
from ..endings import Stopped

_MAX_SWEEPS = 200


@METHODS.register("implicit_midpoint")
class ImplicitMidpoint(FixedStepper):
    """y₁ = y₀ + h v((y₀ + y₁)/2), of order 2, by fixed-point iteration to round-off (Hairer–Lubich–Wanner VIII.6)."""

    def _fixed_step(self, start: float, end: float) -> Tensor:
        h, state = end - start, self.state
        slope = self.velocity(start, state)
        previous, round_off = float("inf"), 1e4 * torch.finfo(state.dtype).eps
        for _ in range(_MAX_SWEEPS):
            update = self.velocity(start + h / 2, state + h / 2 * slope)
            change = h * float((update - slope).abs().max())
            slope = update
            # The changes shrink until they are round-off; then they stop shrinking.
            if change == 0 or (change >= previous and change < round_off * (1 + float(state.abs().max()))):
                return state + h * slope
            previous = change
        raise Stopped(
            "implicit", f"implicit_midpoint found no solution at t = {start:.6g} with step {h:.3g}: use a smaller step"
        )
