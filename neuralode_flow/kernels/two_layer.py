"""The kernel of two layers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import real
from ..display import said
from .base import KERNELS, PASSED, check_values
from .logmean import log_logmean


@PASSED.tested
class TwoLayer:
    """Two λ-balanced layers, W₂ᵀW₂ − W₁W₁ᵀ = λI: K_ab = √(σ_a² + λ²/4) + √(σ_b² + λ²/4).

    Flow time is that of Euclidean gradient flow on (W₁, W₂).

    Parameters
    ----------
    shift : float
        λ, of either sign.

    Examples
    --------
    >>> nf.TwoLayer(shift=0.0)(torch.tensor([2.0, 1.0])).tolist()  # σ_a + σ_b
    [[4.0, 3.0], [3.0, 2.0]]
    """

    positive_determinant = False

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = real("shift", shift)

    def __repr__(self) -> str:
        return said(self, f"shift={self.shift:g}" if self.shift else "")

    @property
    def keeps_sign(self) -> bool:
        """Two balanced layers, λ = 0, become singular together, and then do not move across det z = 0."""
        return self.shift == 0

    def log_rate(self, ell: Tensor) -> Tensor:
        """A_ab = 1/logmean(σ_a, σ_b), for λ = 0."""
        return -log_logmean(ell)

    def __call__(self, sigma: Tensor) -> Tensor:
        check_values(sigma)
        root = self._root(sigma)
        return root.unsqueeze(-1) + root.unsqueeze(-2)

    def slope(self, sigma: Tensor) -> Tensor:
        """∂K_ab/∂σ_a = σ_a / √(σ_a² + λ²/4), `(..., d, d)`."""
        slope = sigma / self._root(sigma) if self.shift else torch.ones_like(sigma)
        return slope.unsqueeze(-1).expand(*sigma.shape, sigma.shape[-1])

    def _root(self, sigma: Tensor) -> Tensor:
        # No square, which would vanish below 1e-162; without λ also differentiable at σ = 0.
        return torch.hypot(sigma, sigma.new_full((), self.shift / 2)) if self.shift else sigma


KERNELS.register("two_layer")(TwoLayer)
