"""Depth products by `torchdiffeq.odeint`: the second, independent route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

from ..checks import positive
from ..display import said
from ..modes import ordinary, undisturbed
from ..registry import unknown_name
from .grid import DepthGrid, check_grid, nodes_said
from .products import identity_like

METHODS = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
_NO_LIMIT = 1e100  # of tolerances, so that every step goes to the next point where one must end
MAX_EVALUATIONS = 20_000  # in one depth solve; smooth W of moderate norm needs hundreds


class OdeintDepth:
    """X' = W(s) X and its adjoint by an adaptive Runge–Kutta method on the panel polynomials of W.

    Parameters
    ----------
    grid : DepthGrid
        W is given on its nodes and interpolated between them.
    method : {"dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"}
        A method of torchdiffeq with adaptive steps.
    rtol, atol : float
        Tolerances of the depth solve. Keep them 100 times below those of the training time: the noise of a loose
        inner solve makes the outer solver reject steps.

    Raises
    ------
    TypeError, ValueError
        If the grid is none, the method unknown or not adaptive, or a tolerance not above 0.
    FloatingPointError
        When the depth solve fails; `integrate` turns it into the status of the run.
    NotImplementedError
        Under the transforms of torch.func, forward-mode derivatives and tracers. Autograd's derivatives are those of
        the steps that were chosen.

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=2, order=8)
    >>> W = torch.cos(grid.nodes)[:, None, None] * torch.tensor([[0.0, 1.0], [-2.0, 0.5]])
    >>> error = nf.OdeintDepth(grid).product(W) - nf.Collocation(grid).product(W)
    >>> float(error.abs().max()) < 1e-10
    True
    """

    def __init__(self, grid: DepthGrid, method: str = "dopri8", rtol: float = 1e-11, atol: float = 1e-13) -> None:
        check_grid("grid", grid)
        if method not in METHODS:
            raise ValueError(unknown_name("adaptive method", method, list(METHODS)))
        self.grid = grid
        self.method = method
        self.rtol, self.atol = positive("rtol", rtol), positive("atol", atol)

    def __repr__(self) -> str:
        return said(self, nodes_said(self.grid), self.method, f"rtol={self.rtol:g}")

    def on(self, grid: DepthGrid) -> OdeintDepth:
        """The same solver on another grid."""
        return type(self)(grid, self.method, self.rtol, self.atol)

    def product(self, W: Tensor) -> Tensor:
        """z = P(1, 0): `(..., N, d, d)` → `(..., d, d)`. Differentiable."""
        return self._solve(W, reverse=False)[1]

    def propagators(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P(s_i, 0) and P(1, s_i) at the nodes, both `(..., N, d, d)`, and z `(..., d, d)`."""
        forward, z = self._solve(W, reverse=False)
        backward, _ = self._solve(W, reverse=True)
        return forward, backward, z

    def gradient(self, W: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor:
        """P(1,s_i)ᵀ G P(s_i,0)ᵀ with G = outer(z), shape `(..., N, d, d)`."""
        forward, backward, z = self.propagators(W)
        return backward.mT @ outer(z).unsqueeze(-3) @ forward.mT

    @undisturbed
    def _solve(self, W: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        """Values at the nodes and at the far end; in reverse, Y' = −Y W from Y(1) = I."""
        if not ordinary(W):
            raise NotImplementedError(
                "depth='torchdiffeq' chooses its steps by the numbers of W, which torch.func, forward-mode derivatives "
                "and tracers hide from it: use depth='collocation', or torch.autograd"
            )
        if not (W.requires_grad and torch.is_grad_enabled()):
            return self._values(W, reverse)
        # The steps of these numbers, taken again: torchdiffeq would also follow how their sizes depend on W, but W only
        # by its values and not along s, and the two together are no derivative.
        starts: list[float] = []
        with torch.no_grad():
            self._values(W, reverse, note=starts.append)
        return self._values(W, reverse, steps=starts[1:])

    def _values(
        self,
        W: Tensor,
        reverse: bool,
        note: Callable[[float], None] | None = None,
        steps: list[float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same; `note` is told where each step starts, and with `steps` exactly those are taken."""
        times = torch.cat((self.grid.nodes.new_tensor([0.0]), self.grid.nodes, self.grid.nodes.new_tensor([1.0])))
        times = times.flip(0) if reverse else times
        floor = 100 * torch.finfo(W.dtype).eps  # of what the dtype can hold: below it no step would be accepted
        tolerances = {"rtol": max(self.rtol, floor), "atol": max(self.atol, floor / 100)}
        # Interior values are interpolated at 4th order by torchdiffeq, so that steps must end on the nodes; and the
        # panel polynomials do not quite meet at the edges of the panels, which a step must not cross.
        edges = torch.arange(1, self.grid.panels, dtype=times.dtype, device=times.device) / self.grid.panels
        edges = edges.flip(0) if reverse else edges
        options: dict[str, Any] = {"step_t": times[1:], "jump_t": edges}
        if steps is not None:
            tolerances = dict.fromkeys(tolerances, _NO_LIMIT)
            ends = [s for s in steps if s not in edges.tolist()]
            options |= {"step_t": times.new_tensor([*ends, float(times[-1])]), "first_step": 1.0, "ifactor": _NO_LIMIT}
        right_hand_side = self._right_hand_side(W, reverse)
        if note is not None:
            right_hand_side.callback_accept_step = lambda s, X, ds: note(float(s))  # type: ignore[attr-defined]
        start = identity_like(W[..., 0, :, :]).contiguous()
        try:
            values = torchdiffeq.odeint(
                right_hand_side, start, times, method=self.method, options=options, **tolerances
            )
        except AssertionError as error:
            raise FloatingPointError(f"the depth solve with {self.method} failed: {error}") from error
        values = values.flip(0) if reverse else values
        return values[1:-1].movedim(0, -3), values[0] if reverse else values[-1]

    def _right_hand_side(self, W: Tensor, reverse: bool) -> Callable[[Tensor, Tensor], Tensor]:
        """(s, X) ↦ W(s) X; in reverse −X W(s)."""
        model, evaluations = self.grid.interpolant(W), 0

        def right_hand_side(s: Tensor, X: Tensor) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            at = model(min(max(float(s), 0.0), 1.0))
            slope = -X @ at if reverse else at @ X
            # torchdiffeq guards these cases by assert only, which `python -O` removes.
            if evaluations > MAX_EVALUATIONS or not bool(torch.isfinite(slope).all()):
                raise FloatingPointError(
                    f"the depth solve with {self.method} failed at s = {float(s):.6g} after {evaluations} evaluations: "
                    f"X or W is not finite there, or W varies too fast for rtol = {self.rtol:g}"
                )
            return slope

        return right_hand_side
