"""Gradient descent with weight decay, of W or of the layers U = I + W/L: the option says of which."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...depth.rules.euler import Euler
from ...signatures import Positive, known
from ..steplaw import DecayLaw, StepLaw
from ..steprule import STEP_RULES, Ground, StepRule

OF = ("weights", "layers")


@STEP_RULES.register("weight_decay")
class WeightDecay(StepRule):
    """W_{n+1} = (1 − ημ) W_n − η g_n; `of="layers"` decays the layers U_k = I + W_k/L of an Euler network instead."""

    equivariant = False

    def __init__(
        self,
        ground: Ground,
        rate: float,
        *,
        decay: Positive = 0.01,
        of: Annotated[str, known(dict.fromkeys(OF), "thing that decays")] = "weights",
    ) -> None:
        super().__init__(ground, rate)
        self.decay = decay
        self.origin: Tensor | None = None  # of W, where U_k = 0
        if of == "layers":
            if type(getattr(ground.flow, "rule", None)) is not Euler:
                raise ValueError(
                    "of='layers' decays the U_k = I + W_k/L of a FiniteFlow of euler layers, and this is another flow; "
                    "of='weights' decays W"
                )
            depth, d = ground.start.shape[-3:-1]
            self.origin = -depth * torch.eye(d, dtype=ground.start.dtype, device=ground.start.device)

    def law(self) -> StepLaw | None:
        flow, start = self.ground.flow, self.ground.start
        kept = 1 - self.rate * self.decay
        return DecayLaw(flow, start, kept, self.origin) if DecayLaw.known(flow) else None

    def step(self, n: int, state: Tensor) -> Tensor:
        decaying = state if self.origin is None else state - self.origin
        return state - self.rate * (self.ground.gradient(state) + self.decay * decaying)
