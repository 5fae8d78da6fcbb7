"""Where linear tensor networks end: the interpolant that they reach, and the direction of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.optimize import nnls
from scipy.special import beta, betaincinv

from .bias import least_l1
from .margin import largest_margin
from .tensors import Basis

# Of coordinates against the largest, of margins against the least: below them they vanish, or are equal.
_ZERO, _EQUAL = 1e-7, 1e-8

# In one go the scale may fall by this factor of its logarithm; Newton's method finds its way from there.
_STEP = np.log(10.0)


def hyperbola(tau: np.ndarray, depth: int) -> np.ndarray:
    """ς with dς/dτ = (1 + ς²)^{(L−1)/2} from 0, τ ≥ 0: sinh τ, tan τ, τ/√(1 − τ²), …; inf from where it blows up."""
    if depth == 2:
        with np.errstate(over="ignore"):
            return np.sinh(tau)
    half = (depth - 2) / 2
    part = np.minimum(2 * tau / beta(0.5, half), 1.0)
    with np.errstate(divide="ignore"):
        found: np.ndarray = np.sqrt(betaincinv(0.5, half, part) / betaincinv(half, 0.5, 1 - part))
    return found


class _Dual:
    """Σ_g counts_g η_g² ς_g²/2 − νᵀy/αᴸ and its derivatives: its least point has the interpolant of the scale α.

    b/αᴸ has c_g = η_gᴸ ς_g (1 + ς_g²)^{(L−1)/2} along u_g = ⟨dual_g, ν⟩, ς_g of τ_g = η_g^{L−2} ‖u_g‖.
    """

    def __init__(self, basis: Basis, depth: int, x: np.ndarray, y: np.ndarray, shape: np.ndarray) -> None:
        self.basis, self.depth, self.y, self.shape = basis, depth, y, shape
        self.duals = basis.dual(x)

    def height(self, nu: np.ndarray, scale: float) -> float:
        with np.errstate(over="ignore"):
            size = np.linalg.norm(self.duals @ nu, axis=-1)
            bend = self.shape * hyperbola(self.shape ** (self.depth - 2) * size, self.depth)
            return float((self.basis.counts * bend**2).sum() / 2 - nu @ self.y / scale**self.depth)

    def parts(self, nu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """c/αᴸ (m, s), and the derivative of Xb/αᴸ in ν (n, n)."""
        L, u = self.depth, self.duals @ nu
        size = np.linalg.norm(u, axis=-1)
        bend = hyperbola(self.shape ** (L - 2) * size, L)
        along = u / np.where(size > 0, size, 1)[:, None]
        c = self.shape**L * bend * (1 + bend**2) ** ((L - 1) / 2)
        radial = self.shape ** (2 * L - 2) * (1 + bend**2) ** (L - 2) * (1 + L * bend**2)
        tangential = np.where(size > 0, c / np.where(size > 0, size, 1), radial)
        projected = np.einsum("gs,gsn->gn", along, self.duals)
        H = np.einsum("g,gsn,gsk->nk", self.basis.counts * tangential, self.duals, self.duals)
        H += np.einsum("g,gn,gk->nk", self.basis.counts * (radial - tangential), projected, projected)
        return along * c[:, None], H

    def step(self, nu: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
        """Newton's, and the slope along it."""
        c, H = self.parts(nu)
        gap = self.y / scale**self.depth - np.einsum("g,gsn,gs->n", self.basis.counts, self.duals, c)
        along = np.linalg.solve(H, gap)
        return along, -float(along @ gap)

    def least(self, nu: np.ndarray, scale: float) -> np.ndarray:
        for _ in range(1000):
            along, fall = self.step(nu, scale)
            size, now = 1.0, self.height(nu, scale)
            while not self.height(nu + size * along, scale) <= now + 1e-4 * size * fall and size > 1e-12:
                size /= 2
            if size <= 1e-12 or np.abs(size * along).max() <= 1e-9 * np.abs(nu).max():
                for _ in range(3):  # the height tells points apart to half the digits only
                    nu = nu + self.step(nu, scale)[0]
                return nu
            nu = nu + size * along
        raise RuntimeError(f"the interpolant of the scale {scale:.3g} was not found in 1000 steps of Newton's method")


def reached(
    basis: Basis, depth: int, x: np.ndarray, y: np.ndarray, shape: np.ndarray, scales: Sequence[float]
) -> tuple[np.ndarray, float]:
    """Where training of xb = y ends from starts of falling scales, (k, d), and the slowest rate at the last of them.

    All layers but the last start with the sizes scale · η_g, η the shape, the last at 0. It is the formula of samples
    whose u_g are parallel.
    """
    dual, nu, last, found = _Dual(basis, depth, x, y, shape), np.zeros(len(y)), max(1.0, scales[0]), []
    for scale in scales:
        for stop in np.geomspace(last, scale, 1 + int(np.ceil(abs(np.log(last / scale)) / _STEP)))[1:]:
            nu = dual.least(nu, stop)
        nu, last = dual.least(nu, scale), scale
        c, H = dual.parts(nu)
        found.append(scale**depth * basis.back(c))
    rate = scales[-1] ** (2 * depth - 2) * np.linalg.eigvalsh(H)[0]
    return np.stack(found), float(rate)


class Ends(NamedTuple):
    """The interpolants of least weighted ℓ₁ and ℓ₂ norm, and the dual certificate of the first."""

    sparse: np.ndarray
    short: np.ndarray
    certificate: float


