"""The training flow of the continuous-depth linear model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..depth import DEPTH_SOLVERS, DepthSolver, check_solver
from ..depth.collocation import Collocation
from ..depth.grid import DepthGrid, Profile, check_grid, sample
from ..laws import continuous_law
from ..losses import Loss, check_square_loss
from ..modes import uncompiled
from .base import check_layers, check_matrices


class ContinuousFlow:
    """∂ₜW(t,s) = −P(1,s)ᵀ G P(s,0)ᵀ: gradient flow in L²([0,1]; ds) of f(z), z = P(1,0) (arXiv 2508.07370).

    On the grid this is exactly the gradient flow of the discretised loss in the inner product Σ w_i tr(AᵢᵀBᵢ) when the
    depth solver is collocation.

    Parameters
    ----------
    grid : DepthGrid
        N depth nodes.
    loss : Loss
    depth : str or DepthSolver
        "collocation" or "torchdiffeq", or a solver made on the same grid.

    Attributes
    ----------
    keeps_orientation : bool
        det z > 0 for all time.

    Raises
    ------
    TypeError, ValueError
        If grid, loss or depth is none, the loss is not for square z, or the depth solver is unknown or stands on
        another grid.
    """

    keeps_orientation = True

    def __init__(self, grid: DepthGrid, loss: Loss, depth: str | DepthSolver = "collocation") -> None:
        check_grid("grid", grid)
        check_square_loss("loss", loss)
        self.grid = grid
        self.loss = loss
        self.depth: DepthSolver = DEPTH_SOLVERS[depth](grid) if isinstance(depth, str) else depth
        check_solver("depth", self.depth)
        if self.depth.grid is not grid:
            raise ValueError("depth must be a solver made on the flow's own grid; pass the same DepthGrid to both")

    def sample(self, W0: Profile) -> Tensor:
        """W0 on the depth nodes: a function float s → (..., d, d) gives the state `(..., N, d, d)`."""
        state = sample(W0, self.grid.nodes)
        self.check(state)
        return state

    def on(self, grid: DepthGrid) -> ContinuousFlow:
        """The same flow on another grid."""
        check_grid("grid", grid)
        return ContinuousFlow(grid, self.loss, self.depth.on(grid))

    def transfer(self, state: Tensor, grid: DepthGrid) -> Tensor:
        """The panel polynomials of a state on the nodes of another grid, `(..., N', d, d)`."""
        check_grid("grid", grid)
        return self.grid.interpolate(state, grid.nodes)

    def depth_error(self, state: Tensor) -> float:
        """How far z is from the product of the same W on twice as many nodes: Frobenius norm, the largest of a batch.

        Along training this estimates the error that the grid makes in z, with all that it did before: 0.21 to 2.6 times
        the true one was seen on random relaxed balanced profiles (benchmarks/accuracy.py).
        """
        fine = DepthGrid.gauss(self.grid.panels, 2 * self.grid.order, dtype=self.grid.nodes.dtype, device=state.device)
        gap = Collocation(self.grid).product(state) - Collocation(fine).product(self.transfer(state, fine))
        return float(torch.linalg.matrix_norm(gap).max())

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless the state fits the grid and the loss."""
        check_layers(state, len(self.grid), "depth nodes")
        check_matrices("state", state, self.loss, tuple(state.shape[:-3]))

    @uncompiled
    def velocity(self, state: Tensor) -> Tensor:
        """∂ₜW on the nodes, shape `(..., N, d, d)`."""
        check_layers(state, len(self.grid), "depth nodes")
        return self.depth.gradient(state, lambda z: -self.loss.gradient(z))

    @uncompiled
    def linearised(self, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The exact derivative of the velocity at a state, a function of a direction; None where it is not known.

        It is the flow's own linearisation of the collocation equations; it needs `hessian` of the loss.
        """
        derivative = getattr(self.loss, "hessian", None)
        if derivative is None or not isinstance(self.depth, Collocation):
            return None
        product = self.depth.linearised(state, self.loss.gradient, derivative)
        return lambda direction: -product(direction)

    @uncompiled
    def product(self, state: Tensor) -> Tensor:
        """z = P(1,0), shape `(..., d, d)`."""
        check_layers(state, len(self.grid), "depth nodes")
        return self.depth.product(state)

    def law(self, state: Tensor) -> Tensor:
        """J(s) = S(s) + ∫₀ˢ [Wᵀ, W] less its mean, smoothed on each panel, at the nodes: `(..., N, d, d)`."""
        check_layers(state, len(self.grid), "depth nodes")
        return continuous_law(self.grid, state)
