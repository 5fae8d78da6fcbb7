"""Nesterov's momentum: the gradient is taken where the momentum leads, V_{n+1} = β V_n − η g(W_n + β V_n)."""

from __future__ import annotations

from torch import Tensor

from ..steplaw import StepLaw
from ..steprule import STEP_RULES
from .heavy_ball import HeavyBall


@STEP_RULES.register("nesterov")
class Nesterov(HeavyBall):
    """Nesterov's momentum, V_{n+1} = β V_n − η g(W_n + β V_n), W_{n+1} = W_n + V_{n+1}."""

    def law(self) -> StepLaw | None:
        return None  # its gradients are those at other places than its steps start from

    def _gradient(self, state: Tensor) -> Tensor:
        return self.ground.gradient(state + self.momentum * self.remembered("V"))
