"""The intrinsic dynamics: an ODE in the end-to-end map z alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..checks import unpatched
from ..depth.engine import divided, explicit, polar
from ..depth.engine.explicit import Legs, Ran, Tableau, Tried
from ..display import named
from ..kernels import DividedDifference, Kernel, LogKernel, check_kernel
from ..losses import Loss, check_square_loss
from ..matrices import orientation_preserving
from ..modes import hidden, plain, undisturbed
from .base import MOST_RESOLVED, as_matrix, check_matrices, factored, flow_said, hessian_in_frame, own_velocity
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

    many_directions = True

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

        A subclass, which may have another velocity, is integrated as it is, and so is one that was given another part.
        """
        parts = "velocity", "product", "law"
        given = any(name in vars(self) or not unpatched(IntrinsicFlow, name) for name in parts)
        if given or type(self) is not IntrinsicFlow or not getattr(self.kernel, "keeps_sign", False):
            return None
        return LogPolarFlow(self.loss, cast(LogKernel, self.kernel), self._rate)

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless the state is a finite square matrix that fits loss and kernel."""
        check_matrices("state", state, self.loss, 2)
        if self.kernel.positive_determinant:
            orientation_preserving("state", state)

    @undisturbed
    def velocity(self, state: Tensor) -> Tensor:
        """ż, shape `(..., d, d)`. Differentiable where the singular values differ; ValueError where they do not.

        Through the SVD derivatives of order n have a relative error of about ε/gapⁿ, with the least difference of two
        singular values over the largest as gap; up to ε^¼ (1e-4) they are refused.
        """
        layers = self._layers()
        known = None
        if layers is not None:
            known = polar.velocity_of_layers(self.loss, layers.shifts, layers.time_scale, state)
        if known is None:
            return self._velocity(state)
        value, lost = known
        return value if lost is None else torch.where(lost[..., None, None], self._velocity(state), value)

    def _layers(self) -> DividedDifference | None:
        """The kernel if it is that of layers, which the compiled engine knows."""
        kernel = self.kernel
        return kernel if type(kernel) is DividedDifference and unpatched(DividedDifference, "__call__") else None

    def _velocity(self, state: Tensor) -> Tensor:
        U, sigma, Vh = torch.linalg.svd(state)
        if not plain(state):
            _check_distinct(sigma)
        return -U @ (self.kernel(sigma) * (U.mT @ self.loss.gradient(state) @ Vh.mT)) @ Vh

    def knows_steps(self, state: Tensor) -> bool:
        """Whether the kernel is that of layers, and the compiled engine takes such a state."""
        return self._layers() is not None and own_velocity(self, IntrinsicFlow) and divided.takes(state)

    def explicit_steps(self, states: Tensor, slopes: Tensor, h: np.ndarray, tableau: Tableau) -> Tried | None:
        """A step of each state `(n, ..., d, d)` along its slope, of size h `(n,)`, by an explicit formula."""
        states, slopes = states.unsqueeze(-3), slopes.unsqueeze(-3)
        tried = explicit.steps(self._steps_of(states), states, slopes, h, self.loss, tableau)
        return tried and tried.without(-3)

    def explicit_runs(self, states: Tensor, slopes: Tensor, legs: Legs, tableau: Tableau) -> Ran | None:
        """Steps of states `(n, d, d)`, each on its way to a time."""
        states, slopes = states.unsqueeze(-3), slopes.unsqueeze(-3)
        model = self._steps_of(states) if type(self) is IntrinsicFlow else None  # another may have an end of its own
        ran = explicit.runs(model, states, slopes, legs, self.loss, tableau)
        return ran and ran.without(-3)

    def _steps_of(self, states: Tensor) -> explicit.Model | None:
        layers = self._layers()
        return None if layers is None else explicit.closed_of_layers(layers.shifts, layers.time_scale, states)

    def _rate(self, loss: Loss, z: Tensor) -> Tensor:
        """ż under another loss."""
        return IntrinsicFlow(loss, self.kernel).velocity(z)

    def knows_jacobian(self, state: Tensor) -> bool:
        """Whether the loss has a `hessian` and the kernel a `slope`, and nothing but numbers is asked for."""
        known = hasattr(self.loss, "hessian") and callable(getattr(self.kernel, "slope", None))
        return known and own_velocity(self, IntrinsicFlow) and plain(state)

    def jacobian(self, state: Tensor) -> Tensor:
        """The derivative of the velocity as a matrix `(n, n)` of the n numbers of a state."""
        return as_matrix(self.linearised(state), state)

    @undisturbed
    def linearised(self, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The derivative of the velocity at a state, a function of directions `(..., d, d)`; None where unknown.

        With E = UᵀGV and H̃ = UᵀHV, the velocity −U (K ∘ E) Vᵀ moves along H by the change of G and by

            −U [Σ_c K_{ac,b} P_ac E_cb + Σ_c E_ac R_cb K_{bc,a}] Vᵀ,   K_{ac,b} = (K_ab − K_cb) / (σ_a − σ_c),

        P_ac = (H̃_ac σ_c + σ_a H̃_ca)/(σ_a + σ_c) and R_cb = (σ_c H̃_cb + H̃_bc σ_b)/(σ_c + σ_b), the changes of (zzᵀ)^½
        and (zᵀz)^½ (Daleckii and Krein, for functions of both; derived here). It holds where singular values meet, and
        needs `hessian` of the loss and `slope` of the kernel.
        """
        if not self.knows_jacobian(state):
            return None
        hessian = cast(Any, self.loss).hessian
        U, sigma, Vh = torch.linalg.svd(state)
        K, E = self.kernel(sigma), U.mT @ self.loss.gradient(state) @ Vh.mT
        divided = _divided(sigma, K, cast(Any, self.kernel).slope(sigma))
        # Infinite at a singular value of 0 that three layers or more have: what moves it is left out.
        divided = divided.masked_fill(divided.isinf(), 0.0)
        a, b = sigma.unsqueeze(-1), sigma.unsqueeze(-2)
        both = (a + b).clamp(min=torch.finfo(sigma.dtype).tiny)
        of_rows, of_columns = divided * E.unsqueeze(-3), divided * E.mT.unsqueeze(-3)

        def product(direction: Tensor) -> Tensor:
            H = U.mT @ direction @ Vh.mT
            left = (H * b + a * H.mT) / both
            right = (a * H + H.mT * b) / both
            moved = (left.unsqueeze(-2) @ of_rows).squeeze(-2) + (right.unsqueeze(-2) @ of_columns).squeeze(-2).mT
            moved = moved + K * (U.mT @ hessian(state.expand_as(direction), direction) @ Vh.mT)
            return -U @ moved @ Vh

        return product

    def knows_resolvent(self, state: Tensor) -> bool:
        """Whether the loss has a `hessian`, for one z whose d² × d² matrices find a place."""
        ours = hasattr(self.loss, "hessian") and own_velocity(self, IntrinsicFlow) and plain(state)
        return ours and state.ndim == 2 and state.numel() <= MOST_RESOLVED

    def resolvent(self, state: Tensor) -> Callable[[float], Callable[[Tensor], Tensor]]:
        """γ ↦ (r ↦ (1 + γMH)⁻¹ r) with M G = U (K ∘ UᵀGV) Vᵀ and H the Hessian of f.

        It is the Jacobian without its part that is linear in ∇f(z), which tends to zero with the gradient.
        """
        U, sigma, Vh = torch.linalg.svd(state)
        H = hessian_in_frame(self.loss, state, U, Vh.mT)
        inner = -self.kernel(sigma).reshape(-1, 1) * H

        def at(gamma: float) -> Callable[[Tensor], Tensor]:
            solve = factored(inner, gamma)
            return lambda r: U @ solve((U.mT @ r @ Vh.mT).reshape(-1)).reshape(state.shape) @ Vh

        return at

    def product(self, state: Tensor) -> Tensor:
        """z is the state itself."""
        return state

    def law(self, state: Tensor) -> Tensor:
        """No function of z is conserved for every loss: an empty tensor `(..., 0, d, d)`."""
        return state.new_empty(*state.shape[:-2], 0, *state.shape[-2:])


# Singular values whose difference is at most that part of the largest have their divided difference from slopes.
_CLOSE = 3e-6


def _divided(sigma: Tensor, K: Tensor, slope: Tensor) -> Tensor:
    """(K_ab − K_cb) / (σ_a − σ_c) at [a, c, b]; the mean of the slopes ∂K_ab/∂σ_a and ∂K_cb/∂σ_c where they meet."""
    gap = sigma.unsqueeze(-1) - sigma.unsqueeze(-2)
    close = (gap.abs() <= _CLOSE * sigma[..., :1, None]).unsqueeze(-1)
    apart = (K.unsqueeze(-2) - K.unsqueeze(-3)) / gap.unsqueeze(-1).masked_fill(close, 1.0)
    return torch.where(close, (slope.unsqueeze(-2) + slope.unsqueeze(-3)) / 2, apart)


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
