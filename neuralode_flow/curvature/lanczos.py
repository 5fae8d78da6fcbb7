"""Eigenpairs of a symmetric operator that is known by its products, each with its residual."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

Apply = Callable[[np.ndarray], np.ndarray]


class Eigenpairs(NamedTuple):
    """Eigenvalues of a Hessian H, falling, with their eigenvectors and errors.

    values : Tensor (..., k)
        The eigenvalues.
    vectors : Tensor (..., k, …)
        Each of the shape of a state, orthonormal in the inner product of the flow.
    residuals : Tensor (..., k)
        ‖Hv − λv‖ in that inner product: within it of each value lies an eigenvalue of H.

    Examples
    --------
    >>> flow = nf.FiniteFlow(depth=4, loss=nf.Quadratic(2 * torch.eye(2)))
    >>> pairs = nf.curvature.hessian(flow, flow.sample(nf.identity(2))).top(2)
    >>> pairs.vectors.shape, float(pairs.residuals.max()) < 1e-12
    (torch.Size([2, 4, 2, 2]), True)
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


class Solved(NamedTuple):
    """Eigenpairs of one operator: values (k,), vectors (n, k) and residuals (k,)."""

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray


# Up to so many entries the dense matrix takes no more products than Lanczos' method.
SMALL = 64

# Steps of the power method that tell how large an operator is.
_STEPS = 4

# ARPACK draws new vectors where its space is exhausted: from a seed, where SciPy lets it have one.
_SEEDED = "rng" in inspect.signature(eigsh).parameters


def dense(apply: Apply, n: int, dtype: np.dtype) -> Solved:
    """All n eigenpairs, by n products: of the symmetric part, with the residuals of the operator as it is."""
    A = np.stack([apply(unit) for unit in np.eye(n, dtype=dtype)], axis=1)
    values, vectors = np.linalg.eigh((A + A.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    return Solved(values, vectors, np.linalg.norm(A @ vectors - vectors * values, axis=0))


def largest(apply: Apply, n: int, k: int, dtype: np.dtype) -> Solved:
    """The k algebraically largest eigenpairs.

    Lanczos' method from one vector sees one eigenvector of each eigenvalue, so that copies of a multiple one may be
    missing: it is started anew in the complement of what was found, until nothing there belongs to the k largest.
    """
    if n <= max(SMALL, 4 * k):
        return Solved(*(part[..., :k] for part in dense(apply, n, dtype)))
    size = _size(apply, n, dtype)
    space, previous = np.empty((n, 0), dtype), None
    while True:
        space = np.linalg.qr(np.hstack((space, _lanczos(apply, space, k, size))))[0]
        image = np.stack([apply(vector) for vector in space.T], axis=1)
        T = space.T @ image
        values, turn = np.linalg.eigh((T + T.T) / 2)
        values, turn = values[::-1][:k], turn[:, ::-1][:, :k]
        risen = np.inf if previous is None else (values - previous).max()
        if k == 1 or risen <= 1e3 * np.finfo(dtype).eps * size or space.shape[1] + k >= n:
            return Solved(values, space @ turn, np.linalg.norm(image @ turn - space @ turn * values, axis=0))
        previous = values


def _size(apply: Apply, n: int, dtype: np.dtype) -> float:
    """About the spectral norm, from below, by a few steps of the power method; 1 for an operator that is zero."""
    x, size = np.random.default_rng(0).standard_normal(n).astype(dtype), 1.0
    for _ in range(_STEPS):
        x = apply(x / np.linalg.norm(x))
        size = float(np.linalg.norm(x))
        if size == 0:
            return 1.0
    return size


def _lanczos(apply: Apply, known: np.ndarray, k: int, size: float) -> np.ndarray:
    """The k leading eigenvectors (n, k) of A in the complement of orthonormal columns.

    ARPACK is given A + 3 size, for it measures residuals against eigenvalues, and small ones would never be found; the
    known columns have the eigenvalue −3 size there, which is below all that is looked for.
    """
    n = len(known)
    random = np.random.default_rng(1 + known.shape[1])

    def outside(x: np.ndarray) -> np.ndarray:
        return x - known @ (known.T @ x)

    def within(x: np.ndarray) -> np.ndarray:
        x = x.reshape(n).astype(known.dtype)
        inside = known @ (known.T @ x)
        x = x - inside
        return outside(apply(x)) + 3 * size * (x - inside)

    options: dict[str, Any] = {"v0": outside(random.standard_normal(n).astype(known.dtype)), "which": "LA"}
    if _SEEDED:
        options["rng"] = random
    operator = LinearOperator((n, n), matvec=within, dtype=known.dtype)
    try:
        return outside(eigsh(operator, k, tol=10 * np.finfo(known.dtype).eps, **options)[1])
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"the {k} largest eigenvalues of the Hessian were not found by Lanczos' method: {error}; "
            f"ask for fewer, or for spectrum()"
        ) from error
