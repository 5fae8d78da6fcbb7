"""Regressions that weigh residuals otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..display import named
from ..modes import gradient, undisturbed
from .base import LOSSES, check_z, loss_said
from .samples import Samples


class Separable(Samples):
    """f(z) = 1/n Σ_i Σ_o ρ((R z P x_i − y_i)_o): a regression that weighs residuals by any smooth ρ.

    Parameters
    ----------
    rho : callable
        Tensor → tensor of the same shape, entry by entry, written in torch; ρ(r) = r²/2 is `Regression`.
    x, y, readin, readout
        As in `Regression`.

    Raises
    ------
    TypeError, ValueError
        If rho is no function, or shapes, dtypes or devices do not fit together, or an entry is not finite.

    Examples
    --------
    >>> x = torch.eye(2)
    >>> loss = nf.Separable(lambda r: torch.log(torch.cosh(r)), x, 2 * x)
    >>> float(loss(2 * torch.eye(2)))
    0.0
    >>> slope = loss.gradient(torch.eye(2)).diagonal()
    >>> bool(torch.allclose(slope, -torch.tanh(torch.ones(2)) / 2))
    True
    """

    def __init__(
        self,
        rho: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        readin: Tensor | None = None,
        readout: Tensor | None = None,
    ) -> None:
        if not callable(rho):
            raise TypeError(f"rho must be a function of a tensor, entry by entry, got {type(rho).__name__}")
        self.rho = rho
        super().__init__(x, y, readin, readout)

    def __repr__(self) -> str:
        return loss_said(self, f"{len(self.x)} samples", f"rho={named(self.rho)}")

    def __call__(self, z: Tensor) -> Tensor:
        check_z(z, self.shape)
        return self.rho(self._prediction(z) - self.y).sum((-2, -1)) / len(self.x)

    @undisturbed
    def gradient(self, z: Tensor) -> Tensor:
        return self._pulled_back(self._slope(self._prediction(z) - self.y))

    @undisturbed
    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        bend = gradient(lambda residual: self._slope(residual).sum(), self._prediction(z) - self.y)
        return self._pulled_back(self._prediction(direction) * (0.0 if bend is None else bend))

    def _slope(self, residual: Tensor) -> Tensor:
        """ρ' of each residual."""
        slope = gradient(lambda r: self.rho(r).sum(), residual)
        if slope is None:
            raise TypeError("rho must depend on its residuals through torch operations, but autograd finds no path")
        return slope


@LOSSES.register("log_cosh")
def log_cosh(x: Tensor, y: Tensor, readin: Tensor | None = None, readout: Tensor | None = None) -> Separable:
    """ρ(r) = log cosh r: quadratic near 0 and |r| far from it, smooth between."""
    return Separable(_log_cosh, x, y, readin, readout)


def _log_cosh(r: Tensor) -> Tensor:
    return r + torch.nn.functional.softplus(-2 * r) - math.log(2)
