"""Label noise: gradient descent on all samples, with fresh noise in the targets at each step."""

from __future__ import annotations

import torch
from torch import Tensor

from ...signatures import MixedSeed, Positive
from ..steprule import STEP_RULES, AlongGradient, Ground
from .sgd import need_samples, source


@STEP_RULES.register("label_noise")
class LabelNoise(AlongGradient):
    """W_{n+1} = W_n − η g_n with y + σ ξ_n for y, ξ_n normal; all members of a batch of states see the same noise."""

    def __init__(self, ground: Ground, rate: float, *, sigma: Positive = 0.1, seed: MixedSeed = 0) -> None:
        super().__init__(ground, rate)
        self.loss = need_samples("label_noise", ground)
        self.sigma, self.seed = sigma, seed
        self.loss.part(shift=torch.zeros_like(self.loss.samples.y))  # classes have no noise: they say so now

    def along(self, n: int, state: Tensor) -> Tensor:
        y = self.loss.samples.y
        noise = torch.randn(y.shape, generator=source(self.seed, n), dtype=torch.float64, device="cpu").to(y)
        return -self.ground.with_loss(state, self.loss.part(shift=self.sigma * noise))
