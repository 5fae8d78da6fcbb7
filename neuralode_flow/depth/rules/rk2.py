"""Layers of the Runge–Kutta method of order 2."""

from __future__ import annotations

from torch import Tensor

from ..engine import compiled
from ..products import add_identity, multiply
from .base import own


class RK2:
    """U = I + A + A²/2."""

    label = "RK2"
    compiled = compiled.RK2
    order = 2
    quadratic_law = False

    def layer(self, A: Tensor) -> tuple[Tensor, None]:
        return add_identity(multiply(A, A).mul_(0.5).add_(A)), None

    def adjoint(self, A: Tensor, saved: None, M: Tensor) -> Tensor:
        return multiply(A.mT, M).add_(multiply(M, A.mT)).mul_(0.5).add_(M)


own("rk2", RK2())
