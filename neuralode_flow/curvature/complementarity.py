"""Semidefinite complementarity: a convex quadratic function of small symmetric matrices, least on the positive cone."""

from __future__ import annotations

import math

import numpy as np

# Newton's steps: at most, and for how long none may be better.
_NEWTON, _PATIENCE = 40, 8

# An error from which there is no way back.
_LOST = 1e100

# By how much the equation may be missed at the first try, and at all: more than round-off is seen only where entries of
# B are 1e-10 of others and less.
_WELL, _MISSED = 1e-11, 1e-7

# Steps along the central path: at most, to which gap, how much smaller each makes it, and how far to the boundary.
_STEPS, _GAP, _FALLS, _SHARE = 80, 1e-15, 0.1, 0.9


def coordinates(r: int) -> np.ndarray:
    """The orthonormal basis (p, r, r) of symmetric matrices, p = r(r + 1)/2, in the order of `np.triu_indices`."""
    rows, columns = np.triu_indices(r)
    basis = np.zeros((len(rows), r, r))
    each = np.arange(len(rows))
    size = np.where(rows == columns, 1.0, np.sqrt(0.5))
    basis[each, rows, columns] = basis[each, columns, rows] = size
    return basis


def solve(B: np.ndarray, A: np.ndarray) -> np.ndarray | None:
    """Y ⪰ 0 with S = B[Y] − A ⪰ 0 and ⟨S, Y⟩ = 0: where ½⟨Y, B[Y]⟩ − ⟨A, Y⟩ is least among all Y ⪰ 0.

    Newton's method is begun from A. Where that fails it is begun anew from a point near the solution, to which an
    interior-point method leads.

    Parameters
    ----------
    B : (p, p)
        In the basis of `coordinates`; positive semidefinite.
    A : (r, r)

    Returns
    -------
    (r, r) or None
        None where there is no least value, as no Y makes B[Y] large enough. Where B is singular there may be other Y,
        with the same B[Y].
    """
    r = len(A)
    if np.linalg.eigvalsh(A)[-1] <= 0:
        return np.zeros_like(A)
    size = np.linalg.norm(B, 2)
    if not size > 0:
        return None
    if r == 1:
        return A / B
    E, (rows, columns) = coordinates(r), np.triu_indices(r)
    own = np.diag(B)[rows == columns] / size
    units = np.where(own > 0, own, 1) ** -0.25  # those of the directions: Y and A have others in the same problem
    each = units[rows] * units[columns]
    B, A = each[:, None] * B / size * each, units[:, None] * A * units
    scale = np.linalg.norm(A)
    Z = _solved(E, B, A / scale)
    return None if Z is None else scale / size * units[:, None] * _positive(Z) * units


def _solved(E: np.ndarray, B: np.ndarray, A: np.ndarray) -> np.ndarray | None:
    """Z = Y − S; None where there is none."""
    Z, missed = _newton(E, B, A, A)
    if missed > _WELL:
        Z, missed = min((Z, missed), _newton(E, B, A, _inside(E, B, A)), key=lambda found: found[1])
    return Z if missed < _MISSED else None


def _inside(E: np.ndarray, B: np.ndarray, A: np.ndarray) -> np.ndarray:
    """Y − S near the solution, by the central path in the scaling of Nesterov and Todd, where Y and S are diagonal."""
    Y, S = np.eye(len(A)), np.eye(len(A))
    for _ in range(_STEPS):
        try:
            left, right = np.linalg.cholesky(Y), np.linalg.cholesky(S)
        except np.linalg.LinAlgError:  # as near to the boundary as numbers are
            break
        _, d, Vh = np.linalg.svd(right.T @ left)
        K = left @ Vh.T / np.sqrt(d)
        missed = np.einsum("a,aij->ij", B @ np.einsum("aij,ij->a", E, Y), E) - A - S
        gap = float(np.mean(d**2))
        if gap < _GAP * (1 + np.linalg.norm(Y)):
            break
        wanted = np.diag(_FALLS * gap / d - d) - K.T @ missed @ K
        turned = np.einsum("aij,ik,bkl,jl->ab", E, K, E, K)
        y = np.linalg.solve(np.eye(len(B)) + turned.T @ B @ turned, np.einsum("aij,ij->a", E, wanted))
        dY = np.einsum("a,aij->ij", y, E)
        dS = np.diag(_FALLS * gap / d - d) - dY
        share = min(1.0, _SHARE / max(1e-9, *(-np.linalg.eigvalsh(x / np.sqrt(d * d[:, None]))[0] for x in (dY, dS))))
        back = S @ K / d  # the inverse of Kᵀ
        Y, S = Y + share * K @ dY @ K.T, S + share * back @ dS @ back.T
    return Y - S


def _newton(E: np.ndarray, B: np.ndarray, A: np.ndarray, Z: np.ndarray) -> tuple[np.ndarray, float]:
    """Newton's method for B[Z₊] − A = Z₊ − Z, and by how much that is missed: Y = Z₊ and S = Z₊ − Z fit exactly."""
    best, least, since = Z, math.inf, 0
    for _ in range(_NEWTON):
        values, Q = np.linalg.eigh(Z)
        positive = np.maximum(values, 0)
        residual = np.einsum("aij,ij->a", E, Q * (values - positive) @ Q.T - A)
        residual += B @ np.einsum("aij,ij->a", E, Q * positive @ Q.T)
        error = float(np.linalg.norm(residual))
        best, least, since = (Z, error, 0) if error < least else (best, least, since + 1)
        if since == _PATIENCE or error < 4 * np.finfo(float).eps or not error < _LOST:
            break
        apart = np.where(values[:, None] * values < 0, values[:, None] - values, 1)
        slopes = np.where(values[:, None] * values < 0, (positive[:, None] - positive) / apart, values > 0)
        turned = Q.T @ E @ Q
        slope = np.einsum("aij,ij,bij->ab", turned, slopes, turned)
        step = np.linalg.lstsq(B @ slope + np.eye(len(B)) - slope, residual, rcond=None)[0]
        Z = Z - np.einsum("a,aij->ij", step, E)
    return best, least


def _positive(A: np.ndarray) -> np.ndarray:
    values, Q = np.linalg.eigh(A)
    return Q * np.maximum(values, 0) @ Q.T
