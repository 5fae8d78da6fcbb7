"""Explicit Runge–Kutta steps in the compiled engine: all stages of many states, each with a step of its own."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import picard
from ..workspace import Workspace
from . import compiled, polar, squares

if TYPE_CHECKING:
    from ..grid import DepthGrid
    from ..promises import LayerRule

# Numbers of a state up to which its slopes of all stages are kept side by side; beyond, velocities are all the work.
LARGEST = 2**18

# Bytes of the stages of as many states as are taken together where the loss is asked between them: they fit caches.
_TOGETHER = 2**21

_WORKSPACE = Workspace()


class Tableau(NamedTuple):
    """An explicit formula with S slopes after the first, the last of them where the step ends.

    Attributes
    ----------
    weights : ndarray (S, S + 1)
        What of the slopes before it leads to each stage; the last row leads to the end of the step.
    solution : ndarray (S + 1,) or None
        What leads there, where that is another combination of all slopes.
    errors : ndarray (1, S + 1) or (2, S + 1)
        What of the slopes is the error; of two, the second is the one of order 3 of DOP853.
    rtol, atol : float
    """

    weights: np.ndarray
    solution: np.ndarray | None
    errors: np.ndarray
    rtol: float
    atol: float


class Tried(NamedTuple):
    """Where steps lead, the slopes there, of the shape of the states, and errors over tolerances `(n,)`.

    The error is NaN, and nothing else means anything, of a step whose velocities could not be had or are not finite.
    """

    ahead: Tensor
    slope: Tensor
    error: np.ndarray

    def of_all(self) -> Tried:
        """The only one, of all states together."""
        return Tried(self.ahead[0], self.slope[0], self.error[0])


class _Steps(ctypes.Structure):
    """As in engine.c; what is not set is computed there."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("rows", "members", "L", "N", "numbers", "size")),
        *((name, ctypes.c_int) for name in ("panels", "m", "d", "rule", "polar", "threads", "stages", "estimates")),
        *((name, ctypes.c_double) for name in ("alpha", "rtol", "atol")),
        *((name, ctypes.c_void_p) for name in ("J", "ends", "weights", "solution", "errors")),
        ("loss", squares.Given),
        *((name, ctypes.c_void_p) for name in ("h", "y", "f", "ahead", "slope", "error", "z", "G")),
    )


def takes(states: Tensor, rule: LayerRule | None = None) -> bool:
    """Whether steps of states `(n, ..., N, d, d)` are for the engine."""
    known = rule is None or compiled.number_of(rule) != compiled.PLAIN
    return known and compiled.takes(states) and 0 < states.numel() <= states.shape[0] * LARGEST


def flow(grid: DepthGrid, states: Tensor, slopes: Tensor, h: np.ndarray, loss: Any, tableau: Tableau) -> Tried | None:
    """A step of each state `(n, ..., N, d, d)` on the nodes of a grid along its slope, of size h `(n,)`.

    The velocity is −P(1,s_i)ᵀ G P(s_i,0)ᵀ with the gradient G of the loss. None where the engine does not take them. A
    step h `()` is that of all states `(..., N, d, d)` together.
    """
    J, ends = picard.integrals(grid.panels, grid.order, torch.float64, torch.device("cpu"))
    model = {"panels": grid.panels, "m": grid.order, "J": J.data_ptr(), "ends": ends.data_ptr()}
    return _tried(model, states, slopes, h, loss, tableau)


def chain(
    states: Tensor, slopes: Tensor, h: np.ndarray, loss: Any, tableau: Tableau, rule: LayerRule, depth: int
) -> Tried | None:
    """As `flow`, of layers `(n, ..., L, d, d)`: minus the gradient in all W_k/depth of U_k = rule(W_k/depth)."""
    model = {"L": states.shape[-3], "rule": compiled.number_of(rule), "alpha": 1 / depth}
    return _tried(model, states, slopes, h, loss, tableau) if compiled.number_of(rule) != compiled.PLAIN else None


def closed(states: Tensor, slopes: Tensor, h: np.ndarray, loss: Any, tableau: Tableau) -> Tried | None:
    """As `flow`, of the closed flow in logarithms `(n, ..., 2, d, d)` with the kernel of infinite depth."""
    return _tried({"polar": 1}, states, slopes, h, loss, tableau) if polar.takes(states) else None


