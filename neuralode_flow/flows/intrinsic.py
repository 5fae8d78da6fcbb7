"""The intrinsic dynamics: an ODE in the end-to-end map z alone."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..display import named
from ..kernels import Kernel, LogKernel, check_kernel
from ..losses import Loss, check_square_loss
from ..matrices import orientation_preserving
from ..modes import hidden, plain, uncompiled
from .base import check_matrices, flow_said
from .polar import LogPolarFlow


class IntrinsicFlow:
    """ż = −U (K ∘ (UᵀGV)) Vᵀ with z = U diag(σ) Vᵀ and G = ∇f(z).

    With the kernel `LogMean` this is the limit of infinite depth under relaxed balanced initialisation,
    ż = −∫₀¹ (zzᵀ)^{1−s} G (zᵀz)^s ds (arXiv 2508.07370); with `DividedDifference` it is the flow of L layers.

    Where the exact flow keeps the sign of det z (`LogMean`, balanced layers) `integrate` carries it in logarithms of
    the singular values, so that no step can cross; states in and out are z, and `Trajectory.log_sigma` tells what z
    itself cannot hold.

    Parameters
    ----------
    loss : Loss
    kernel : Kernel

    Raises
    ------
    TypeError
        If loss or kernel is none.

    Examples
    --------
    >>> flow = nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2)), kernel=nf.LogMean())
    >>> path = nf.integrate(flow, torch.eye(2), [0.0, 1.0], "DOP853", rtol=1e-12, atol=1e-14)
    >>> known = nf.exact.aligned_limit(torch.tensor([0.0, 1.0]), torch.ones(2), 2 * torch.ones(2))
    >>> float((path.z[-1].diagonal() - known[-1]).abs().max()) < 1e-11
    True
    """

    def __init__(self, loss: Loss, kernel: Kernel) -> None:
        check_square_loss("loss", loss)
        check_kernel("kernel", kernel)
        self.loss = loss
        self.kernel = kernel

    def __repr__(self) -> str:
        return flow_said(self, named(self.kernel))

    @property
    def keeps_orientation(self) -> bool:
        """Whether det z keeps its sign for all time."""
        return self.kernel.positive_determinant or getattr(self.kernel, "keeps_sign", False)

    def carrier(self) -> LogPolarFlow | None:
        """The same flow in logarithms, by which it is integrated where det z keeps its sign; None elsewhere.

        A subclass, which may have another velocity, is integrated as it is.
        """
        own = type(self) is IntrinsicFlow and "velocity" not in vars(self)
        if not own or not getattr(self.kernel, "keeps_sign", False):
            return None
        return LogPolarFlow(self.loss, cast(LogKernel, self.kernel), self._rate)

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless the state is a finite square matrix that fits loss and kernel."""
        check_matrices("state", state, self.loss, tuple(state.shape[:-2]))
        if self.kernel.positive_determinant:
            orientation_preserving("state", state)

    @uncompiled
    def velocity(self, state: Tensor) -> Tensor:
        """ż, shape `(..., d, d)`. Differentiable where the singular values differ; ValueError where they do not.

        Through the SVD derivatives of order n have a relative error of about ε/gapⁿ, with the least difference of two
        singular values over the largest as gap; up to ε^¼ (1e-4) they are refused.
        """
        U, sigma, Vh = torch.linalg.svd(state)
        if not plain(state):
            _check_distinct(sigma)
        return -U @ (self.kernel(sigma) * (U.mT @ self.loss.gradient(state) @ Vh.mT)) @ Vh

    def _rate(self, loss: Loss, z: Tensor) -> Tensor:
        """ż under another loss."""
        return IntrinsicFlow(loss, self.kernel).velocity(z)

    def product(self, state: Tensor) -> Tensor:
        """z is the state itself."""
        return state

    def law(self, state: Tensor) -> Tensor:
        """No function of z is conserved for every loss: an empty tensor `(..., 0, d, d)`."""
        return state.new_empty(*state.shape[:-2], 0, *state.shape[-2:])


def _check_distinct(sigma: Tensor) -> None:
    """Raises where a derivative through the SVD is lost; under `vmap` it is NaN there."""
    if hidden(sigma) or sigma.shape[-1] == 1:
        return
    gap = float(((sigma[..., :-1] - sigma[..., 1:]) / sigma[..., :1]).detach().min())
    if not gap > torch.finfo(sigma.dtype).eps ** 0.25:
        raise ValueError(
            f"state has singular values that differ by {gap:.2g} of the largest, where the derivative of the velocity "
            f"through the SVD is lost: take it at values further apart, or by differences under torch.no_grad()"
        )
