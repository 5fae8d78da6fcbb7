"""LARS (You et al. 2017): each layer moves by η times its own size along its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..steprule import STEP_RULES, Ground, StepRule, directed, need_matrices


@STEP_RULES.register("lars")
class Lars(StepRule):
    """W_{n+1}(s) = W_n(s) − η ‖W_n(s)‖ g_n(s) / ‖g_n(s)‖: the trust ratio sees the size of W, which gauges change."""

    equivariant = False

    def __init__(self, ground: Ground, rate: float) -> None:
        super().__init__(ground, rate)
        need_matrices("lars", ground)

    def step(self, n: int, state: Tensor) -> Tensor:
        g = self.ground.gradient(state)
        size = torch.linalg.matrix_norm(state, keepdim=True)
        return state - self.rate * size * directed(g, torch.linalg.matrix_norm(g, keepdim=True))
