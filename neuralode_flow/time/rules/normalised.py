"""Normalised gradient descent: steps of length η in the norm of the flow, L² over depth."""

from __future__ import annotations

from torch import Tensor

from ..steprule import STEP_RULES, StepRule, directed


@STEP_RULES.register("normalised")
class Normalised(StepRule):
    """Normalised gradient descent, W_{n+1} = W_n − η g_n / ‖g_n‖ with the norm of L² over depth, of each member."""

    along_gradient = True

    def step(self, n: int, state: Tensor) -> Tensor:
        g = self.ground.gradient(state)
        return state - self.rate * directed(g, self.ground.norm(g))
