"""Gradient descent: W_{n+1} = W_n − η g_n, the explicit Euler steps of the flow."""

from __future__ import annotations

from torch import Tensor

from ..steprule import STEP_RULES, AlongGradient


@STEP_RULES.register("gd")
class GradientDescent(AlongGradient):
    """Gradient descent, W_{n+1} = W_n − η g_n."""

    def along(self, n: int, state: Tensor) -> Tensor:
        return self.ground.velocity(state)
