"""The inner solve: depth products of X' = W(s) X, on a grid in s and through layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from ..checks import follows
from ..registry import Registry
from .collocation import Collocation
from .grid import DepthGrid
from .odeint import OdeintDepth


class DepthSolver(Protocol):
    """What a depth solver promises, for W of shape `(..., N, d, d)` on the nodes of its grid.

    1. `product(W)` is z = P(1, 0), shape `(..., d, d)`, and autograd can differentiate it.
    2. `propagators(W)` are P(s_i, 0), P(1, s_i) and z.
    3. `gradient(W, outer)` is P(1,s_i)ᵀ G P(s_i,0)ᵀ with G = outer(z).
    4. `on(grid)` is the same solver on another grid.
    5. A failure raises FloatingPointError with a sentence that says what failed.
    """

    grid: DepthGrid

    def product(self, W: Tensor) -> Tensor: ...

    def propagators(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def gradient(self, W: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor: ...

    def on(self, grid: DepthGrid) -> DepthSolver: ...


def check_solver(name: str, value: Any) -> None:
    """Raises TypeError unless `value` follows `DepthSolver`."""
    follows(name, value, "a depth solver", "'collocation'", ("product", "propagators", "gradient", "on", "grid"))


DEPTH_SOLVERS: Registry[Callable[[DepthGrid], DepthSolver]] = Registry("depth solver")
DEPTH_SOLVERS.register("collocation")(Collocation)
DEPTH_SOLVERS.register("torchdiffeq")(OdeintDepth)
