"""Heavy ball (Polyak 1964): V_{n+1} = β V_n − η g_n, W_{n+1} = W_n + V_{n+1}, from rest."""

from __future__ import annotations

from torch import Tensor

from ..steplaw import MomentumLaw, StepLaw
from ..steprule import STEP_RULES, Fraction, Ground, StepRule


@STEP_RULES.register("heavy_ball")
class HeavyBall(StepRule):
    """Momentum, V_{n+1} = β V_n − η g(W_n), W_{n+1} = W_n + V_{n+1}."""

    def __init__(self, ground: Ground, rate: float, *, momentum: Fraction = 0.9) -> None:
        super().__init__(ground, rate)
        self.momentum = momentum

    def law(self) -> StepLaw | None:
        flow, start = self.ground.flow, self.ground.start
        return MomentumLaw(flow, start, self.momentum) if MomentumLaw.known(flow) else None

    def step(self, n: int, state: Tensor) -> Tensor:
        V = self.momentum * self.remembered("V") - self.rate * self._gradient(state)
        self.memory["V"] = V
        return state + V

    def _gradient(self, state: Tensor) -> Tensor:
        return self.ground.gradient(state)
