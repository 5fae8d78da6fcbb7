"""Half the squared distance to a target map."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import count, float_tensor
from ..matrices import slogdet
from .base import PASSED, Squares, check_z, loss_said, of_some, side


def half_square(residual: Tensor, axes: int = 2) -> Tensor:
    """½ Σ r² over the last axes of a residual."""
    return residual.square().sum(tuple(range(-axes, 0))) / 2 if axes else residual.square() / 2


def rests(target: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor]:
    """The two least values above f(target) at which a flow can rest on det z = 0, `(...)` each; NaN if det target ≥ 0.

    f is half the squared distance from `weighted`. Its critical points among the singular matrices leave out some
    singular values s of it (Eckart–Young), at ½ Σ s²: the least leaves out s₁, the next s₂ or both; equal ones are one
    value. inf where there is no second one.
    """
    halves = torch.linalg.svdvals(weighted).flip(-1).square() / 2
    least = halves[..., 0]
    others = torch.cat((halves, halves[..., :2].sum(-1, keepdim=True)), -1) if halves.shape[-1] > 1 else halves
    # To round-off of the largest: singular values are computed no better.
    equal = least.unsqueeze(-1) + 1e3 * torch.finfo(halves.dtype).eps * halves[..., -1:]
    following = torch.where(others > equal, others, torch.inf).amin(-1)
    reflected = slogdet(target)[0] < 0
    return torch.where(reflected, least, torch.nan), torch.where(reflected, following, torch.nan)


@PASSED.tested
class Quadratic:
    """f(z) = ½‖z − T‖² in the Frobenius norm.

    Parameters
    ----------
    target : Tensor (..., d, d), or (n,), or of another shape of z
        T; leading axes make an ensemble.
    axes : int, optional
        How many of its last axes are one z, 0 for a number; by default 2, or all of a target that has fewer.

    Raises
    ------
    TypeError, ValueError
        If the target is not a finite floating-point tensor, or axes is not an integer from 0 to the number of its axes.

    Examples
    --------
    >>> loss = nf.Quadratic(torch.eye(2))
    >>> z = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    >>> float(loss(z)), loss.gradient(z).tolist()
    (2.0, [[0.0, 2.0], [0.0, 0.0]])
    """

    repeats = True

    def __init__(self, target: Tensor, axes: int | None = None) -> None:
        self.target = float_tensor("target", target)
        number = min(target.ndim, 2) if axes is None else count("axes", axes, least=0, most=target.ndim)
        self.shape = target.shape[target.ndim - number :]
        self.dimension: int | None = side(self.shape)

    def __repr__(self) -> str:
        return loss_said(self)

    def __call__(self, z: Tensor) -> Tensor:
        check_z(z, self.shape)
        return half_square(z - self.target, len(self.shape))

    def gradient(self, z: Tensor) -> Tensor:
        return z - self.target

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        return direction

    def squares(self) -> Squares | None:
        """Half the square of z − T; None where z is no matrix."""
        return Squares(None, self.target) if len(self.shape) == 2 else None

    def select(self, members: Sequence[int], index: Tensor) -> Quadratic:
        """The loss of some members `(n,)` of a batch."""
        some = copy.copy(self)
        some.target = of_some(self.target, len(self.shape), members, index)
        return some

    def boundary(self) -> Tensor | None:
        """½σ_min(T)² where det T < 0 (Eckart–Young), else NaN; None where T is not square."""
        return None if self.dimension is None else rests(self.target, self.target)[0]

    def infimum(self) -> Tensor | None:
        """The infimum over det z > 0: 0, or `boundary()` where det T < 0; None where T is not square."""
        return None if (least := self.boundary()) is None else least.nan_to_num(nan=0.0)

    def plateau(self) -> Tensor | None:
        """The next value after `boundary()` at which a flow can rest: ½σ² or ½(σ₁² + σ₂²) of T."""
        return None if self.dimension is None else rests(self.target, self.target)[1]
