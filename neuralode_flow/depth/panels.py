"""The collocation equations x_i = r_i + Σ_j A_ij W_j x_j of many panels at once."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import matrices
from ..modes import hidden
from .chain import identity_like

# Fixed-point iterations before a panel is handed to the direct solver; panels with h‖W‖ ≲ 4 need fewer.
MAX_SWEEPS = 40


def solve(matrix: Tensor, W: Tensor, right: Tensor | None = None) -> Tensor:
    """The stages x of each panel: by fixed-point iteration, or directly where that fails or cannot be looked at.

    Parameters
    ----------
    matrix : Tensor (m, m)
        h A: the panel's length times the Gauss matrix.
    W : Tensor (..., m, d, d)
    right : Tensor (..., m, d, d), optional
        The right-hand side r; the identity when left out, then x are the stage propagators.

    Returns
    -------
    Tensor (..., m, d, d)
    """
    unseen = hidden(W) or (right is not None and hidden(right))
    solution = None if unseen else _picard(matrix, W, right)
    return _direct(matrix, W, right) if solution is None else solution


def _picard(matrix: Tensor, W: Tensor, right: Tensor | None = None) -> Tensor | None:
    """x = r + K r + K² r + …, K x = h A (W x), summed until the terms are round-off; None if they do not get there."""
    first = W if right is None else W @ right
    term = (matrix @ first.flatten(-2)).unflatten(-1, W.shape[-2:])
    total = (identity_like(W) if right is None else right) + term
    scale = 1.0 if right is None else float(right.abs().max())
    threshold = scale * torch.finfo(W.dtype).eps / 8
    for _ in range(MAX_SWEEPS):
        size = float(term.detach().abs().max())
        if size <= threshold:
            return total
        if not size < 1e8 * scale:
            return None
        term = (matrix @ (W @ term).flatten(-2)).unflatten(-1, W.shape[-2:])
        total = total + term
    return None


def _direct(matrix: Tensor, W: Tensor, right: Tensor | None = None) -> Tensor:
    """The same equations as one linear system of size m·d in each panel, for panels where h‖W‖ is large."""
    m, d = W.shape[-3], W.shape[-1]
    coupling = torch.einsum("ij,...jab->...iajb", matrix, W).flatten(-4, -3).flatten(-2)
    if right is None:
        right = identity_like(W).expand_as(W)
    system = torch.eye(m * d, dtype=W.dtype, device=W.device) - coupling
    return matrices.solve(system, right.flatten(-3, -2)).unflatten(-2, (m, d))
