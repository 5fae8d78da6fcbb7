"""Normalised gradient descent: steps of length η in the norm of the flow, L² over depth."""

from __future__ import annotations

from torch import Tensor

from ..steprule import STEP_RULES, AlongGradient, directed


@STEP_RULES.register("normalised")
class Normalised(AlongGradient):
    """Normalised gradient descent, W_{n+1} = W_n − η g_n / ‖g_n‖ with the norm of L² over depth, of each member."""

    def along(self, n: int, state: Tensor) -> Tensor:
        velocity = self.ground.velocity(state)
        return directed(velocity, self.ground.norm(velocity))
