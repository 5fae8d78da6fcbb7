"""Sign descent: every entry moves by η. It sees the coordinates."""

from __future__ import annotations

from torch import Tensor

from ..steprule import STEP_RULES, StepRule


@STEP_RULES.register("sign")
class Sign(StepRule):
    """Sign descent, W_{n+1} = W_n − η sign(g_n), entry by entry."""

    equivariant = False

    def step(self, n: int, state: Tensor) -> Tensor:
        return state - self.rate * self.ground.gradient(state).sign()
