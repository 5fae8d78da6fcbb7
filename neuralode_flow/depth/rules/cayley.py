"""Cayley layers, which are orthogonal for skew W."""

from __future__ import annotations

from torch import Tensor

from ...matrices import inverse
from ..engine import compiled
from ..products import add_identity, multiply
from .base import own


class Cayley:
    """U = (I − A/2)⁻¹(I + A/2) = 2R − I with R = (I − A/2)⁻¹, so that dU = R dA R."""

    label = "Cayley"
    compiled = compiled.CAYLEY
    order = 2
    quadratic_law = False

    def layer(self, A: Tensor) -> tuple[Tensor, Tensor]:
        R = inverse(add_identity(A * -0.5))
        return add_identity(2 * R, -1.0), R

    def adjoint(self, A: Tensor, saved: Tensor, M: Tensor) -> Tensor:
        return multiply(multiply(saved.mT, M), saved.mT)


own("cayley", Cayley())
