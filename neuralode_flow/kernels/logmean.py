"""The kernel of infinite depth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..display import said
from .base import KERNELS, PASSED, check_values


def log_logmean(ell: Tensor) -> Tensor:
    """log logmean(x_a, x_b) of x = e^ℓ, (x_a − x_b)/(ℓ_a − ℓ_b): `(..., n)` → `(..., n, n)`. No x is formed."""
    a, b = ell.unsqueeze(-1), ell.unsqueeze(-2)
    r = (a - b).abs()
    return torch.maximum(a, b) + torch.where(r > 0, torch.log(-torch.expm1(-r) / r), 0.0)


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

    def __repr__(self) -> str:
        return said(self)

    def log_rate(self, ell: Tensor) -> Tensor:
        """A = ½: on symmetric S = log(zᵀz)/2 the flow is S' = −½(zᵀG + Gᵀz)."""
        return ell.new_full((*ell.shape, ell.shape[-1]), -math.log(2))

    def __call__(self, sigma: Tensor) -> Tensor:
        check_values(sigma)
        a, b = sigma.unsqueeze(-1), sigma.unsqueeze(-2)
        hi, lo = torch.maximum(a, b), torch.minimum(a, b)
        ratio = (hi - lo) / lo
        r = torch.where(torch.isinf(ratio), torch.log(hi) - torch.log(lo), torch.log1p(ratio))
        twice_r = torch.where(hi == lo, 0.0, 2 * r)  # infinite where lo = 0, and K is 0 there
        ratio = torch.where(twice_r > 0, -torch.expm1(-twice_r) / twice_r, 1.0)
        return hi.square() * ratio


KERNELS.register("logmean")(LogMean)
