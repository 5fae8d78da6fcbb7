"""The intrinsic flow in logarithms: z = Q e^S, which no step in time can carry across det z = 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..checks import unpatched
from ..depth.engine import explicit, polar
from ..depth.engine.explicit import Legs, Ran, Tableau, Tried
from ..depth.engine.polar import Formulas, NdfSteps
from ..kernels import LogKernel, LogMean, log_logmean
from ..losses import Loss
from ..modes import array_of, bare, plain
from .base import MOST_RESOLVED, as_matrix, factored, hessian_in_frame, own_velocity

# Newton–Schulz sweeps that bring Q back to the orthogonal matrices; of a Q further off than _FAR it is a trial step's,
# and its singular vectors are taken.
_FAR, _SWEEPS = 0.5, 6

# Logarithms of singular values that are as close have their divided difference from derivatives, taken with that step:
# both are right to about 1e-11.
_CLOSE, _STENCIL = 1e-5, 2e-3


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
    and atol, in as many evaluations (DOP853, dopri5 and auto, rtol 1e-6 … 1e-11, d = 2 … 12). An atol above rtol counts
    as rtol: it is an error of z, and of a large z, which a small start may become, a far smaller relative one.
    """

    keeps_orientation = True
    many_directions = True

    def __init__(self, loss: Loss, kernel: LogKernel, rate_of: Callable[[Loss, Tensor], Tensor]) -> None:
        self.loss = loss
        self.kernel = kernel
        self.rate_of = rate_of

    def enter(self, z: Tensor) -> Tensor:
        """Q and S of z `(..., d, d)`; a singular value of zero counts as the smallest positive number.

        A kernel of which that is not small enough says by `log_nought` what is.
        """
        U, sigma, Vh = torch.linalg.svd(z)
        ell = torch.log(sigma.clamp(min=torch.finfo(z.dtype).tiny))
        nought = getattr(self.kernel, "log_nought", None)
        if nought is not None and bool((sigma == 0).any()):
            least = nought(sigma)
            ell = torch.where((sigma == 0) & least.isfinite(), torch.minimum(ell, least), ell)
        return torch.stack((U @ Vh, Vh.mT @ (ell.unsqueeze(-1) * Vh)), dim=-3)

    def product(self, state: Tensor) -> Tensor:
        """z = Q e^S, shape `(..., d, d)`."""
        with np.errstate(all="ignore"):
            Q, ell, V = _factors(_numbers(state))
            return _tensor(_whole(Q @ V, ell, V))

    def leave(self, state: Tensor) -> Tensor:
        """The state in the coordinates of IntrinsicFlow: z."""
        return self.product(state)

    def finite(self, state: Tensor) -> Tensor:
        """Whether z is in the range in which its velocity is computed, `(...)`; cheap where the entries of S say so."""
        largest, array = _largest(state.dtype), array_of(state)
        if array is not None and float(np.vdot(array, array)) <= largest**2:  # NaN is not
            return state.new_ones(state.shape[:-3], dtype=torch.bool)
        sure = torch.linalg.vector_norm(state[..., 1, :, :], dim=(-2, -1)) <= largest
        return sure if bool(sure.all()) else _spectrum(state)[0][..., -1] <= largest

    def log_sigma(self, state: Tensor) -> Tensor:
        """The logarithms of the singular values of z, falling, `(..., d)`."""
        return _tensor(_spectrum(_numbers(state))[0]).flip(-1)

    def velocity(self, state: Tensor) -> Tensor:
        """(Q', S'), shape `(..., 2, d, d)`."""
        known = polar.velocity(self.loss, state) if self._compiled() else None
        if known is None:
            return self._velocity(state)
        value, lost = known
        return value if lost is None else torch.where(lost[..., None, None, None], self._velocity(state), value)

    def _compiled(self) -> bool:
        """Whether the compiled engine knows the kernel."""
        return type(self.kernel) is LogMean and "log_rate" not in vars(self.kernel) and unpatched(LogMean, "log_rate")

    def knows_steps(self, state: Tensor) -> bool:
        """Whether the compiled engine knows the kernel, and takes such a state."""
        return self._compiled() and own_velocity(self, LogPolarFlow) and polar.takes(state)

    def explicit_steps(self, states: Tensor, slopes: Tensor, h: np.ndarray, tableau: Tableau) -> Tried | None:
        """A step of each state `(n, ..., 2, d, d)` along its slope, of size h `(n,)`, by an explicit formula."""
        return explicit.steps(self._steps_of(states), states, slopes, h, self.loss, tableau)

    def explicit_runs(self, states: Tensor, slopes: Tensor, legs: Legs, tableau: Tableau) -> Ran | None:
        """Steps of states `(n, 2, d, d)`, each on its way to a time."""
        model = self._steps_of(states) if type(self) is LogPolarFlow else None  # another may have an end of its own
        return explicit.runs(model, states, slopes, legs, self.loss, tableau)

    @staticmethod
    def _steps_of(states: Tensor) -> explicit.Model | None:
        return explicit.CLOSED if polar.takes(states) else None

    def _velocity(self, state: Tensor) -> Tensor:
        with np.errstate(all="ignore"):  # what is not finite is looked for by those who ask
            frame = self._frame(state)
            QV, V = frame.QV, frame.V
            stretch = frame.stretch * frame.E
            turn = frame.turn * (frame.E - _mT(frame.E))
            right = -_mT(V)
            return _tensor(_pair(QV @ turn @ right, V @ (stretch + _mT(stretch)) @ right))

    def _frame(self, state: Tensor) -> _Frame:
        """What a velocity is made of; in NumPy where that is the same."""
        Q, ell, V = _factors(_numbers(state))
        G: Any
        log_rate: Any
        # A trial step may go anywhere: its numbers stay finite, so that the method sees its error and rejects it.
        ell = ell.clip(max=_largest(state.dtype))
        QV = Q @ V
        z = _whole(QV, ell, V)
        G, log_rate = self.loss.gradient(_tensor(z)), self.kernel.log_rate(_tensor(ell))
        if isinstance(ell, np.ndarray) and bare(G) and bare(log_rate):
            G, log_rate = G.numpy(), log_rate.numpy()
        else:
            QV, ell, V, z = map(_tensor, (QV, ell, V, z))
        xp = _library(ell)
        E = _mT(QV) @ G @ V
        stretch = xp.exp(log_rate + ell[..., None])
        return _Frame(xp, z, QV, ell, V, E, stretch, xp.exp(log_rate + log_logmean(ell)))

    def linearised(self, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The derivative of the velocity at a state, a function of directions `(..., 2, d, d)`; None where unknown.

        With Q moving by QΩ, S by H, B = QᵀG and φ_ab = A_ab σ_a, the sum −V [φ ∘ VᵀBV] Vᵀ in S' moves by the change
        of B and by

            −V [Σ_c φ_{ac,b} H̃_ac E_cb + Σ_c φ_{a,cb} E_ac H̃_cb] Vᵀ,   φ_{ac,b} = (φ_ab − φ_cb) / (ℓ_a − ℓ_c)

        in the frame of V, H̃ = VᵀHV (Daleckii and Krein; derived here for both factors of the form); Q' alike. It is
        that of states whose Q is orthogonal, to which those of a run are near, and needs `hessian` of the loss.
        """
        if not self.knows_jacobian(state):
            return None
        hessian = cast(Any, self.loss).hessian
        with np.errstate(all="ignore"):
            z, QV, ell, V, E, stretch, turn = map(_tensor, self._frame(state)[1:])
        D, sigma, between = E - E.mT, torch.exp(ell), torch.exp(log_logmean(ell))
        rows, columns, turns = self._divided(ell)
        # [a, c, b]: what H̃_ac does to the entry ab, and with indices turned, what H̃_bc does.
        of_rows = rows * E.unsqueeze(-3)
        of_columns = columns * E.unsqueeze(-3).mT
        of_turns = turns * D.unsqueeze(-3)

        def product(direction: Tensor) -> Tensor:
            dQ, dS = direction.unbind(-3)
            omega = QV.mT @ dQ @ V
            omega = (omega - omega.mT) / 2
            H = V.mT @ ((dS + dS.mT) / 2) @ V
            moved = omega * sigma.unsqueeze(-2) + between * H
            dz = QV @ moved @ V.mT
            dE = QV.mT @ hessian(z.expand_as(dz), dz) @ V - omega @ E
            along = H.unsqueeze(-2)  # (..., a, 1, c)
            shear = stretch * dE + (along @ of_rows).squeeze(-2) + (along @ of_columns).squeeze(-2).mT
            twist = (along @ of_turns).squeeze(-2)
            twist = turn * (dE - dE.mT) + twist - twist.mT + omega @ (turn * D)
            return -torch.stack((QV @ twist @ V.mT, V @ (shear + shear.mT) @ V.mT), dim=-3)

        return product

    def _divided(self, ell: Tensor) -> list[Tensor]:
        """(φ_ab − φ_cb) / (ℓ_a − ℓ_c) at [a, c, b], of the factor of S', of its transpose, and of the factor of Q'.

        Where ℓ_a and ℓ_c meet it is the mean of the derivatives at both, from differences of order 4 of `log_rate`.
        """
        d, steps = ell.shape[-1], _STENCIL * ell.new_tensor([0.0, 1.0, -1.0, 2.0, -2.0])
        shifted = ell.unsqueeze(-2) + steps.unsqueeze(-1)  # (..., 5, d)
        points = shifted.flatten(-2)
        log_rate, logmean = (
            of(points)[..., :d].unflatten(-2, (5, d)) for of in (self.kernel.log_rate, log_logmean)
        )  # (..., 5, a, b)
        exponents = (shifted.unsqueeze(-1), ell.unsqueeze(-2).unsqueeze(-2), logmean)
        gap = ell.unsqueeze(-1) - ell.unsqueeze(-2)
        close = (gap.abs() < _CLOSE).unsqueeze(-1)
        gap = gap.unsqueeze(-1).masked_fill(close, 1.0)
        found = []
        for exponent in exponents:
            at, up, down, upper, lower = torch.exp(log_rate + exponent).unbind(-3)
            slope = (8 * (up - down) - (upper - lower)) / (12 * _STENCIL)
            apart = (at.unsqueeze(-2) - at.unsqueeze(-3)) / gap
            found.append(torch.where(close, (slope.unsqueeze(-2) + slope.unsqueeze(-3)) / 2, apart))
        return found

    def knows_jacobian(self, state: Tensor) -> bool:
        """Whether the loss has a `hessian`, and nothing but numbers is asked for."""
        return own_velocity(self, LogPolarFlow) and hasattr(self.loss, "hessian") and plain(state)

    def jacobian(self, state: Tensor) -> Tensor:
        """The derivative of the velocity as a matrix `(n, n)` of the n numbers of a state."""
        return as_matrix(self.linearised(state), state)

    def knows_resolvent(self, state: Tensor) -> bool:
        """Whether the Jacobian is known, of one z whose d² × d² matrices find a place."""
        return self.knows_jacobian(state) and state.ndim == 3 and state.shape[-1] ** 2 <= MOST_RESOLVED

    def resolvent(self, state: Tensor) -> Callable[[float], Callable[[Tensor], Tensor]]:
        """γ ↦ (r ↦ (1 + γ BHA)⁻¹ r) at a state `(2, d, d)`: the Jacobian without its part that is linear in ∇f(z).

        A is the derivative of z, −B that of the velocity by ∇f(z), H the Hessian of f; in the frame AB is K ∘. What is
        left out tends to zero with the gradient. By (1 + γ BHA)⁻¹ = 1 − γ B (1 + γ HAB)⁻¹ HA all matrices are d² × d².
        """
        with np.errstate(all="ignore"):
            xp, z, QV, ell, V, _, stretch, turn = self._frame(state)
            sigma, between = xp.exp(ell), xp.exp(log_logmean(ell))
            H: Any = hessian_in_frame(self.loss, _tensor(z), _tensor(QV), _tensor(V))
            if xp is np:
                H = H.detach().numpy()
            inner = -H * (turn * (sigma[:, None] + sigma)).reshape(-1)
        d, left, right = len(ell), _mT(QV), _mT(V)

        def at(gamma: float) -> Callable[[Tensor], Tensor]:
            solve = factored(inner, gamma)

            def solved(r: Tensor) -> Tensor:
                given = r.numpy() if xp is np else r
                dQ, dS = left @ given[0] @ V, right @ given[1] @ V
                dz = (dQ - _mT(dQ)) * (sigma / 2) + between * (dS + _mT(dS)) / 2
                G = solve(H @ dz.reshape(-1)).reshape(d, d)
                shear = stretch * G
                change = _pair(QV @ (turn * (G - _mT(G))) @ right, V @ (shear + _mT(shear)) @ right)
                return _tensor(given - gamma * change)

            return solved

        return at

    def implicit_steps(self, state: Tensor, formulas: Formulas) -> NdfSteps | None:
        """What takes whole steps from a state `(2, d, d)`; None where they are taken from outside."""
        own = self._compiled() and own_velocity(self, LogPolarFlow) and unpatched(LogPolarFlow, "resolvent")
        return polar.ndf_steps(self.loss, state, formulas) if own and self.knows_resolvent(state) else None

    def rate(self, state: Tensor) -> Tensor:
        """ż, shape `(..., d, d)`."""
        return self.rate_of(self.loss, self.product(state))

    def tolerances(self, state: Tensor, rtol: float, atol: float) -> tuple[float, float]:
        """The relative and absolute tolerance of the entries of a state that stand for those of z."""
        return 100 * torch.finfo(state.dtype).eps, (rtol + min(atol, rtol)) / (4 * state.shape[-1])

    def check(self, state: Tensor) -> None:
        """States are made by `enter`."""

    def law(self, state: Tensor) -> Tensor:
        """No function of z is conserved for every loss: an empty tensor `(..., 0, d, d)`."""
        return state.new_empty(*state.shape[:-3], 0, *state.shape[-2:])


class _Frame(NamedTuple):
    """A state in the frame of the singular vectors of z, in NumPy or torch.

    Attributes
    ----------
    xp : module
        numpy or torch.
    z : array
    QV : array
        Left singular vectors, one a column.
    ell : array
        Logarithms of the singular values, rising.
    V : array
        Right singular vectors.
    E : array
        VᵀQᵀGV.
    stretch, turn : array
        A_ab σ_a, and A_ab logmean(σ_a, σ_b).
    """

    xp: Any
    z: Any
    QV: Any
    ell: Any
    V: Any
    E: Any
    stretch: Any
    turn: Any


def _numbers(state: Tensor) -> Any:
    """An array of NumPy, whose calls cost a third of torch's, where that is the same."""
    array = array_of(state)
    return state if array is None else array


def _library(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else torch


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _pair(Q: Any, S: Any) -> Any:
    """One array of the two of a state; `numpy.stack` takes ten times as long as writing them there."""
    if not isinstance(Q, np.ndarray):
        return torch.stack((Q, S), -3)
    pair = np.empty((*Q.shape[:-2], 2, *Q.shape[-2:]))
    pair[..., 0, :, :], pair[..., 1, :, :] = Q, S
    return pair


def _mT(array: Any) -> Any:
    """The transpose of matrices; arrays of NumPy have `mT` from release 2 on."""
    return array.swapaxes(-1, -2)


def _factors(state: Any) -> tuple[Any, Any, Any]:
    """The orthogonal factor of Q, and eigenvalues (rising) and eigenvectors of S."""
    return _orthogonal(state[..., 0, :, :]), *_spectrum(state)


def _spectrum(state: Any) -> tuple[Any, Any]:
    """Eigenvalues (rising) and eigenvectors of S."""
    S = state[..., 1, :, :]
    ell, V = _library(state).linalg.eigh((S + _mT(S)) / 2)
    return ell, V


def _orthogonal(Q: Any) -> Any:
    """The orthogonal matrix nearest to Q, from which errors in time have led away a little.

    Each member of a batch takes the steps that it would take alone.
    """
    xp, one = _library(Q), _one(Q)
    going = far = None
    for _ in range(_SWEEPS):
        off = _mT(Q) @ Q - one
        size = _frobenius(off)
        near = size <= _FAR
        going = near if going is None else going & near
        far = ~near if far is None else far | ~near
        if not going.any():
            break
        swept = Q - Q @ (off / 2 - 0.375 * (off @ off))  # the series of (1 + off)^−½, of order 3
        Q = swept if going.all() else xp.where(going[..., None, None], swept, Q)
        going = going & (size**3 > xp.finfo(Q.dtype).eps)
    if far is None or not far.any():
        return Q
    U, _, Vh = xp.linalg.svd(Q)
    return xp.where(far[..., None, None], U @ Vh, Q)


def _frobenius(off: Any) -> Any:
    """The norm of each matrix, which no derivative goes through."""
    if isinstance(off, np.ndarray):
        return np.sqrt((off * off).sum((-2, -1)))
    return off.detach().square().sum((-2, -1)).sqrt()


def _one(Q: Any) -> Any:
    d = Q.shape[-1]
    return _identity(d) if isinstance(Q, np.ndarray) else torch.eye(d, dtype=Q.dtype, device=Q.device)


@lru_cache(maxsize=8)
def _identity(d: int) -> np.ndarray:
    one = np.eye(d)
    one.flags.writeable = False
    return one


def _whole(QV: Any, ell: Any, V: Any) -> Any:
    return (QV * _library(ell).exp(ell)[..., None, :]) @ _mT(V)


@lru_cache(maxsize=8)
def _largest(dtype: torch.dtype) -> float:
    """log σ up to which velocities are computed: 1e38, less in float32, since methods square them over tolerances."""
    return min(math.log(torch.finfo(dtype).max) / 4, math.log(1e38))
