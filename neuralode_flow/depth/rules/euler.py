"""Euler layers."""

from __future__ import annotations

from torch import Tensor

from ..engine import compiled
from ..products import identity_like
from .base import own


class Euler:
    """U = I + A."""

    label = "Euler"
    compiled = compiled.EULER
    order = 1
    quadratic_law = True

    def layer(self, A: Tensor) -> tuple[Tensor, None]:
        return identity_like(A) + A, None

    def adjoint(self, A: Tensor, saved: None, M: Tensor) -> Tensor:
        return M


own("euler", Euler())
