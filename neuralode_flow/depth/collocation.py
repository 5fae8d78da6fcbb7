"""Depth products by Gauss collocation on a `DepthGrid`.

On each panel the stage propagators x_i = P(s_i, a) and y_i = P(b, s_i) solve

    x_i = I + h Σ_j A_ij W_j x_j,      y_i = I + h Σ_j (b_j − A_ij) y_j W_j.

Gauss methods are symplectic (b_i A_ij + b_j A_ji = b_i b_j), so that the second equation is exactly the adjoint of the
first: −P(1,s_i)ᵀ G P(s_i,0)ᵀ built from them is the exact gradient of the discretised loss, in the inner product
Σ w_i tr(AᵢᵀBᵢ), and not merely close to it (Hairer–Lubich–Wanner VI.4; Sanz-Serna, SIAM Review 58, 2016).
Reversing the nodes and transposing turns the second equation into the first, so both are solved in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import matrices
from ..modes import plain
from . import kernel, picard
from .chain import MoreThanNumbers, add_identity, by_member, identity_like, outside
from .grid import DepthGrid, check_grid, gauss_rule
from .panels import solve
from .workspace import Take, Workspace


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
    forward, backward = _halves(grid, solve(_matrix(grid, W), _doubled(local)))
    across = identity_like(local[..., 0, :, :]) + _over_panels(grid, local @ forward)
    return Stages(forward, backward, across)


class Middle(NamedTuple):
    """The same solution seen from the middle c of each panel, in memory of the workspace.

    A panel's collocation polynomials u with u' = W u, u(c) = I and v with v' = −v W, v(c) = I reach only half as far as
    those of `Stages`. By the symplectic condition v u is the same matrix C at both ends of the panel, so that
    P(s_i, a) = u(s_i) C⁻¹ v(a) and P(b, s_i) = u(b) C⁻¹ v(s_i). B is the number of panels of all members.

    u, vT : Tensor (B, m, d, d)
        u and vᵀ at the nodes.
    enter, leave : Tensor (B, d, d)
        C⁻¹ v(a) and u(b).
    off, size : Tensor (B, d, d), float
        C − I and its largest entry.
    """

    u: Tensor
    vT: Tensor
    enter: Tensor
    leave: Tensor
    off: Tensor
    size: float


class Integrals(NamedTuple):
    """Integrals of the Lagrange polynomials of a panel, made once for each grid."""

    middle: Tensor  # (m, m): from the middle to the nodes
    ends: Tensor  # (2, m): from the middle to both ends


@cache
def _integrals(panels: int, order: int, dtype: torch.dtype, device: torch.device) -> Integrals:
    rule = gauss_rule(order)
    arrays = rule.from_middle[:order], rule.from_middle[order:]
    return Integrals(*(torch.as_tensor(array / panels, dtype=dtype, device=device) for array in arrays))


_WORKSPACE = Workspace()

# How far C may be from I: beyond it the grid does not resolve W, or W is large, and C⁻¹ costs digits.
_NEAR_IDENTITY = 0.1


def _across(grid: DepthGrid, W: Tensor) -> Tensor | None:
    """P(b, a) = u(b) u(a)⁻¹ of each panel, `(..., panels, d, d)`; None where the fast solver does not converge."""
    integrals = _integrals(grid.panels, grid.order, W.dtype, W.device)
    with _WORKSPACE.lend() as take:
        solved = picard.solve(_by_panels(grid, W).contiguous(), integrals.middle, take)
        if solved is None:
            return None
        ends = picard.along_nodes(integrals.ends, solved.slopes)
    add_identity(ends)
    across = matrices.solve(ends[:, 0], ends[:, 1], left=False)
    return across.view(*W.shape[:-3], grid.panels, *W.shape[-2:])


def _by_panels(grid: DepthGrid, W: Tensor) -> Tensor:
    """`(..., N, d, d)` → `(B, m, d, d)`."""
    return W.reshape(-1, grid.order, *W.shape[-2:])


def _from_middle(grid: DepthGrid, W: Tensor, take: Take) -> Middle | None:
    """Both halves of all panels by the fast solver; None where it does not converge, or C is not near I."""
    integrals = _integrals(grid.panels, grid.order, W.dtype, W.device)
    local = _by_panels(grid, W)
    B = len(local)
    both = take("both", (2 * B, *local.shape[1:]), W)
    both[:B] = local
    torch.neg(local.mT, out=both[B:])
    solved = picard.solve(both, integrals.middle, take)
    if solved is None:
        return None
    ends = picard.along_nodes(integrals.ends, solved.slopes)
    for part in (solved.integral, ends):
        add_identity(part)
    leave, vT_start, vT_end = ends[:B, 1], ends[B:, 0], ends[B:, 1]
    off = add_identity(torch.bmm(vT_end.mT, leave), -1.0)
    size = float(off.abs().max())
    if not size <= _NEAR_IDENTITY:
        return None
    return Middle(solved.integral[:B], solved.integral[B:], _divided(off, size, vT_start.mT), leave, off, size)


def _divided(off: Tensor, size: float, right: Tensor) -> Tensor:
    """(I + off)⁻¹ right, by the Neumann series where it is short."""
    ratio = size * off.shape[-1]  # of a term to the one before, at most
    if ratio > 1e-3:
        return matrices.solve(off + identity_like(off), right)
    result, left = right, size
    while left > torch.finfo(off.dtype).eps / 16:
        result, left = torch.baddbmm(right, off, result, alpha=-1), left * ratio
    return result


def _gradient(panels: int, W: Tensor, middle: Middle, outer: Callable[[Tensor], Tensor], take: Take) -> Tensor:
    """P(1,s_i)ᵀ G P(s_i,0)ᵀ = v_iᵀ [C⁻ᵀ P(1,c)ᵀ G P(c,0)ᵀ] u_iᵀ: two products per node."""
    before, after, z = _between_middles(panels, middle.enter, middle.leave)
    B, m, d, _ = middle.u.shape
    G = by_member(outer, W.shape[:-3])(z).unsqueeze(1).expand(-1, panels, -1, -1).reshape(B, d, d)
    inner = _divided(middle.off.mT, middle.size, torch.bmm(torch.bmm(after.mT, G), before.mT))
    # One matrix for all nodes of a panel: products of tall matrices are the fastest.
    left = torch.bmm(middle.vT.view(B, m * d, d), inner, out=take("left", (B, m * d, d), W))
    return torch.bmm(left.view(B * m, d, d), middle.u.view(B * m, d, d).mT).view(W.shape)


def _between_middles(panels: int, enter: Tensor, leave: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P(c_p, 0) and P(1, c_p) C of all panels, `(B, d, d)`, and z = P(1, 0), `(members, d, d)`."""
    if panels == 1:
        return enter, leave, torch.bmm(leave, enter)
    enter, leave = enter.unflatten(0, (-1, panels)), leave.unflatten(0, (-1, panels))
    before, after = [enter[:, 0]], [leave[:, -1]]
    links = (enter[:, 1:] @ leave[:, :-1]).unbind(1)
    for link in links:
        before.append(torch.bmm(link, before[-1]))
    for link in reversed(links):
        after.append(torch.bmm(after[-1], link))
    z = torch.bmm(after[0], before[-1])
    return torch.stack(before, dim=1).flatten(0, 1), torch.stack(after[::-1], dim=1).flatten(0, 1), z


