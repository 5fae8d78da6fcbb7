"""Adam (Kingma, Ba 2015): moments of every entry, so that it sees the coordinates."""

from __future__ import annotations

from torch import Tensor

from ...signatures import Positive
from ..steprule import STEP_RULES, Fraction, Ground, StepRule


@STEP_RULES.register("adam")
class Adam(StepRule):
    """Adam with bias correction, entry by entry, as Kingma and Ba have it and torch.optim.Adam does."""

    equivariant = False

    def __init__(
        self, ground: Ground, rate: float, *, beta1: Fraction = 0.9, beta2: Fraction = 0.999, epsilon: Positive = 1e-8
    ) -> None:
        super().__init__(ground, rate)
        self.betas, self.epsilon = (beta1, beta2), epsilon

    def step(self, n: int, state: Tensor) -> Tensor:
        g = self.ground.gradient(state)
        beta1, beta2 = self.betas
        first = self.memory["first"] = beta1 * self.remembered("first") + (1 - beta1) * g
        second = self.memory["second"] = beta2 * self.remembered("second") + (1 - beta2) * g.square()
        size = (second / (1 - beta2 ** (n + 1))).sqrt() + self.epsilon
        return state - self.rate * first / (1 - beta1 ** (n + 1)) / size
