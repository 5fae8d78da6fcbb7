"""Any function of z that is written in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import count
from ..display import named
from ..modes import gradient, undisturbed
from .base import check_z, loss_said


class Custom:
    """Any f written in torch; its gradient comes from autograd.

    Parameters
    ----------
    f : callable, z → scalar Tensor
        It is called with one z at a time, also for ensembles.
    dimension : int, optional
        d, when f only fits matrices of one size d × d.
    axes : int
        How many axes one z has: further leading ones are members of an ensemble; a z with fewer is taken whole.

    Raises
    ------
    TypeError, ValueError
        If f is not callable, the dimension not a positive integer or axes not an integer >= 0, or later if f does not
        return a scalar tensor that depends on z.

    Examples
    --------
    >>> loss = nf.Custom(lambda z: (torch.linalg.det(z) - 2) ** 2)
    >>> [[round(entry, 12) for entry in row] for row in loss.gradient(torch.eye(2)).tolist()]
    [[-2.0, 0.0], [0.0, -2.0]]
    """

    def __init__(self, f: Callable[[Tensor], Tensor], dimension: int | None = None, *, axes: int = 2) -> None:
        if not callable(f):
            raise TypeError(f"f must be a function z tensor -> scalar tensor, got {type(f).__name__}")
        self.f = f
        self.dimension: int | None = None if dimension is None else count("dimension", dimension)
        self.axes = count("axes", axes, least=0)
        self.shape = None if self.dimension is None else (self.dimension, self.dimension)

    def __repr__(self) -> str:
        return loss_said(self, named(self.f))

    def __call__(self, z: Tensor) -> Tensor:
        check_z(z, self.shape)
        return self._map(self._value, z)

    @undisturbed
    def gradient(self, z: Tensor) -> Tensor:
        return self._map(self._one_gradient, z)

    @undisturbed
    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        return self._map(self._one_hessian, *torch.broadcast_tensors(z, direction))

    def _one_hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        """The gradient of ⟨∇f(z), direction⟩."""

        def along(point: Tensor) -> Tensor:
            # What was made in inference mode cannot be kept for autograd.
            return (self._one_gradient(point) * (direction.clone() if direction.is_inference() else direction)).sum()

        bend = gradient(along, z)
        return torch.zeros_like(z) if bend is None else bend  # f is linear

    def _value(self, z: Tensor) -> Tensor:
        value = self.f(z)
        if not isinstance(value, Tensor) or value.ndim != 0:
            raise TypeError(f"f must return a scalar tensor, got {getattr(value, 'shape', type(value).__name__)}")
        if not value.is_floating_point():
            raise TypeError(f"f must return a floating-point number, got dtype {value.dtype}")
        return value

    def _one_gradient(self, z: Tensor) -> Tensor:
        slope = gradient(self._value, z)
        if slope is None:
            raise TypeError("f must depend on z through torch operations, but autograd finds no path from z to f(z)")
        return slope

    def _map(self, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """`function` of each member of an ensemble."""
        number = values[0].ndim - self.axes
        if number <= 0:
            return function(*values)
        batch, one = values[0].shape[:number], values[0].shape[number:]
        results = [function(*member) for member in zip(*(value.reshape(-1, *one) for value in values), strict=True)]
        return torch.stack(results).reshape(*batch, *results[0].shape)
