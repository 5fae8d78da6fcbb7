"""Gradient descent: W_{n+1} = W_n − η g_n, the explicit Euler steps of the flow."""

from __future__ import annotations

import torch
from torch import Tensor

from ..steprule import STEP_RULES, StepRule


@STEP_RULES.register("gd")
class GradientDescent(StepRule):
    """Gradient descent, W_{n+1} = W_n − η g_n."""

    along_gradient = True

    def step(self, n: int, state: Tensor) -> Tensor:
        return torch.add(state, self.ground.velocity(state), alpha=self.rate)
