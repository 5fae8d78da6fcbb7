"""Least squares of linear observations of a z of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..checks import count, float_tensor, same_kind
from ..matrices import each_product
from .base import PASSED, check_z, loss_said, side


@PASSED.tested
class LeastSquares:
    """f(z) = 1/(2n) ‖A vec(z) − b‖²: any linear observation of a z of any shape.

    Parameters
    ----------
    A : Tensor (n, p)
    b : Tensor (n,)
    shape : sequence of int, optional
        Shape of z, with p entries that vec takes row by row; by default z is a vector (p,).

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or devices do not fit together, or an entry is not finite.

    Examples
    --------
    >>> loss = nf.LeastSquares(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), torch.tensor([3.0]), shape=(2, 2))
    >>> float(loss(torch.eye(2)))  # ½ (tr z − 3)²
    0.5
    """

    def __init__(self, A: Tensor, b: Tensor, shape: Sequence[int] | None = None) -> None:
        for name, value, axes in (("A", A, 2), ("b", b, 1)):
            if float_tensor(name, value, ndim=axes).ndim != axes:
                raise ValueError(f"{name} must have {axes} axes, got shape {tuple(value.shape)}")
        same_kind("b", b, "A", A)
        if len(b) != len(A):
            raise ValueError(f"A and b must have the same number of rows, got {len(A)} and {len(b)}")
        self.A, self.b = A, b
        self.shape = (A.shape[1],) if shape is None else tuple(count("shape", part, least=0) for part in shape)
        if math.prod(self.shape) != A.shape[1]:
            raise ValueError(f"shape must have {A.shape[1]} entries, one for each column of A, got {self.shape}")
        self.dimension: int | None = side(self.shape)

    def __repr__(self) -> str:
        return loss_said(self, f"{len(self.b)} observations")

    def _observed(self, z: Tensor) -> Tensor:
        flat = z.reshape(*z.shape[: z.ndim - len(self.shape)], 1, self.A.shape[1])
        return each_product(flat, self.A.mT).squeeze(-2)

    def _residual(self, z: Tensor) -> Tensor:
        return self._observed(z) - self.b

    def _pulled_back(self, slope: Tensor, shape: Sequence[int]) -> Tensor:
        return (each_product(slope.unsqueeze(-2), self.A) / len(self.b)).reshape(shape)

    def __call__(self, z: Tensor) -> Tensor:
        check_z(z, self.shape)
        return self._residual(z).square().sum(-1) / (2 * len(self.b))

    def gradient(self, z: Tensor) -> Tensor:
        return self._pulled_back(self._residual(z), z.shape)

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        return self._pulled_back(self._observed(direction), direction.shape)