def _tried(
    model: dict[str, Any], states: Tensor, slopes: Tensor, h: np.ndarray, loss: Any, tableau: Tableau
) -> Tried | None:
    shared, h = np.ndim(h) == 0, np.array(h, dtype=float, ndmin=1)
    if shared:
        states, slopes = states[None], slopes[None]
    if states.shape != slopes.shape or h.shape != states.shape[:1]:
        raise ValueError(
            f"slopes and h must be those of {len(states)} states {tuple(states.shape)}, "
            f"got shapes {tuple(slopes.shape)} and {h.shape}"
        )
    if not takes(states) or not compiled.is_numbers(slopes):
        return None
    states, slopes = states.contiguous(), slopes.contiguous()
    tried = Tried(torch.empty_like(states), torch.empty_like(states), np.empty(len(states)))
    members, d = math.prod(states.shape[1:-3]), states.shape[-1]
    weights, solution, errors = tableau.weights, tableau.solution, tableau.errors
    steps = _Steps(
        members=members, d=d, threads=torch.get_num_threads(), **model,
        stages=len(weights), estimates=len(errors), rtol=tableau.rtol, atol=tableau.atol,
        weights=weights.ctypes.data, solution=None if solution is None else solution.ctypes.data,
        errors=errors.ctypes.data,
    )  # fmt: skip
    known = squares.given(loss, tuple(states.shape[:-3]), d)
    if known:
        steps.loss = known[0]
        _given(steps, states, slopes, h, tried)
        _whole(steps, states)
        return tried.of_all() if shared else tried
    z = states.new_empty(*states.shape[:-3], d, d)
    n, most = len(states), max(1, _TOGETHER // (8 * states[0].numel() * (len(weights) + 2)))
    for i in range(0, n, most):
        some = slice(i, i + most)
        part = loss if n <= most else _of(loss, torch.arange(n, device="cpu")[some], n)
        ours = Tried(tried.ahead[some], tried.slope[some], tried.error[some])
        _given(steps, states[some], slopes[some], h[some], ours)
        if not _by_stages(steps, part, z[some], shared):
            return None
    return tried.of_all() if shared else tried


def _given(steps: _Steps, states: Tensor, slopes: Tensor, h: np.ndarray, tried: Tried) -> None:
    """Writes down where the numbers are."""
    steps.rows, steps.h, steps.error = len(states), h.ctypes.data, tried.error.ctypes.data
    steps.y, steps.f, steps.ahead, steps.slope = (
        part.data_ptr() for part in (states, slopes, tried.ahead, tried.slope)
    )


def _of(loss: Any, index: Tensor, n: int) -> Any:
    """That of some of n states."""
    return loss.select((n,), index) if hasattr(loss, "select") else loss


def _whole(steps: _Steps, like: Tensor) -> None:
    """Whole steps."""
    library = compiled.loaded()
    with _WORKSPACE.lend() as take:
        room = take("steps", (-(-library.attempt_scratch(ctypes.byref(steps)) // 8),), like)
        library.attempt(ctypes.byref(steps), room.data_ptr(), 0)


def _by_stages(steps: _Steps, loss: Any, z: Tensor, shared: bool) -> bool:
    """The same, of any loss: its gradient is asked for at each stage. False where it does not give numbers."""
    library, G = compiled.loaded(), torch.empty_like(z)
    steps.z, steps.G = z.data_ptr(), G.data_ptr()
    with _WORKSPACE.lend() as take:
        # Of a size that stays when a few members have come to their end.
        room = take("stages", (1 << (library.attempt_scratch(ctypes.byref(steps)) // 8).bit_length(),), z)
        for k in range(1, steps.stages + 1):
            library.attempt(ctypes.byref(steps), room.data_ptr(), k)
            # A tensor of its own, which the loss may keep, and of the shape that it has in a velocity.
            gradient = loss.gradient((z[0] if shared else z).clone())
            if not compiled.is_numbers(gradient):
                return False
            G.copy_(gradient)
        library.attempt(ctypes.byref(steps), room.data_ptr(), steps.stages + 1)
    return True
