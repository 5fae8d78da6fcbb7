"""The collocation equations x_i = r_i + Σ_j A_ij W_j x_j of many panels at once, by what can be differentiated."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import matrices
from ..modes import hidden
from .products import along, identity_like, multiply, outside

if TYPE_CHECKING:
    from .grid import DepthGrid

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
    first = W if right is None else multiply(W, right)
    term = along(matrix, first.flatten(-2)).unflatten(-1, W.shape[-2:])
    total = (identity_like(W) if right is None else right) + term
    scale = 1.0 if right is None else float(right.abs().max())
    threshold = scale * torch.finfo(W.dtype).eps / 8
    for _ in range(MAX_SWEEPS):
        size = float(term.detach().abs().max())
        if size <= threshold:
            return total
        if not size < 1e8 * scale:
            return None
        term = along(matrix, multiply(W, term).flatten(-2)).unflatten(-1, W.shape[-2:])
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


class Stages(NamedTuple):
    """Propagators inside each panel, shape `(..., panels, m, d, d)`, and across it, `(..., panels, d, d)`.

    forward[p, i] = P(s_i, a_p), backward[p, i] = P(b_p, s_i)ᵀ (transposed, as the gradient uses it),
    across[p] = P(b_p, a_p).
    """

    forward: Tensor
    backward: Tensor
    across: Tensor


def stages(grid: DepthGrid, W: Tensor) -> Stages:
    """Solves the collocation equations of all panels at once.

    Parameters
    ----------
    grid : DepthGrid
        N nodes.
    W : Tensor (..., N, d, d)
        The model on the nodes.
    """
    local = grid.panelled(W)
    forward, backward = halves(grid, solve(gauss_matrix(grid, W), doubled(local)))
    across = identity_like(local[..., 0, :, :]) + over_panels(grid, multiply(local, forward))
    return Stages(forward, backward, across)


def propagators(grid: DepthGrid, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P(s_i, 0) and P(1, s_i) at the nodes, both `(..., N, d, d)`, and z `(..., d, d)`."""
    solved = stages(grid, W)
    before, after, z = outside(solved.across)
    forward = multiply(solved.forward, before.unsqueeze(-3))
    backward = multiply(after.unsqueeze(-3).expand_as(solved.backward), solved.backward.mT)
    return forward.flatten(-4, -3), backward.flatten(-4, -3), z


def gauss_matrix(grid: DepthGrid, W: Tensor) -> Tensor:
    """h A, in the dtype and on the device of W."""
    return torch.from_numpy(grid.rule.integrate / grid.panels).to(W)


def doubled(local: Tensor) -> Tensor:
    """W and its mirror image, of which the stages are P(s_i, a) and P(b, s_i)ᵀ."""
    return torch.cat((local, local.mT.flip(-3)), dim=-4)


def halves(grid: DepthGrid, both: Tensor) -> tuple[Tensor, Tensor]:
    """The stages of W and of its mirror image, of what was solved for `doubled`."""
    return both[..., : grid.panels, :, :, :], both[..., grid.panels :, :, :, :].flip(-3)


def over_panels(grid: DepthGrid, values: Tensor) -> Tensor:
    """The integral over each panel, `(..., panels, m, d, d)` → `(..., panels, d, d)`."""
    weights = torch.from_numpy(grid.rule.weights / grid.panels).to(values)
    return torch.einsum("m,...mab->...ab", weights, values)
