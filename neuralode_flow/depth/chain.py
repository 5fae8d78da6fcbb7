"""Products of a chain of matrices U_L … U_1, and the gradient of a function of the product."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .engine import choose
from .products import add_identity, identity_like, outside

__all__ = ["add_identity", "gradient", "identity_like", "outside", "product"]


def product(U: Tensor) -> Tensor:
    """U_L … U_1: `(..., L, d, d)` → `(..., d, d)`. Differentiable."""
    return choose(U).chain(U)


def gradient(U: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor:
    """∂f/∂U_k = (U_L … U_{k+1})ᵀ G (U_{k−1} … U_1)ᵀ with G = outer(U_L … U_1), for all k.

    Parameters
    ----------
    U : Tensor (..., L, d, d)
    outer : callable, (..., d, d) → (..., d, d)

    Returns
    -------
    Tensor (..., L, d, d)
    """
    return choose(U).chain(U, outer)
