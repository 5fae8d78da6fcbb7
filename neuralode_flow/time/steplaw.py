"""The conserved quantity of a flow under steps along its gradient: it moves by what the steps themselves say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Of larger matrices the law is followed along so many directions, at a cost that a velocity does not notice.
_DIRECTIONS = 4


class StepLaw:
    """How far the law is from where steps along gradients have taken it.

    For a step Δ the law moves by ΔᵀΔ − ΔΔᵀ, whatever the loss (docs/math.md). Matrices of up to 4 × 4 are followed
    whole; of larger ones VᵀEV of a distance E, symmetric, for 4 orthonormal directions V in general position. Over
    all V the mean of ‖VᵀEV‖² is (a + b) ‖E‖² + b (tr E)² (derived here), so that ‖VᵀEV‖ / √(a + b) estimates ‖E‖,
    and is zero only where nothing is wrong; an E that is a multiple of the identity counts more than once.

    Parameters
    ----------
    flow : KnowsStepLaw
    start : Tensor
        The state whose law is the first.
    """

    def __init__(self, flow: Any, start: Tensor) -> None:
        d = start.shape[-1]
        number = min(d, _DIRECTIONS)
        random = torch.randn(d, number, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
        directions = torch.linalg.qr(random)[0] if number < d else torch.eye(d, dtype=torch.float64, device="cpu")
        self.flow, self.directions, self.scale = flow, directions.to(start), _scale(d, number)
        self.first = self._seen(flow.law(start))
        self.added = flow.step_law(torch.zeros_like(start), self.directions)

    def drift(self, state: Tensor) -> Tensor:
        """The largest distance over depth, `(...)`."""
        moved = self._seen(self.flow.law(state)) - self.first - self.flow.law_of_steps(self.added)
        if moved.shape[-3] == 0:
            return moved.new_zeros(moved.shape[:-3])
        return self.scale * torch.linalg.matrix_norm(moved).amax(-1)

    def _seen(self, law: Tensor) -> Tensor:
        return self.directions.mT @ law @ self.directions


def _scale(d: int, k: int) -> float:
    """1/√(a + b), where E[P_ij P_kl] = a δ_ij δ_kl + b (δ_ik δ_jl + δ_il δ_jk) of a random projection P of rank k."""
    if k == d:
        return 1.0
    a = k * (k * (d + 1) - 2) / (d * (d + 2) * (d - 1))
    b = (k - a * d) / (d * d + d)
    return float((a + b) ** -0.5)
