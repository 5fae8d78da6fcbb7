"""Relaxed balanced networks of finitely many Euler layers."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import float_tensor, of_members, random_source, same_kind, square
from ..depth import chain
from ..kernels import log_factors
from ..matrices import Turning, orientation_preserving, random_orthogonal, skew_log
from ..modes import array_of


def relaxed_balanced_layers(z0: Tensor, shifts: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """An exactly relaxed balanced network of Euler layers: U_{k+1}ᵀU_{k+1} − U_kU_kᵀ = λ_k I, U_L … U_1 = z₀.

    U_k = Q_k diag(√(x_a + c_k)) Q_{k−1}ᵀ, where x_a solves Π_k (x_a + c_k) = σ_a², Q_0 = V, Q_L = U for
    z₀ = U diag(σ) Vᵀ, and the frames between are free (the gauge).

    Parameters
    ----------
    z0 : Tensor (..., d, d)
        Invertible; det z₀ > 0 without a generator.
    shifts : Tensor (L,)
        c_k = λ_1 + … + λ_{k−1}, c_1 = 0, of any signs: the argument of `DividedDifference`.
    generator : torch.Generator, optional
        Draws Haar-distributed frames. Without it the frames turn evenly from V to U, so that the layers sample a
        smooth profile and converge to the continuous model.

    Returns
    -------
    Tensor (..., L, d, d)
        W_k = L(U_k − I), a state of ``FiniteFlow(L, loss, "euler")``.

    Raises
    ------
    TypeError, ValueError
        If z₀ is singular, a shift is not finite, or the root x_a cannot be held in floating point.

    Examples
    --------
    >>> W = nf.relaxed_balanced_layers(2 * torch.eye(3), shifts=torch.tensor([0.0, 0.3, -0.2, 0.1]))
    >>> lam, off, scale = nf.laws.relaxed_balance(torch.eye(3) + W / 4)
    >>> [round(float(shift), 12) for shift in lam], bool(off < 1e-14)
    ([0.3, -0.5, 0.3], True)
    """
    ends = Ends(z0)
    float_tensor("shifts", shifts, ndim=1)
    if shifts.ndim != 1:
        raise ValueError(f"shifts must have shape (L,), got {tuple(shifts.shape)}")
    same_kind("shifts", shifts, "z0", z0)
    if generator is not None:
        random_source("generator", generator)
    return ends.layers(shifts, generator)


class Ends:
    """What relaxed balanced networks with one z₀ = U diag(σ) Vᵀ have in common, of any depth."""

    def __init__(self, z0: Tensor) -> None:
        self.z0 = square("z0", z0)
        self.U, sigma, self.Vh = torch.linalg.svd(z0)
        singular = sigma.amin(-1) <= torch.finfo(z0.dtype).eps * sigma.amax(-1)
        if bool(singular.any()):
            raise ValueError(
                f"z0{of_members(singular)} must be invertible: it is singular to round-off, with singular values of up "
                f"to {sigma[singular].max():.3g}"
            )
        self.sigma = sigma

    @cached_property
    def turning(self) -> Turning:
        """How frames turn evenly from V to U."""
        orientation_preserving("z0", self.z0)
        return Turning(skew_log(self.U @ self.Vh))

    def layers(self, shifts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`relaxed_balanced_layers` with these ends, of shifts `(L,)`, or `(..., L)` for each z₀ `(..., d, d)`."""
        with np.errstate(all="ignore"):
            layers = torch.as_tensor(self._layers(shifts, generator))
        W = chain.add_identity(layers, -1.0).mul_(shifts.shape[-1])
        # Of I + W/L, as networks have it: W does not hold a layer that is far smaller than I.
        errors = torch.linalg.matrix_norm(chain.product(chain.add_identity(W / shifts.shape[-1])) - self.z0)
        bound = max(1e-8, 1e3 * torch.finfo(self.z0.dtype).eps)
        if not bool((errors <= bound * self.sigma.amax(-1)).all()):
            raise ValueError(
                f"shifts have no admissible root in {self.z0.dtype}: the layers miss z0 by {float(errors.max()):.3g}; "
                f"got shifts from {shifts.min():.3g} to {shifts.max():.3g}, use smaller ones"
            )
        return W

    def _layers(self, shifts: Tensor, generator: torch.Generator | None) -> Any:
        """U_k, in NumPy where those of one network are few, since its calls cost a third of those of torch.

        However many networks there are: torch rounds otherwise, and a member is to have the start that it has alone.
        """
        z0, L = self.z0, shifts.shape[-1]
        given = self.U, self.sigma, self.Vh, shifts, torch.arange(1, L, dtype=z0.dtype, device=z0.device) / L
        axes = 2, 1, 2, 1, 1  # of one network
        members = [part.shape[: part.ndim - own].numel() for part, own in zip(given, axes, strict=True)]
        small: list[Any] = [array_of(part, some) for part, some in zip(given, members, strict=True)]
        xp: Any = torch if generator is not None or any(part is None for part in small) else np
        U, sigma, Vh, c, depths = given if xp is torch else small
        V = Vh.swapaxes(-1, -2)[..., None, :, :]
        if generator is None:
            inner = self.turning(depths) @ V
        else:
            drawn = [random_orthogonal(tuple(z0.shape), generator).to(z0) for _ in range(1, L)]
            inner = torch.stack(drawn, dim=-3) if drawn else V[..., :0, :, :]
        frames = xp.concatenate((V, inner, U[..., None, :, :]), axis=-3)
        scales = xp.exp(log_factors(sigma, c) / 2).swapaxes(-1, -2)
        return frames[..., 1:, :, :] * scales[..., None, :] @ frames[..., :-1, :, :].swapaxes(-1, -2)
