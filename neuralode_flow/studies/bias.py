"""Solutions that an implicit bias chooses: of least ℓ₁ norm, of widest margin, and what a diagonal network reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog

# In one go the scale may fall by this factor of its logarithm; Newton's method finds its way from there.
_STEP = np.log(10.0)

# Entries of a solution that are smaller, relative to the largest, are zeros of a linear programme.
_ZERO = 1e-9


class Sparse(NamedTuple):
    """A solution b `(d,)` of a linear programme, and what its dual solution says.

    certificate : float
        The largest |xᵀη|_i over the entries where b is 0; below 1 where b is the only solution.
    bound : float
        Of the dual solution alone: ‖b‖₁ of all b that the constraints allow is at least that, and of b it is that.
    """

    b: np.ndarray
    certificate: float
    bound: float = np.nan

    @property
    def gap(self) -> float:
        """How far ‖b‖₁ is from the bound, relative to it."""
        return float(abs(np.abs(self.b).sum() / self.bound - 1))


def least_l1(x: np.ndarray, y: np.ndarray) -> Sparse:
    """The interpolant xb = y of least ℓ₁ norm, with η such that |xᵀη| ≤ 1 and yᵀη = ‖b‖₁.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = _programme(A_eq=np.hstack([x, -x]), b_eq=y)
    b, on = _split(found.x)
    b[on] = np.linalg.lstsq(x[:, on], y, rcond=None)[0]  # the programme itself is solved to about 1e-9
    return Sparse(b, _certificate(x.T @ found.eqlin.marginals, on), _bound(x, y, found.eqlin.marginals))


def widest_l1(z: np.ndarray) -> Sparse:
    """b of least ℓ₁ norm with margins zb ≥ 1: the widest margin in ℓ₁ is 1/‖b‖₁.

    Raises
    ------
    ValueError
        If the samples cannot be separated.
    """
    found = _programme(A_ub=-np.hstack([z, -z]), b_ub=-np.ones(len(z)))
    b, on = _split(found.x)
    eta = -found.ineqlin.marginals
    return Sparse(b, _certificate(z.T @ eta, on), _bound(z, np.ones(len(z)), eta))


def certificate_missed(x: np.ndarray, found: Sparse) -> float:
    """How far the certificate is from the one that b asks for: η with xᵀη = sign b where b is not 0.

    Of the rows x that b meets with equality. With as many equations as rows there is one such η; where there are fewer,
    a certificate may be any from the least one on, and the result is by how much it is below that.
    """
    on = np.abs(found.b) > _ZERO * np.abs(found.b).max()
    sides, signs, rest = x[:, on].T, np.sign(found.b[on]), x[:, ~on].T
    if np.linalg.matrix_rank(sides) == len(x):
        eta = np.linalg.lstsq(sides, signs, rcond=None)[0]
        return float(abs(found.certificate - np.linalg.norm(rest @ eta, np.inf))) if len(rest) else found.certificate
    one = np.ones((len(rest), 1))
    least = linprog(
        np.append(np.zeros(len(x)), 1.0),
        A_ub=np.vstack([np.hstack([rest, -one]), np.hstack([-rest, -one])]),
        b_ub=np.zeros(2 * len(rest)),
        A_eq=np.hstack([sides, np.zeros((len(sides), 1))]),
        b_eq=signs,
        bounds=(None, None),
        method="highs",
    )
    return max(float(least.fun) - found.certificate, 0.0) if least.success else np.nan


def _programme(**constraints: np.ndarray) -> Any:
    """The least ‖b₊‖₁ + ‖b₋‖₁ under constraints on (b₊, b₋) ≥ 0."""
    d = next(iter(constraints.values())).shape[1]
    found = linprog(np.ones(d), **constraints, method="highs")
    if not found.success:
        raise ValueError(f"rows: no b fits them all ({found.message}); choose fewer rows")
    return found


def _split(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    b = both[: len(both) // 2] - both[len(both) // 2 :]
    return b, np.abs(b) > _ZERO * np.abs(b).max()


def _bound(x: np.ndarray, y: np.ndarray, eta: np.ndarray) -> float:
    """yᵀη / ‖xᵀη‖_∞, which no ‖b‖₁ with xb = y is below, nor, where η ≥ 0, one with xb ≥ y."""
    return float(y @ eta / np.abs(x.T @ eta).max())


def _certificate(correlations: np.ndarray, on: np.ndarray) -> float:
    return float(np.abs(correlations)[~on].max(initial=0.0))


def reached(x: np.ndarray, y: np.ndarray, scales: Sequence[float]) -> np.ndarray:
    """b = k sinh(2xᵀν) with xb = y, for falling scales k: where training from b = 0 ends, `(len(scales), d)`.

    ν minimises the convex function Σ_i k/2 (cosh(2xᵀν)_i − 1) − yᵀν; by Newton's method, from one scale to the next.
    """
    nu, last, found = np.zeros(len(x)), None, []
    for k in scales:
        stops = 1 if last is None else 1 + int(np.ceil(max(0.0, np.log(last / k)) / _STEP))
        for stop in np.geomspace(last or k, k, 1 + stops)[1:]:
            nu = _newton(x, y, stop, nu)
        found.append(k * np.sinh(2 * x.T @ nu))
        last = k
    return np.stack(found)


def _newton(x: np.ndarray, y: np.ndarray, k: float, nu: np.ndarray) -> np.ndarray:
    def height(nu: np.ndarray) -> float:
        with np.errstate(over="ignore"):
            return float(k * np.square(np.sinh(x.T @ nu)).sum() - y @ nu)  # cosh − 1, without cancellation

    def step(nu: np.ndarray) -> tuple[np.ndarray, float]:
        w = 2 * x.T @ nu
        slope = x @ (k * np.sinh(w)) - y
        found = np.linalg.solve((x * (2 * k * np.cosh(w))) @ x.T, -slope)
        return found, float(slope @ found)

    for _ in range(500):
        along, fall = step(nu)
        size, now = 1.0, height(nu)
        while not height(nu + size * along) <= now + 1e-4 * size * fall and size > 1e-12:
            size /= 2
        if size <= 1e-12 or np.abs(size * along).max() <= 1e-9 * np.abs(nu).max(initial=1e-300):
            for _ in range(3):  # the height tells points apart to half the digits only
                nu = nu + step(nu)[0]
            return nu
        nu = nu + size * along
    raise RuntimeError(f"the interpolant of the scale {k:.3g} was not found in 500 steps of Newton's method")
