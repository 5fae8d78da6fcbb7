"""The depth grid that a profile needs: the fewest nodes on which the velocity and z are right."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.linalg import matrix_norm

from .panels import gauss_matrix, propagators, solve
from .probes import probes

if TYPE_CHECKING:
    from .grid import DepthGrid

Grids = Callable[[int, int], "DepthGrid"]  # of panels and order
Sampled = Callable[[Tensor], Tensor]  # W on depths (n,): (..., n, d, d)

PANELS = (1, 2, 4, 8, 16, 32, 64)
ORDERS = range(4, 33)

# Longer panels, h max‖W‖₂ above this, do not converge by sweeps, which makes a velocity take 2 to 30 times as long.
STEEPEST = 4.0

# Round-off of W alone changes z by up to ε max‖W‖₂, and sums of many nodes by more: a tolerance below it cannot be
# met, nor seen to be missed by what has the same round-off (measured: an error of 1.7 tol at 1.3 ε max‖W‖₂).
_ROUND_OFF = 2.0

# The part of the tolerance that a grid may take: for one gradient the error can be some times that of random ones.
_SHARE = 0.5


@torch.no_grad()
def sized(gauss: Grids, W: Sampled, tol: float) -> DepthGrid:
    """What `DepthGrid.auto` finds: for each number of panels the lowest order that will do, by bisection."""
    depths = probes(W(torch.tensor([0.5], device="cpu")).numel())
    seen = W(depths)
    _check_size(seen)
    _check_round_off(seen, tol)
    resolving, steepness = _resolved(gauss, W, tol, depths, seen)
    truth = Truth.on(gauss(2 * resolving, ORDERS[-1]), W)
    truth.check_range()

    def good(panels: int, order: int) -> bool:
        grid = gauss(panels, order)
        values = W(grid.nodes)
        return truth.error(grid, values) <= _SHARE * tol and grid.misses(values, depths, seen) <= tol**0.5

    best = None
    for panels in PANELS:
        orders = ORDERS if best is None else range(ORDERS[0], min(ORDERS[-1], (len(best) - 1) // panels) + 1)
        if not orders or not sweepable(steepness, panels) or not good(panels, orders[-1]):
            continue
        order = orders[bisect_left(orders, True, hi=len(orders) - 1, key=partial(good, panels))]
        best = gauss(panels, order)
    if best is None:
        raise _unresolved(tol)
    return best


def sweepable(steepness: float, panels: int) -> bool:
    """Whether `auto` chooses among grids of so many panels, with max ‖W‖₂ = steepness."""
    return steepness / panels <= STEEPEST or panels == PANELS[-1]


@dataclass(frozen=True, eq=False)
class Truth:
    """The propagators of a profile on a grid that resolves them, `(..., N, d, d)`, and z."""

    grid: DepthGrid
    before: Tensor
    after: Tensor
    z: Tensor

    @classmethod
    def on(cls, grid: DepthGrid, W: Sampled) -> Truth:
        return cls(grid, *propagators(grid, W(grid.nodes)))

    def check_range(self) -> None:
        """Raises ValueError where a float does not hold the squares of the sizes of z, or of the propagators."""
        sizes = torch.stack((matrix_norm(self.z), (matrix_norm(self.after) * matrix_norm(self.before)).amax(-1)))
        if not bool((sizes.isfinite() & (sizes > 0)).all()):
            raise ValueError(f"W makes z or its propagators too large or too small for {self.z.dtype}; scale it down")

    def error(self, grid: DepthGrid, values: Tensor) -> float:
        """The larger of the relative errors of the velocity and of z for W on a coarser grid; the worst of a batch.

        P(1,s)ᵀ G P(s,0)ᵀ is linear in G, with the matrix P(1,s) ⊗ P(s,0). The error is that of this matrix in the
        Frobenius norm, which bounds it for all G and is its root mean square for random ones (derived here).
        """
        before, after, z = propagators(grid, values)
        true_before, true_after = (self.grid.interpolate(P, grid.nodes) for P in (self.before, self.after))
        of_before, of_after = matrix_norm(true_before), matrix_norm(true_after)
        # Each divided by its size, whose square a float may not hold.
        start, d_start = (_over(P, of_before) for P in (before, before - true_before))
        end, d_end = (_over(P, of_after) for P in (true_after, after - true_after))
        square = (
            _inner(d_end, d_end) * _inner(start, start)
            + 2 * _inner(d_end, end) * _inner(start, d_start)
            + _inner(d_start, d_start)
        )
        largest = (matrix_norm(self.after) * matrix_norm(self.before)).amax(-1)
        of_velocity = (of_after * of_before * square.clamp(min=0).sqrt()).amax(-1) / largest
        of_z = matrix_norm(z - self.z) / matrix_norm(self.z)
        return float(torch.maximum(of_velocity, of_z).max())


def _over(matrices: Tensor, sizes: Tensor) -> Tensor:
    return matrices / sizes[..., None, None]


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((-2, -1))


def _resolved(gauss: Grids, W: Sampled, tol: float, depths: Tensor, seen: Tensor) -> tuple[int, float]:
    """How many panels of the highest order resolve W and X, X' = W X, to tol; and max ‖W‖₂ on their nodes.

    The last two Legendre coefficients of W and of W X are below `tol` times the largest value of the same function on
    every panel, W is what they say at the probed depths, and the panels are short enough for sweeps.
    """
    for panels in PANELS:
        grid = gauss(panels, ORDERS[-1])
        values = W(grid.nodes)
        steepness = float(matrix_norm(values, 2).max())
        if not sweepable(steepness, panels):
            continue
        slopes = values @ solve(gauss_matrix(grid, values), grid.panelled(values)).flatten(-4, -3)
        if max(grid.tail(values), grid.tail(slopes) / panels, grid.misses(values, depths, seen)) <= tol:
            return panels, steepness
    raise _unresolved(tol)


def _check_size(seen: Tensor) -> None:
    largest = float(seen.abs().max())
    if largest > (torch.finfo(seen.dtype).max / (PANELS[-1] * ORDERS[-1])) ** 0.5:
        raise ValueError(f"W is too large for {seen.dtype}, got an entry of {largest:.3g}; scale it down")


def _check_round_off(seen: Tensor, tol: float) -> None:
    steepest = float(matrix_norm(seen, 2).max())
    least = _ROUND_OFF * torch.finfo(seen.dtype).eps * steepest
    if tol < least:
        raise ValueError(
            f"tol must be at least {least:.2g}, the round-off of z in {seen.dtype} for max‖W‖₂ = {steepest:.3g}, got "
            f"{tol:.3g}; raise it"
        )


def _unresolved(tol: float) -> ValueError:
    return ValueError(
        f"W is not resolved to tol={tol} by {PANELS[-1]} panels of {ORDERS[-1]} nodes: it is rough or oscillates "
        f"fast in s; raise tol, or choose a grid with DepthGrid.gauss(panels, order)"
    )
