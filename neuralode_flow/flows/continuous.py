"""The training flow of the continuous-depth linear model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from ..caution import warn
from ..checks import unpatched
from ..depth import DEPTH_SOLVERS, DepthSolver, check_solver
from ..depth.collocation import Collocation
from ..depth.engine import Stepped, choose, explicit, multiply
from ..depth.engine.explicit import Legs, Ran, Tableau, Tried
from ..depth.grid import DepthGrid, Profile, check_grid, more_nodes, nodes_said, sample, sample_each
from ..depth.probes import integral, probes
from ..laws import LawChange, continuous_law, law_changes, momentum_law, primitive
from ..losses import Loss, check_square_loss
from ..losses.base import repeats, squares_of
from ..modes import plain, undisturbed
from .base import check_layers, check_matrices, factored, flow_said, own_velocity, place_of

# Relative errors of z below this are not worth a warning: the same bound as in the verdict of a run.
NOTICEABLE = 1e-8

# What the Legendre coefficients leave out is at most about 30 times the gap where W is smooth (docs/trust.md).
_BLIND = 100.0

# Numbers of z up to which Newton's systems are factorised, d = 64: 128 MiB, a few seconds each.
_MOST_RESOLVED = 4096


class Unresolved(RuntimeWarning):
    """A state that misses the profile it was sampled from."""


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

    Examples
    --------
    >>> flow = nf.ContinuousFlow(nf.DepthGrid.gauss(panels=2, order=8), nf.Quadratic(2 * torch.eye(2)))
    >>> W = flow.sample(nf.identity(2))
    >>> flow.product(W).tolist(), flow.velocity(W)[0].tolist()  # at W = 0: ∂ₜW = −∇f(I), at every depth
    ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
    """

    keeps_orientation = True
    many_directions = True

    def __init__(self, grid: DepthGrid, loss: Loss, depth: str | DepthSolver = "collocation") -> None:
        check_grid("grid", grid)
        check_square_loss("loss", loss)
        self.grid = grid
        self.loss = loss
        self.depth: DepthSolver = DEPTH_SOLVERS[depth](grid) if isinstance(depth, str) else depth
        self._check_depth()

    def _check_depth(self) -> None:
        check_solver("depth", self.depth)
        if self.depth.grid is not self.grid:
            raise ValueError("depth must be a solver made on the flow's own grid; pass the same DepthGrid to both")

    def __repr__(self) -> str:
        solver = "" if type(self.depth) is Collocation else type(self.depth).__name__
        return flow_said(self, nodes_said(self.grid), solver)

    @property
    def repeats(self) -> bool:
        """Whether the velocity does the same operations whatever the numbers are: as the loss says of itself."""
        return type(self) is ContinuousFlow and type(self.depth) is Collocation and repeats(self.loss)

    @property
    def factors(self) -> int:
        """How many matrices are multiplied to z: one for each panel."""
        return self.grid.panels

    def sample(self, W0: Profile) -> Tensor:
        """W0 on the depth nodes: a function float s → (..., d, d) gives the state `(..., N, d, d)`, where the loss is.

        The state no longer knows W0: where it misses W0 by more than `depth_error` can tell of it, an `Unresolved`
        warning says by how much z is off. W0 is looked at as `misfit` does.
        """
        state = sample(W0, self.grid.nodes).to(place_of(self.loss))
        self.check(state)
        with torch.no_grad():
            allowed = NOTICEABLE * float(torch.linalg.matrix_norm(self.product(state)).max())
            missed = self._misfit(state, W0, allowed)
            if missed > allowed and missed > 10 * self.depth_error(state):
                auto = "" if self.grid.chosen_by else "DepthGrid.auto(W0, tol), "
                warn(
                    f"the depth grid of {self.grid.panels} × {self.grid.order} nodes does not resolve W0: the "
                    f"end-to-end map z of the state is off by about {missed:.2g}; use {more_nodes(self.grid)}, "
                    f"{auto}or W0 itself in integrate(flow, W0, times, adapt=True)",
                    Unresolved,
                )
        return state

    def misfit(self, state: Tensor, W0: Profile) -> float:
        """How far z of a state on the nodes is from that of the profile W0: Frobenius norm, the largest of a batch.

        W0 is sampled on twice as many nodes, and what these miss of it is integrated, δz = ∫ P(1,s) δW(s) P(s,0) ds,
        over depths that no grid has in common (`depth.probes`: 1597, at most 7e-4 apart, for d up to 36). A feature
        that is narrower than their distance can be missed. A profile that knows its own z (`end_to_end`, such as those
        of `relaxed_balanced`) is held to that as well.
        """
        return self._misfit(state, W0)

    def _misfit(self, state: Tensor, W0: Profile, enough: float = 0.0) -> float:
        """`misfit`, or a bound of it that costs less where that is no more than `enough`."""
        z, known = self.product(state), getattr(W0, "end_to_end", None)
        least = torch.linalg.matrix_norm(z - (z if known is None else known.to(z)))
        fine = self._finer(state)
        depths = probes(state.numel() // len(self.grid)).to(state)
        there = fine.interpolation(depths)
        values, seen = (part.to(state.device) for part in sample_each(W0, fine.nodes, depths))
        missed, gap = seen - there(values), Collocation(fine).product(values) - z
        # ‖P(1,s)‖ ‖P(s,0)‖ ≤ exp ∫‖W‖, and what is uncertain is at most twice the largest that is integrated.
        growth = torch.exp((torch.linalg.matrix_norm(values) * fine.weights.to(values)).sum(-1))
        bound = torch.linalg.matrix_norm(gap) + 3 * growth * torch.linalg.matrix_norm(missed).amax(-1)
        if (most := float(torch.maximum(bound, least).max())) <= enough:
            return most
        before, after, _ = Collocation(fine).propagators(values)
        left, right = there(torch.stack((after, before)))
        correction, uncertain = integral(depths, multiply(multiply(left, missed), right))
        return float(torch.maximum(torch.linalg.matrix_norm(gap + correction) + uncertain, least).max())

    def on(self, grid: DepthGrid) -> Self:
        """The same flow on another grid: of its own class, with all else that it holds."""
        check_grid("grid", grid)
        moved = copy.copy(self)
        moved.grid, moved.depth = grid, self.depth.on(grid)
        moved._check_depth()
        return moved

    def transfer(self, state: Tensor, grid: DepthGrid) -> Tensor:
        """The panel polynomials of a state on the nodes of another grid, `(..., N', d, d)`."""
        check_grid("grid", grid)
        return self.grid.interpolate(state, grid.nodes)

    def depth_error(self, state: Tensor) -> float:
        """How far z is from the product of the same W on twice as many nodes: Frobenius norm, the largest of a batch.

        Along training this estimates the error that the grid makes in z, with all that it did before: 0.21 to 2.6 times
        the true one was seen on random relaxed balanced profiles (benchmarks/accuracy.py). Where the Legendre
        coefficients of W on a panel of six nodes or more do not decay, as after a jump between its nodes, that
        comparison is blind, and what they leave out is guessed instead (`DepthGrid.left_out`). A state cannot tell of
        what lies wholly between its nodes, or of jumps among fewer nodes: `misfit` compares with the profile.
        """
        z, gap = self._gap(state)
        lost = self.grid.left_out(state) * torch.linalg.matrix_norm(z) / state.shape[-1] ** 0.5
        return float(torch.where(lost > _BLIND * gap, lost, gap).max())

    def polynomial_error(self, state: Tensor) -> float:
        """`depth_error` without the guess: for a state whose start has been compared with its profile."""
        return float(self._gap(state)[1].max())

    def course_error(self, state: Tensor, left: Tensor | None = None) -> float:
        """How far z may come off by what the grid makes of the velocity: an estimate, the largest of a batch.

        z shows an error of the velocity only after W has gone wrong, and a finer grid takes over a wrong W as it is. It
        is the relative error of the velocity, against twice as many nodes and at these, times the way that W has left
        to go, times ‖z‖ (derived here).

        Parameters
        ----------
        state : Tensor (..., N, d, d)
        left : Tensor (...), optional
            That way, in the L² norm over depth, of which 1 + ‖W‖ at most counts. By default 2f/‖∇f‖, the distance from
            the minimum of a parabola, where the loss is a square; of others it is not known how far they can fall.
        """
        fine = self.on(self._finer(state))
        slope = fine.velocity(self.transfer(state, fine.grid))
        off = torch.linalg.matrix_norm(self.transfer(self.velocity(state), fine.grid) - slope).amax(-1)
        size, z = torch.linalg.matrix_norm(slope).amax(-1), self.product(state)
        way = 1 + self._length(state)
        if left is None and squares_of(self.loss) is not None:
            left = 2 * self.loss(z) / fine._length(slope)
        if left is not None:
            way = torch.minimum(way, left)
        return float(torch.where(off > 0, off / size * way * torch.linalg.matrix_norm(z), 0.0).max())

    def _length(self, W: Tensor) -> Tensor:
        """The L² norm over depth, `(...)`."""
        return (torch.linalg.matrix_norm(W).square() * self.grid.weights.to(W)).sum(-1).sqrt()

    def _gap(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """z, and its distance from the product of the same panel polynomials on twice as many nodes."""
        fine = self._finer(state)
        z = Collocation(self.grid).product(state)
        return z, torch.linalg.matrix_norm(z - Collocation(fine).product(self.transfer(state, fine)))

    def _finer(self, state: Tensor) -> DepthGrid:
        """The grid of twice as many nodes."""
        return DepthGrid.gauss(self.grid.panels, 2 * self.grid.order, dtype=self.grid.nodes.dtype, device=state.device)

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless the state fits the grid and the loss."""
        check_layers(state, len(self.grid), "depth nodes")
        check_matrices("state", state, self.loss, 3)

    @undisturbed
    def velocity(self, state: Tensor) -> Tensor:
        """∂ₜW on the nodes, shape `(..., N, d, d)`."""
        check_layers(state, len(self.grid), "depth nodes")
        return self.depth.gradient(state, self._downhill)

    def knows_steps(self, state: Tensor) -> bool:
        """Whether the depth solver is the collocation, and the compiled engine takes such a state."""
        own = type(self) is ContinuousFlow and own_velocity(self, ContinuousFlow) and "_downhill" not in vars(self)
        solver = type(self.depth) is Collocation and "gradient" not in vars(self.depth)
        return own and solver and unpatched(Collocation, "gradient") and explicit.takes(state.unsqueeze(0))

    def explicit_steps(self, states: Tensor, slopes: Tensor, h: np.ndarray, tableau: Tableau) -> Tried | None:
        """A step of each state `(n, ..., N, d, d)` along its slope, of size h `(n,)`, by an explicit formula."""
        check_layers(states, len(self.grid), "depth nodes")
        return explicit.steps(explicit.on_grid(self.grid), states, slopes, h, self.loss, tableau)

    def explicit_runs(self, states: Tensor, slopes: Tensor, legs: Legs, tableau: Tableau) -> Ran | None:
        """Steps of states `(n, N, d, d)`, each on its way to a time."""
        kinds = ((ContinuousFlow, self), (Collocation, self.depth))
        check_layers(states, len(self.grid), "depth nodes")
        own = all(unpatched(kind, "product") and "product" not in vars(part) for kind, part in kinds)
        return explicit.runs(explicit.on_grid(self.grid), states, slopes, legs, self.loss, tableau, maps=own)

    def _downhill(self, z: Tensor) -> Tensor:
        return -self.loss.gradient(z)

    @undisturbed
    def linearised(self, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The exact derivative of the velocity at a state, a function of a direction; None where it is not known.

        It is the flow's own linearisation of the collocation equations; it needs `hessian` of the loss.
        """
        derivative = getattr(self.loss, "hessian", None)
        if derivative is None or not isinstance(self.depth, Collocation):
            return None
        product = self.depth.linearised(state, self.loss.gradient, derivative)
        return lambda direction: -product(direction)

    def knows_resolvent(self, state: Tensor) -> bool:
        """Whether the loss has a `hessian`, the depth solver is the collocation, and d² × d² matrices find a place."""
        ours = (
            hasattr(self.loss, "hessian") and isinstance(self.depth, Collocation) and own_velocity(self, ContinuousFlow)
        )
        return ours and state.ndim == 3 and state.shape[-1] ** 2 <= _MOST_RESOLVED and plain(state)

    def resolvent(self, state: Tensor) -> Callable[[float], Callable[[Tensor], Tensor]]:
        """γ ↦ (r ↦ (1 + γ A*HA)⁻¹ r) at a state `(N, d, d)`: the Jacobian without its part that is linear in ∇f(z).

        A r = ∫ P(1,s) r(s) P(s,0) ds is the derivative of z, A* its adjoint, H the Hessian of f. What is left out tends
        to zero with the gradient. By (1 + γ A*HA)⁻¹ = 1 − γ A* (1 + γ H AA*)⁻¹ H A all matrices are d² × d²; AA* is
        the neural tangent kernel ∫ P(1,s)P(1,s)ᵀ ⊗ P(s,0)ᵀP(s,0) ds.
        """
        hessian, d = cast(Any, self.loss).hessian, state.shape[-1]
        before, after, z = cast(Collocation, self.depth).propagators(state)
        weighted = self.grid.weights[:, None, None] * after
        kernel = torch.einsum("iab,icd->acbd", weighted @ after.mT, before.mT @ before).reshape(d * d, d, d)
        inner = -hessian(z.expand_as(kernel), kernel).reshape(d * d, d * d).mT

        def at(gamma: float) -> Callable[[Tensor], Tensor]:
            solve = factored(inner, gamma)

            def solved(r: Tensor) -> Tensor:
                dz = (weighted @ r @ before).sum(0)
                G = solve(hessian(z, dz).reshape(-1)).reshape(d, d)
                return r - gamma * (after.mT @ G @ before.mT)

            return solved

        return at

    @undisturbed
    def product(self, state: Tensor) -> Tensor:
        """z = P(1,0), shape `(..., d, d)`."""
        check_layers(state, len(self.grid), "depth nodes")
        return self.depth.product(state)

    def law(self, state: Tensor) -> Tensor:
        """J(s) = S(s) + ∫₀ˢ [Wᵀ, W] less its mean, at the nodes: `(..., N, d, d)`."""
        check_layers(state, len(self.grid), "depth nodes")
        return continuous_law(self.grid, state)

    @property
    def step_law_is_exact(self) -> bool:
        """At every depth, C_{n+1} = C_n + ΔᵀΔ − ΔΔᵀ for a step Δ along a gradient (derived here; docs/math.md)."""
        return True

    def step_law(self, step: Tensor, directions: Tensor) -> Tensor:
        """Vᵀ(ΔᵀΔ − ΔΔᵀ)V for directions V `(d, k)`, on the nodes: it is added up over steps."""
        right, left = choose(step).grams(step, directions)
        return right - left

    def stepped(self, state: Tensor, velocity: Tensor, rate: float, directions: Tensor, added: Tensor) -> Stepped:
        """state + rate · velocity, and `added` with the `step_law` of that step; the velocity is lost."""
        return choose(state).stepped(state, velocity, rate, directions, added, apart=0)

    @undisturbed
    def descended(self, state: Tensor, rate: float, directions: Tensor, added: Tensor) -> Stepped:
        """`stepped` along the velocity at the state: each node moves when its velocity is found."""
        if type(self.depth) is not Collocation or not own_velocity(self, ContinuousFlow):
            return self.stepped(state, self.velocity(state).clone(), rate, directions, added)
        check_layers(state, len(self.grid), "depth nodes")
        return choose(state).descend_flow(self.grid, state, self._downhill, rate, directions, added)

    def law_of_steps(self, added: Tensor) -> Tensor:
        """By how much steps that have added so much have moved Vᵀ `law` V."""
        return primitive(self.grid, torch.zeros_like(added), added)

    def momentum_law(self, state: Tensor, velocity: Tensor) -> Tensor:
        """V(s) + ∫₀ˢ (WᵀV − VWᵀ) less its mean, of a state that moves at V: `(..., N, d, d)`."""
        check_layers(state, len(self.grid), "depth nodes")
        return momentum_law(self.grid, state, velocity)

    def law_changes(self, start: Tensor) -> Callable[[Tensor], LawChange]:
        """How far J has moved from `start`, by Legendre mode, and what of it the grid accounts for."""
        check_layers(start, len(self.grid), "depth nodes")
        return law_changes(self.grid, start)