def ends(basis: Basis, depth: int, x: np.ndarray, y: np.ndarray, shape: np.ndarray) -> Ends:
    """Of samples whose u_g are parallel: least Σ ‖c_g‖/η_g^{L−2}, a linear programme, and Σ ‖c_g‖²/η_g^{2L−2}."""
    duals = basis.dual(x)
    along = duals[..., 0] / np.linalg.norm(duals[..., 0], axis=-1, keepdims=True)
    design = basis.counts[:, None] * np.einsum("gs,gsn->gn", along, duals)
    weights = basis.counts * shape ** (2.0 - depth)
    sparse = least_l1((design / weights[:, None]).T, y)
    heavy = shape ** (2 * depth - 2) / basis.counts
    short = heavy * (design @ np.linalg.solve((design.T * heavy) @ design, y))
    both = [basis.back(along * t[:, None]) for t in (sparse.b / weights, short)]
    return Ends(both[0], both[1], sparse.certificate)


class Stationary(NamedTuple):
    """A stationary point of least Σ_g counts_g ‖c_g‖^{2/L} with margins ⟨z_i, b⟩ ≥ 1, and what its conditions say.

    b : array (d,)
    on : array (m,), the groups that do not vanish.
    active : array (n,), the samples of margin 1.
    residual : of the conditions of Karush, Kuhn and Tucker on these groups, relative.
    pulls : array (m, s), Σ λ_i u_gi, of the size ‖c_g‖^{2/L−1} on these groups.
    gap : what is left between Σ counts_g ‖c_g‖ and the dual value, relative: 0 at a global minimum of L = 2.
    slowest : the least rate, in log margin, at which the flow comes to it inside these groups; inf if they have room
        for no other direction.
    """

    b: np.ndarray
    on: np.ndarray
    active: np.ndarray
    residual: float
    pulls: np.ndarray
    gap: float
    slowest: float

    @property
    def pulls_size(self) -> np.ndarray:
        """‖Σ λ_i u_gi‖, (m,)."""
        size: np.ndarray = np.linalg.norm(self.pulls, axis=-1)
        return size


def stationary(basis: Basis, depth: int, z: np.ndarray, near: np.ndarray | None = None) -> Stationary:
    """The one that reweighted least squares lead to from `near`, (d,), or from equal weights.

    Each step is a quadratic program, least Σ counts_g ‖c_g‖²/‖c_g‖_before^{2−2/L}.

    Raises
    ------
    ValueError
        If the classes cannot be separated.
    RuntimeError
        If the steps do not come to rest.
    """
    duals = basis.counts[:, None, None] * basis.dual(z)
    c = basis.of(np.zeros(z.shape[1]) if near is None else near)
    weights = np.ones(len(c)) if near is None else np.linalg.norm(c, axis=-1) ** (2 - 2 / depth)
    for _ in range(20000):
        root = np.sqrt(weights / weights.max() / basis.counts)[:, None]
        margin = largest_margin((root[..., None] * duals).reshape(-1, len(z)).T)
        last, c = c, root * (margin.direction / margin.lower).reshape(c.shape)
        if np.abs(c - last).max() <= 1e-13 * np.abs(c).max():
            return conditions(basis, depth, z, c)
        weights = np.linalg.norm(c, axis=-1) ** (2 - 2 / depth)
    raise RuntimeError("the direction of largest margin was not found in 20000 steps; choose another seed")


def conditions(basis: Basis, depth: int, z: np.ndarray, c: np.ndarray) -> Stationary:
    """What the conditions of Karush, Kuhn and Tucker say at c (m, s), whose least margin is 1."""
    duals, size = basis.dual(z), np.linalg.norm(c, axis=-1)
    on, b = size > _ZERO * size.max(), basis.back(c)
    active = z @ b < (z @ b).min() * (1 + _EQUAL)
    wanted = basis.counts[on, None] * c[on] * size[on, None] ** (2 / depth - 2)
    held = basis.counts[on, None, None] * duals[on][..., active]
    dual, residual = nnls(held.reshape(-1, active.sum()), wanted.flatten())
    pulls = duals[..., active] @ dual
    value, bound = float(basis.counts @ size), float(dual.sum() / max(1.0, np.linalg.norm(pulls, axis=-1).max()))
    slowest = _slowest(basis.counts[on], depth, c[on], held)
    return Stationary(b, on, active, float(residual / np.linalg.norm(wanted)), pulls, (value - bound) / value, slowest)


def _slowest(counts: np.ndarray, depth: int, c: np.ndarray, held: np.ndarray) -> float:
    """The least eigenvalue of the flow of c/margin in log margin, on what leaves the active margins as they are.

    With p = 2 − 2/L a group moves by ‖c_g‖ᵖ times its pull. Of a deviation, the part across c_g falls like 1/margin and
    that along it grows by the power 1 − 2/L, both projected in the norm of ‖c_g‖^{−p}.
    """
    p, size = 2 - 2 / depth, np.linalg.norm(c, axis=-1)
    heavy, ones = counts * size**-p, np.eye(c.shape[1])
    along = np.einsum("gs,gt->gst", c, c) / size[:, None, None] ** 2
    metric = scipy.linalg.block_diag(*(heavy[:, None, None] * ones))
    falls = scipy.linalg.block_diag(*(heavy[:, None, None] * (ones - p * along)))
    flat = held.reshape(-1, held.shape[-1])
    moves = np.abs(flat).max(-1) > _ZERO * np.abs(flat).max()
    free = scipy.linalg.null_space(flat[moves].T)
    if not free.shape[1]:
        return float("inf")
    parts = [free.T @ M[np.ix_(moves, moves)] @ free for M in (falls, metric)]
    return float(scipy.linalg.eigvalsh(*parts)[0])
