"""Gradient descent normalised at each depth: every layer moves by η in Frobenius norm."""

from __future__ import annotations

import torch
from torch import Tensor

from ..steprule import STEP_RULES, Ground, StepRule, directed, need_matrices


@STEP_RULES.register("layer_normalised")
class LayerNormalised(StepRule):
    """Normalised at each depth s, W_{n+1}(s) = W_n(s) − η g_n(s) / ‖g_n(s)‖ with the Frobenius norm."""

    def __init__(self, ground: Ground, rate: float) -> None:
        super().__init__(ground, rate)
        need_matrices("layer_normalised", ground)

    def step(self, n: int, state: Tensor) -> Tensor:
        g = self.ground.gradient(state)
        return state - self.rate * directed(g, torch.linalg.matrix_norm(g, keepdim=True))
