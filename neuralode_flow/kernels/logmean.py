"""The kernel of infinite depth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..display import said
from .base import KERNELS, PASSED, check_values

# In place of no difference: of this one (1 − e^{−r})/r is 1.
_TINY = 1e-30


def log_logmean(ell: Any) -> Any:
    """log logmean(x_a, x_b) of x = e^ℓ, (x_a − x_b)/(ℓ_a − ℓ_b): `(..., n)` → `(..., n, n)`. No x is formed.

    ℓ is a tensor or an array of NumPy.
    """
    xp = np if isinstance(ell, np.ndarray) else torch
    a, b = ell[..., None], ell[..., None, :]
    minus_r = -(abs(a - b) + _TINY)
    return xp.maximum(a, b) + xp.log(xp.expm1(minus_r) / minus_r)


@PASSED.tested
class LogMean:
    """Infinite depth under relaxed balance: K_ab = logmean(σ_a², σ_b²), K_aa = σ_a².

    Written as hi² (1 − e^{−2r}) / (2r) with hi the larger of the two and r = log(hi/lo), which holds near r = 0 and at
    σ = 0 alike (Marcotte–Peyré–Gribonval, arXiv 2508.07370; docs/math.md).

    Examples
    --------
    >>> nf.LogMean()(torch.tensor([2.0, 1.0])).tolist() == [[4.0, 3 / math.log(4)], [3 / math.log(4), 1.0]]
    True
    """

    positive_determinant = True
    keeps_sign = True
    near_zero = "the inverse of its logarithm"

    def __repr__(self) -> str:
        return said(self)

    def log_rate(self, ell: Tensor) -> Tensor:
        """A = ½: on symmetric S = log(zᵀz)/2 the flow is S' = −½(zᵀG + Gᵀz)."""
        return ell.new_full((*ell.shape, ell.shape[-1]), -math.log(2))

    def __call__(self, sigma: Tensor) -> Tensor:
        check_values(sigma)
        a, b = sigma.unsqueeze(-1), sigma.unsqueeze(-2)
        ell = torch.log(sigma)
        # Infinite where one of both is 0, and K is 0 there; logarithms may be one where the values are not.
        minus_2r = torch.where(a == b, -_TINY, -2 * (ell.unsqueeze(-1) - ell.unsqueeze(-2)).abs() - _TINY)
        return torch.maximum(a, b).square() * (torch.expm1(minus_2r) / minus_2r)

    def slope(self, sigma: Tensor) -> Tensor:
        """∂K_ab/∂σ_a = 2σ_a (r − 1 + e^{−r})/r² with r = 2 log(σ_a/σ_b), `(..., d, d)`; for σ > 0."""
        ell = torch.log(sigma)
        r = 2 * (ell.unsqueeze(-1) - ell.unsqueeze(-2))
        near = r.abs() < 0.05
        series = 1 / 2 - r / 6 * (1 - r / 4 * (1 - r / 5 * (1 - r / 6 * (1 - r / 7))))
        safe = torch.where(near, 1.0, r)
        return 2 * sigma.unsqueeze(-1) * torch.where(near, series, (safe + torch.expm1(-safe)) / safe.square())


KERNELS.register("logmean")(LogMean)
