"""Exponential layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...matrices import matrix_exp
from ...modes import hidden
from ..engine import compiled
from ..products import add_identity, multiply
from .base import own


class Exponential:
    """U = exp(A) = E² with E = exp(A/2).

    The adjoint of the Fréchet derivative is Eᵀ [sinh(ad/2)/(ad/2)](M) Eᵀ with ad(M) = AᵀM − MAᵀ, summed to round-off:
    Σ_k ad²ᵏ(M) / (4ᵏ (2k+1)!), at most ‖A‖²ᵏ/(2k+1)! ‖M‖ each. Two terms do for the small A of a deep network; for
    large A the derivative is read off the exponential of [[Aᵀ, M], [0, Aᵀ]] (Al-Mohy–Higham 2009).
    """

    label = "exponential"
    compiled = compiled.EXP
    order = 2
    quadratic_law = False

    SERIES_NORM = 2.0  # above it the terms grow before they shrink, and digits are lost

    def layer(self, A: Tensor) -> tuple[Tensor, tuple[Tensor, float]]:
        norm = math.inf if hidden(A) else float(torch.linalg.matrix_norm(A.detach()).max())
        E = _taylor_exp(A / 2, norm / 2) if norm <= self.SERIES_NORM else matrix_exp(A / 2)
        return multiply(E, E), (E, norm)

    def adjoint(self, A: Tensor, saved: tuple[Tensor, float], M: Tensor) -> Tensor:
        E, norm = saved
        B = A.mT
        if not norm <= self.SERIES_NORM:
            d = A.shape[-1]
            # Linear in M, which is brought to size one: a large M would make the exponential scale A away.
            size = M.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(M.dtype).tiny)
            block = torch.cat((torch.cat((B, M / size), -1), torch.cat((torch.zeros_like(B), B), -1)), -2)
            return size * matrix_exp(block)[..., :d, d:]
        square, term, total = multiply(B, B), M, M
        for k in range(1, _terms(norm, 2, torch.finfo(A.dtype).eps)):
            middle = multiply(multiply(B, term), B)
            term = multiply(square, term).add_(multiply(term, square)).sub_(middle, alpha=2)
            term /= 8 * k * (2 * k + 1)
            total = total + term
        return multiply(multiply(E.mT, total), E.mT)


def _terms(norm: float, stride: int, eps: float) -> int:
    """How many terms of Σ_k norm^{stride·k}/(stride·k + stride − 1)! stand above round-off."""
    k, size = 0, 1.0
    while size > eps / 8:
        k += 1
        for factor in range(stride * k, stride * (k + 1)):
            size *= norm / factor
    return k


def _taylor_exp(A: Tensor, norm: float) -> Tensor:
    """exp(A) for ‖A‖ <= norm <= 1 by Horner's rule in A²; torch's own spends longer on sorting a batch by norm."""
    degree = max(1, _terms(norm, 1, torch.finfo(A.dtype).eps) - 1)
    square = multiply(A, A)
    factorials = [1 / math.factorial(k) for k in range(degree // 2 * 2 + 2)]
    result: Tensor | None = None  # Σ_{k >= 2j} A^{k − 2j}/k!
    for j in range(degree // 2, -1, -1):
        even, odd = factorials[2 * j : 2 * j + 2]
        pair = add_identity(A * odd, even)
        result = pair if result is None else pair.add_(multiply(square, result))
    assert result is not None
    return result


own("exp", Exponential())
