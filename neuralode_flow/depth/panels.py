"""The collocation equations x_i = I + Σ_j A_ij W_j x_j of many panels at once."""

from __future__ import annotations

import torch
from torch import Tensor

from .chain import identity_like

# Fixed-point iterations before a panel is handed to the direct solver; panels with h‖W‖ ≲ 4 need fewer.
MAX_SWEEPS = 40


def solve(matrix: Tensor, W: Tensor) -> Tensor:
    """The stage propagators x of each panel: by fixed-point iteration, or directly where that does not converge.

    Parameters
    ----------
    matrix : Tensor (m, m)
        h A: the panel's length times the Gauss matrix.
    W : Tensor (..., m, d, d)

    Returns
    -------
    Tensor (..., m, d, d)
    """
    solution = _picard(matrix, W)
    return _direct(matrix, W) if solution is None else solution


def _picard(matrix: Tensor, W: Tensor) -> Tensor | None:
    """x = I + K I + K² I + …, K x = h A (W x), summed until the terms are round-off; None if they do not get there."""
    term = (matrix @ W.flatten(-2)).unflatten(-1, W.shape[-2:])
    total = identity_like(W) + term
    threshold = torch.finfo(W.dtype).eps / 8
    for _ in range(MAX_SWEEPS):
        size = float(term.detach().abs().max())
        if size <= threshold:
            return total
        if not size < 1e8:
            return None
        term = (matrix @ (W @ term).flatten(-2)).unflatten(-1, W.shape[-2:])
        total = total + term
    return None


def _direct(matrix: Tensor, W: Tensor) -> Tensor:
    """The same equations as one linear system of size m·d in each panel, for panels where h‖W‖ is large."""
    m, d = W.shape[-3], W.shape[-1]
    coupling = torch.einsum("ij,...jab->...iajb", matrix, W).flatten(-4, -3).flatten(-2)
    eye = torch.eye(d, dtype=W.dtype, device=W.device)
    system = torch.eye(m * d, dtype=W.dtype, device=W.device) - coupling
    return torch.linalg.solve(system, eye.repeat(m, 1).expand(*W.shape[:-3], m * d, d)).unflatten(-2, (m, d))
