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

import torch
from torch import Tensor

from ..display import said
from .engine import choose, compiled
from .grid import DepthGrid, check_grid, nodes_said
from .panels import doubled, gauss_matrix, halves, over_panels, propagators, solve, stages
from .products import outside

# Up to this d the compiled engine has the propagators of matrices twice as large sooner than torch those of W.
_BESIDE = 8


class Collocation:
    """Spectrally accurate depth products: the default inner solver.

    The error of z is O(h^{2m}) and that of P(s_i, 0) and P(1, s_i) O(h^{m+1}), with h = 1/panels and m = order.

    Parameters
    ----------
    grid : DepthGrid

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=2, order=8)
    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> z = nf.Collocation(grid).product(turn.expand(16, 2, 2))
    >>> bool(torch.allclose(z, torch.linalg.matrix_exp(turn), atol=1e-15))
    True
    """

    def __init__(self, grid: DepthGrid) -> None:
        check_grid("grid", grid)
        self.grid = grid

    def __repr__(self) -> str:
        return said(self, nodes_said(self.grid))

    def on(self, grid: DepthGrid) -> Collocation:
        """The same solver on another grid."""
        return type(self)(grid)

    def product(self, W: Tensor) -> Tensor:
        """z = P(1, 0): `(..., N, d, d)` → `(..., d, d)`. Differentiable."""
        self._check(W)
        return choose(W).flow(self.grid, W)

    def propagators(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P(s_i, 0) and P(1, s_i) at the nodes, both `(..., N, d, d)`, and z `(..., d, d)`."""
        self._check(W)
        d = W.shape[-1]
        if d > _BESIDE or not compiled.takes(W):
            return propagators(self.grid, W)
        # Zeros beside W carry I through all depths: P(1,s_i)ᵀ G P(s_i,0)ᵀ of the two has each propagator alone.
        both = torch.nn.functional.pad(W, (d, 0, d, 0))
        swap = torch.eye(2 * d, dtype=W.dtype, device=W.device).roll(d, 0)
        found = compiled.flow(self.grid, both, lambda z: swap)
        return found[..., :d, d:].mT.contiguous(), found[..., d:, :d].mT.contiguous(), self.product(W)

    def gradient(self, W: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor:
        """P(1,s_i)ᵀ G P(s_i,0)ᵀ with G = outer(z): the L² gradient of f(z(W)), shape `(..., N, d, d)`."""
        self._check(W)
        return choose(W).flow(self.grid, W, outer)

    def linearised(
        self, W: Tensor, outer: Callable[[Tensor], Tensor], outer_derivative: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """The derivative of `gradient` at W: a function of a direction V, both `(..., N, d, d)`.

        The stages of W are kept; those of a direction solve the same equations with h A (V x) on the right, so that
        one product costs about as much as one gradient. `outer_derivative(z, dz)` is the derivative of `outer`.
        """
        self._check(W)
        grid, matrix = self.grid, gauss_matrix(self.grid, W)
        solved, local = stages(grid, W), grid.panelled(W)
        both = doubled(local)
        propagators = torch.cat((solved.forward, solved.backward.flip(-3)), dim=-4)
        before, after, z = outside(solved.across)
        G = outer(z).unsqueeze(-3)
        left = solved.backward @ (after.mT @ G @ before.mT).unsqueeze(-3)

        def product(V: Tensor) -> Tensor:
            direction = grid.panelled(V)
            source = (matrix @ (doubled(direction) @ propagators).flatten(-2)).unflatten(-1, V.shape[-2:])
            d_forward, d_backward = halves(grid, solve(matrix, both, source))
            d_across = over_panels(grid, direction @ solved.forward + local @ d_forward)
            d_before, d_after, dz = _outside_derivative(solved.across, d_across, before, after)
            dG = outer_derivative(z, dz).unsqueeze(-3)
            d_middle = d_after.mT @ G @ before.mT + after.mT @ (dG @ before.mT + G @ d_before.mT)
            d_left = d_backward @ (after.mT @ G @ before.mT).unsqueeze(-3) + solved.backward @ d_middle.unsqueeze(-3)
            return (d_left @ solved.forward.mT + left @ d_forward.mT).flatten(-4, -3)

        return product

    def _check(self, W: Tensor) -> None:
        """Raises unless W has a square matrix on each node: cheap enough for every call."""
        shape = W.shape
        if len(shape) < 3 or shape[-3] != len(self.grid) or shape[-2] != shape[-1]:
            raise ValueError(
                f"W must have shape (..., N, d, d) with N = {len(self.grid)} depth nodes, got {tuple(W.shape)}"
            )


def _outside_derivative(
    across: Tensor, d_across: Tensor, before: Tensor, after: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of `outside`: of the products before and after each panel, and of z."""
    panels = across.shape[-3]
    forward, backward = [torch.zeros_like(d_across[..., 0, :, :])], [torch.zeros_like(d_across[..., 0, :, :])]
    for p in range(panels):
        forward.append(d_across[..., p, :, :] @ before[..., p, :, :] + across[..., p, :, :] @ forward[-1])
    for p in reversed(range(1, panels)):
        backward.append(after[..., p, :, :] @ d_across[..., p, :, :] + backward[-1] @ across[..., p, :, :])
    return torch.stack(forward[:-1], dim=-3), torch.stack(backward[::-1], dim=-3), forward[-1]
