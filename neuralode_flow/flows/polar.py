"""The intrinsic flow in logarithms: z = Q e^S, which no step in time can carry across det z = 0."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import LogKernel, log_logmean
from ..losses import Loss

# Newton–Schulz steps that bring Q back to the orthogonal matrices; of a Q further off than _FAR it is a trial step's,
# and its singular vectors are taken.
_FAR, _SWEEPS = 0.5, 6


class LogPolarFlow:
    """ż = −U (K ∘ (UᵀGV)) Vᵀ on the logarithmic polar form z = Q e^S, Q orthogonal and S symmetric.

    With e^S = V diag(σ) Vᵀ, E = VᵀQᵀGV and A_ab = K_ab log(σ_a/σ_b) / (σ_a² − σ_b²), the kernel's `log_rate`,

        S' = −V [A ∘ (diag(σ) E + Eᵀ diag(σ))] Vᵀ,      Q' = −Q V [A ∘ logmean(σ_a, σ_b) ∘ (E − Eᵀ)] Vᵀ

    (derived here from the polar form and the derivative of the matrix logarithm; for infinite depth S' is
    −½(zᵀG + Gᵀz)). Both sides are smooth where singular values meet, and det z = det Q · e^{tr S} has the sign of its
    start whatever the steps do: singular values far below the round-off of z stay what the exact flow makes them.

    Parameters
    ----------
    loss : Loss
    kernel : LogKernel
        One with `keeps_sign`.
    rate_of : callable
        (loss, z) → ż, the same velocity in z.

    Notes
    -----
    A state is `(..., 2, d, d)`, Q and S. Their changes are relative changes of z, so that all entries of a state have
    one absolute tolerance, (rtol + atol)/4d: with it z is at least as accurate as when z itself is integrated at rtol
    and atol, in as many evaluations (DOP853, dopri5 and auto, rtol 1e-6 … 1e-11, d = 2 … 12).
    """

    keeps_orientation = True

    def __init__(self, loss: Loss, kernel: LogKernel, rate_of: Callable[[Loss, Tensor], Tensor]) -> None:
        self.loss = loss
        self.kernel = kernel
        self.rate_of = rate_of

    def enter(self, z: Tensor) -> Tensor:
        """Q and S of z `(..., d, d)`; a singular value of zero counts as the smallest positive number."""
        U, sigma, Vh = torch.linalg.svd(z)
        ell = torch.log(sigma.clamp(min=torch.finfo(z.dtype).tiny))
        return torch.stack((U @ Vh, Vh.mT @ (ell.unsqueeze(-1) * Vh)), dim=-3)

    def product(self, state: Tensor) -> Tensor:
        """z = Q e^S, shape `(..., d, d)`."""
        Q, ell, V = _factors(state)
        return _whole(Q @ V, ell, V)

    def leave(self, state: Tensor) -> Tensor:
        """The state in the coordinates of IntrinsicFlow: z."""
        return self.product(state)

    def finite(self, state: Tensor) -> Tensor:
        """Whether z is in the range in which its velocity is computed, `(...)`; cheap where the entries of S say so."""
        largest = _largest(state.dtype)
        sure = torch.linalg.vector_norm(state[..., 1, :, :], dim=(-2, -1)) <= largest
        return sure if bool(sure.all()) else _factors(state)[1][..., -1] <= largest

    def log_sigma(self, state: Tensor) -> Tensor:
        """The logarithms of the singular values of z, falling, `(..., d)`."""
        return _factors(state)[1].flip(-1)

    def velocity(self, state: Tensor) -> Tensor:
        """(Q', S'), shape `(..., 2, d, d)`."""
        Q, ell, V = _factors(state)
        # A trial step may go anywhere: its numbers stay finite, so that the method sees its error and rejects it.
        ell = ell.clamp(max=_largest(ell.dtype))
        QV = Q @ V
        E = QV.mT @ self.loss.gradient(_whole(QV, ell, V)) @ V
        log_rate = self.kernel.log_rate(ell)
        stretch = torch.exp(log_rate + ell.unsqueeze(-1)) * E
        turn = torch.exp(log_rate + log_logmean(ell)) * (E - E.mT)
        return -torch.stack((QV @ turn @ V.mT, V @ (stretch + stretch.mT) @ V.mT), dim=-3)

    def rate(self, state: Tensor) -> Tensor:
        """ż, shape `(..., d, d)`."""
        return self.rate_of(self.loss, self.product(state))

    def tolerances(self, state: Tensor, rtol: float, atol: float) -> tuple[float, float]:
        """The relative and absolute tolerance of the entries of a state that stand for those of z."""
        return 100 * torch.finfo(state.dtype).eps, (rtol + atol) / (4 * state.shape[-1])

    def check(self, state: Tensor) -> None:
        """States are made by `enter`."""

    def law(self, state: Tensor) -> Tensor:
        """No function of z is conserved for every loss: an empty tensor `(..., 0, d, d)`."""
        return state.new_empty(*state.shape[:-3], 0, *state.shape[-2:])


def _factors(state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The orthogonal factor of Q, and eigenvalues (rising) and eigenvectors of S."""
    Q, S = state.unbind(-3)
    ell, V = torch.linalg.eigh((S + S.mT) / 2)
    return _orthogonal(Q), ell, V


def _orthogonal(Q: Tensor) -> Tensor:
    """The orthogonal matrix nearest to Q, from which errors in time have led away a little."""
    one = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    for _ in range(_SWEEPS):
        off = Q.mT @ Q - one
        size = off.shape[-1] * float(torch.linalg.vector_norm(off, torch.inf))
        if not size <= _FAR:
            U, _, Vh = torch.linalg.svd(Q)
            return U @ Vh
        Q = Q - Q @ (off / 2)
        if size**2 <= torch.finfo(Q.dtype).eps:
            break
    return Q


def _whole(QV: Tensor, ell: Tensor, V: Tensor) -> Tensor:
    return (QV * torch.exp(ell).unsqueeze(-2)) @ V.mT


def _largest(dtype: torch.dtype) -> float:
    """log σ up to which velocities are computed: 1e38, less in float32, since methods square them over tolerances."""
    return min(math.log(torch.finfo(dtype).max) / 4, math.log(1e38))
