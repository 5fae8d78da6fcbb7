"""Criterion B: does ∂M vanish on a null space, M = ∂φ ∂φᵀ? In units that no scaling of z or θ changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .derivatives import Map, hessians, jacobian
from .place import Place
from .ranks import ABOVE_ROUND_OFF, UNDECIDED
from .units import Measured

Verdict = bool | str

# ∂M on the null space, entry by entry relative to the terms that it is made of: up to METRIC_ZERO it vanishes, from
# METRIC_NONZERO on it does not.
METRIC_ZERO, METRIC_NONZERO = 1e-9, 1e-6

# More rows of ∂φ than this many times its columns are replaced by as many random combinations.
_ROWS = 4


@dataclass(frozen=True)
class Change:
    """How much M changes on a null space.

    Attributes
    ----------
    relative : float
        The largest |∂M_ij[v]| over unit v in the null space, in units of θ in which all columns of ∂φ are alike,
        relative to the terms of ∂M_ij: √(Σ_l (Σ_k |∂_l∂_kφ_i ∂_kφ_j| + |∂_kφ_i ∂_l∂_kφ_j|)²).
    real : bool
        Whether that is far above the round-off in it.
    """

    relative: float
    real: bool

    @property
    def verdict(self) -> Verdict:
        """Whether M keeps its value."""
        if self.relative <= METRIC_ZERO:
            return True
        return False if self.relative >= METRIC_NONZERO and self.real else UNDECIDED


class MetricDerivative:
    """∂M at a place, entry by entry.

    Parameters
    ----------
    phi : callable
        θ (n,) → z (m,).
    place : Place
    J : Measured (m, n)
        ∂φ.
    generator : torch.Generator
        Of the combinations, where z has far more entries than θ.
    """

    def __init__(self, phi: Map, place: Place, J: Measured, generator: torch.Generator) -> None:
        rows, self._units = J.scales
        m, n = J.values.shape
        mix = rows.diag() if m <= _ROWS * n else _random(_ROWS * n, m, generator).to(rows) * rows
        self._phi = lambda theta: mix @ phi(theta)
        self._place = place
        J_mixed = mix @ J.values
        # (n, m, n): the derivative of ∂φ along every entry of θ, by its unit.
        second = hessians(self._phi, place.theta, self._units.diag())
        half = second @ J_mixed.mT
        self._slopes = half + half.mT
        terms = second.abs() @ J_mixed.abs().mT
        self._terms = torch.linalg.vector_norm(terms + terms.mT, dim=0)

    def on(self, basis: Tensor) -> Change:
        """On the span of a basis (n, k)."""
        if not basis.shape[1]:
            return Change(0.0, True)
        frame = torch.linalg.qr(basis / self._units[:, None]).Q
        found = torch.einsum("lij,lk->ijk", self._slopes, frame)
        sizes = torch.linalg.vector_norm(found, dim=-1)
        relative = torch.where(self._terms > 0, sizes / self._terms, 0.0)
        i, j = divmod(int(relative.argmax()), relative.shape[1])
        if not relative[i, j] > 0:
            return Change(0.0, True)
        v = self._units * (frame @ (found[i, j] / sizes[i, j]))
        again = torch.stack([self._entry(theta, v, i, j) for theta in self._place.samples])
        noise = float((again[1:] - again[0]).abs().max())
        return Change(float(relative[i, j]), float(sizes[i, j]) >= ABOVE_ROUND_OFF * noise)

    def _entry(self, theta: Tensor, v: Tensor, i: int, j: int) -> Tensor:
        """∂M_ij[v]."""

        def pair(point: Tensor) -> Tensor:
            return self._phi(point)[[i, j]]

        J, change = jacobian(pair, theta), hessians(pair, theta, v[None])[0]
        return change[0] @ J[1] + J[0] @ change[1]


def largest_change(phi: Map, theta: Tensor, J: Tensor, basis: Tensor) -> tuple[float, Tensor | None]:
    """The largest ‖∂M[v]‖ over unit v in the span of a basis (n, k), and that v; Frobenius norm, Euclidean length."""
    if not basis.shape[1]:
        return 0.0, None
    basis = torch.linalg.qr(basis).Q
    changes = hessians(phi, theta, basis.mT)
    columns = torch.cat((J, *changes), dim=1)
    if columns.shape[1] < len(J):  # many z and few θ: in an orthonormal basis of all that takes part
        Q = torch.linalg.qr(columns).Q
        J, changes = Q.mT @ J, Q.mT @ changes
    half = changes @ J.mT
    _, values, Vh = torch.linalg.svd((half + half.mT).reshape(len(half), -1).mT, full_matrices=False)
    return float(values[0]), basis @ Vh[0]


def _random(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu")
