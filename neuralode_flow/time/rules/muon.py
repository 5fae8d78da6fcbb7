"""Muon (Jordan et al. 2024): a step along the polar factor of the gradient, or of its momentum, at each depth."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...signatures import known
from ..steprule import STEP_RULES, Fraction, Ground, StepRule, need_matrices

POLAR = ("svd", "newton_schulz")

# The polynomial of Muon: five steps bring singular values of 1e-3 … 1 between 0.68 and 1.14, and not to 1.
_QUINTIC, _STEPS = (3.4445, -4.7750, 2.0315), 5


@STEP_RULES.register("muon")
class Muon(StepRule):
    """Along the polar factor UVᵀ of the gradient UΣVᵀ, or of its momentum, at each depth."""

    def __init__(
        self,
        ground: Ground,
        rate: float,
        *,
        momentum: Fraction = 0.0,
        polar: Annotated[str, known(dict.fromkeys(POLAR), "polar factor")] = "svd",
    ) -> None:
        super().__init__(ground, rate)
        need_matrices("muon", ground)
        if ground.start.shape[-1] == 1:
            raise ValueError("rule='muon' has nothing to turn in 1 × 1 matrices, where it is the sign; choose sign")
        self.momentum = momentum
        self.polar = exact if polar == "svd" else newton_schulz

    def step(self, n: int, state: Tensor) -> Tensor:
        g = self.ground.gradient(state)
        if self.momentum:
            g = self.memory["V"] = self.momentum * self.remembered("V") + g
        return state - self.rate * self.polar(g)


def exact(g: Tensor) -> Tensor:
    """UVᵀ of g = UΣVᵀ `(..., d, d)`, over the singular values that round-off leaves."""
    U, sigma, Vh = torch.linalg.svd(g)
    kept = sigma > g.shape[-1] * torch.finfo(g.dtype).eps * sigma[..., :1]
    return (U * kept.to(g).unsqueeze(-2)) @ Vh


def newton_schulz(g: Tensor) -> Tensor:
    """About UVᵀ, by five steps of Muon's polynomial from g / ‖g‖."""
    size = torch.linalg.matrix_norm(g, keepdim=True)
    X = g / size.clamp(min=torch.finfo(g.dtype).tiny)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        square = X @ X.mT
        X = a * X + (b * square + c * square @ square) @ X
    return X