def _matrix(grid: DepthGrid, W: Tensor) -> Tensor:
    return torch.from_numpy(grid.rule.integrate / grid.panels).to(W)


def _doubled(local: Tensor) -> Tensor:
    """W and its mirror image, of which the stages are P(s_i, a) and P(b, s_i)ᵀ."""
    return torch.cat((local, local.mT.flip(-3)), dim=-4)


def _halves(grid: DepthGrid, both: Tensor) -> tuple[Tensor, Tensor]:
    return both[..., : grid.panels, :, :, :], both[..., grid.panels :, :, :, :].flip(-3)


def _over_panels(grid: DepthGrid, values: Tensor) -> Tensor:
    """The integral over each panel, `(..., panels, m, d, d)` → `(..., panels, d, d)`."""
    weights = torch.from_numpy(grid.rule.weights / grid.panels).to(values)
    return torch.einsum("m,...mab->...ab", weights, values)


class Collocation:
    """Spectrally accurate depth products: the default inner solver.

    The error of z is O(h^{2m}) and that of P(s_i, 0) and P(1, s_i) O(h^{m+1}), with h = 1/panels and m = order.

    Parameters
    ----------
    grid : DepthGrid
    """

    def __init__(self, grid: DepthGrid) -> None:
        check_grid("grid", grid)
        self.grid = grid

    def on(self, grid: DepthGrid) -> Collocation:
        """The same solver on another grid."""
        return type(self)(grid)

    def product(self, W: Tensor) -> Tensor:
        """z = P(1, 0): `(..., N, d, d)` → `(..., d, d)`. Differentiable."""
        compiled = kernel.flow(self.grid, W)
        if compiled is not None:
            return compiled
        across = _across(self.grid, W) if plain(W) else None
        return outside(stages(self.grid, W).across if across is None else across)[2]

    def propagators(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P(s_i, 0) and P(1, s_i) at the nodes, both `(..., N, d, d)`, and z `(..., d, d)`."""
        solved = stages(self.grid, W)
        before, after, z = outside(solved.across)
        forward = solved.forward @ before.unsqueeze(-3)
        backward = after.unsqueeze(-3) @ solved.backward.mT
        return forward.flatten(-4, -3), backward.flatten(-4, -3), z

    def gradient(self, W: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor:
        """P(1,s_i)ᵀ G P(s_i,0)ᵀ with G = outer(z): the L² gradient of f(z(W)), shape `(..., N, d, d)`."""
        compiled = kernel.flow(self.grid, W, outer)
        if compiled is not None:
            return compiled
        if plain(W):
            with suppress(MoreThanNumbers), _WORKSPACE.lend() as take:
                middle = _from_middle(self.grid, W, take)
                if middle is not None:
                    return _gradient(self.grid.panels, W, middle, outer, take)
        solved = stages(self.grid, W)
        before, after, z = outside(solved.across)
        # One matrix per panel carries what lies outside of it, so that each node costs two products.
        inner = after.mT @ outer(z).unsqueeze(-3) @ before.mT
        return (solved.backward @ inner.unsqueeze(-3) @ solved.forward.mT).flatten(-4, -3)

    def linearised(
        self, W: Tensor, outer: Callable[[Tensor], Tensor], outer_derivative: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """The derivative of `gradient` at W: a function of a direction V, both `(..., N, d, d)`.

        The stages of W are kept; those of a direction solve the same equations with h A (V x) on the right, so that
        one product costs about as much as one gradient. `outer_derivative(z, dz)` is the derivative of `outer`.
        """
        grid, matrix = self.grid, _matrix(self.grid, W)
        solved, local = stages(grid, W), grid.panelled(W)
        doubled = _doubled(local)
        propagators = torch.cat((solved.forward, solved.backward.flip(-3)), dim=-4)
        before, after, z = outside(solved.across)
        G = outer(z).unsqueeze(-3)
        left = solved.backward @ (after.mT @ G @ before.mT).unsqueeze(-3)

        def product(V: Tensor) -> Tensor:
            direction = grid.panelled(V)
            source = (matrix @ (_doubled(direction) @ propagators).flatten(-2)).unflatten(-1, V.shape[-2:])
            d_forward, d_backward = _halves(grid, solve(matrix, doubled, source))
            d_across = _over_panels(grid, direction @ solved.forward + local @ d_forward)
            d_before, d_after, dz = _outside_derivative(solved.across, d_across, before, after)
            dG = outer_derivative(z, dz).unsqueeze(-3)
            d_middle = d_after.mT @ G @ before.mT + after.mT @ (dG @ before.mT + G @ d_before.mT)
            d_left = d_backward @ (after.mT @ G @ before.mT).unsqueeze(-3) + solved.backward @ d_middle.unsqueeze(-3)
            return (d_left @ solved.forward.mT + left @ d_forward.mT).flatten(-4, -3)

        return product


def _outside_derivative(
    across: Tensor, d_across: Tensor, before: Tensor, after: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of `outside`: of the products before and after each panel, and of z."""
    panels = across.shape[-3]
    forward, backward = [torch.zeros_like(across[..., 0, :, :])], [torch.zeros_like(across[..., 0, :, :])]
    for p in range(panels):
        forward.append(d_across[..., p, :, :] @ before[..., p, :, :] + across[..., p, :, :] @ forward[-1])
    for p in reversed(range(1, panels)):
        backward.append(after[..., p, :, :] @ d_across[..., p, :, :] + backward[-1] @ across[..., p, :, :])
    return torch.stack(forward[:-1], dim=-3), torch.stack(backward[::-1], dim=-3), forward[-1]
