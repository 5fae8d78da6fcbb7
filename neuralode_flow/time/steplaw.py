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
    whole; of larger ones 4 orthonormal directions in general position, whose distance times √(d / 4) estimates the
    Frobenius norm: its square is right on the average, and zero only where nothing is wrong.

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
        self.flow, self.directions, self.scale = flow, directions.to(start), (d / number) ** 0.5
        self.first = flow.law(start) @ self.directions
        self.added = flow.step_law(torch.zeros_like(start), self.directions)

    def drift(self, state: Tensor) -> Tensor:
        """The largest distance over depth, `(...)`."""
        moved = self.flow.law(state) @ self.directions - self.first - self.flow.law_of_steps(self.added)
        if moved.shape[-3] == 0:
            return moved.new_zeros(moved.shape[:-3])
        return self.scale * torch.linalg.matrix_norm(moved).amax(-1)
