"""Whether the depth grid resolves W during a run: its error is watched, and on request it is refined or coarsened."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import is_memory, of_members
from ..depth.grid import DepthGrid, Profile, like, more_nodes
from ..flows.capabilities import (
    ChangesGrid,
    EstimatesCourse,
    EstimatesDepth,
    EstimatesSmooth,
    KnowsMisfit,
    Multiplies,
    offers,
)
from ..flows.continuous import Unresolved
from .base import FAILURES
from .endings import Stopped

_ORDERS = (4, 6, 8, 12, 16)
_MAX_NODES = 1024

# The grid may make this part of the error that the tolerance allows ...
_SHARE = 0.1
# ... and is coarsened when a coarser one would make far less than that, and its velocity no more than half.
_WASTE, _ROOM = 1e-3, 0.5

# What a user's class or object may end in for members, or on a grid, that it was not made for.
UNFIT = (RuntimeError, ValueError, TypeError, IndexError)

# The grid that measures another one is held to so much of its tolerance.
SMALLER = 1 / 30

# The error is estimated again when the last Legendre coefficients of W have grown by this factor.
_GROWTH = 1.5

# On a grid that must stay, z is called unresolved above this relative error, however loose the time tolerance is ...
UNRESOLVED = 1e-8
# ... and above this multiple of the tolerance.
MARGIN = 10.0

_ROUGH = "W is rough, or a larger tolerance is wanted"


def round_off(flow: Any, dtype: torch.dtype) -> float:
    """The relative round-off of z: 100 ε, and 1.5 ε for each factor of a product, whose errors may all have one sign.

    I + W/L of equal layers is rounded the same way L times: up to 1.3 L ε was seen in float32 for L = 100 … 1e5,
    d = 2 … 8 and all layer rules, half of it with layers that differ. A product that grows and shrinks again on the way
    loses more.
    """
    factors = flow.factors if offers(flow, Multiplies) else 0
    return float((100 + 1.5 * factors) * torch.finfo(dtype).eps)


def allowed(size: float, rtol: float, atol: float) -> float:
    """The depth error of a z of that Frobenius norm that calls for no word at these tolerances."""
    return max(MARGIN * (atol + rtol * size), UNRESOLVED * size)


class FixedGrid:
    """A flow whose grid stays, or that has none.

    Attributes
    ----------
    flow, base : Flow
        On its present grid, and on that of the start.
    """

    def __init__(self, flow: Any, rtol: float, atol: float, misfit: float | None = None) -> None:
        self.flow = self.base = flow
        self.rtol = rtol
        self.atol = atol
        self.largest = misfit or 0.0
        self.measured = misfit is not None
        self.history: list[str] = []
        self.has_grid = offers(flow, EstimatesDepth)

    def at_start(self, state: Tensor) -> Tensor:
        """The state on the grid that the run starts with."""
        return state

    def moved(self, start: Tensor) -> Tensor:
        """The initial state, by its panel polynomials, on the present grid."""
        return start if self.flow is self.base else self.base.transfer(start, self.flow.grid)

    def memory(self) -> list[float]:
        """What a resumed run must know."""
        return [self.largest]

    def resume(self, grid: list[int] | None, memory: list[float]) -> None:
        """Takes up what a checkpoint holds."""
        self.largest, self.measured = memory[0], True

    def after_step(self, t: float, state: Tensor) -> Tensor | None:
        """The state on another grid, if it must change now."""
        return None

    def at_output(self, state: Tensor, z: Tensor) -> float:
        """The error of z that comes from depth, up to now."""
        if self.has_grid:
            floor = round_off(self.flow, z.dtype) * _norm(z)
            self._note(max(self._error(self.flow, state), floor))
            self.measured = True
        return self.largest

    def _note(self, error: float) -> None:
        """An error on the present grid."""
        self.largest = max(self.largest, error)

    def _error(self, flow: Any, state: Tensor) -> float:
        """The error of z on the grid: guessed of a start that was not compared with its profile, else measured.

        What training adds to a start is as smooth as the propagators.
        """
        if self.measured and offers(flow, EstimatesSmooth):
            return flow.polynomial_error(state)
        error: float = flow.depth_error(state)
        return error

    @property
    def more(self) -> str:
        """What helps where the grid stays."""
        return f"use {more_nodes(getattr(self.flow, 'grid', None))}"

    @property
    def remedy(self) -> str:
        """What helps where the grid does not resolve W."""
        return f"{self.more}, or adapt=True"

    def verdict(self, z: Tensor, remedy: str | None = None) -> str | None:
        """What is to be said of the grid at the end."""
        if not self.has_grid:
            return None
        if self.largest <= allowed(_norm(z), self.rtol, self.atol):
            return None
        return self._sentence("", self.largest, remedy)

    def _sentence(self, members: str, error: float, remedy: str | None) -> str:
        grid = self.flow.grid
        return (
            f"the depth grid of {grid.panels} × {grid.order} nodes does not resolve W{members}: z is off by about "
            f"{error:.2g}; {remedy or self.remedy}"
        )


class GridOfMembers(FixedGrid):
    """A grid that stays, under members of a batch, each of which is held to the error of its own z.

    What the grid misses of a profile is known of the whole batch only: no member has less.

    Attributes
    ----------
    each : list of float
        The largest error of the z of each, where it may be too large for one.
    """

    def __init__(self, flow: Any, rtol: float, atol: float, misfit: float | None = None) -> None:
        super().__init__(flow, rtol, atol, misfit)
        self.each: list[float] = []

    def memory(self) -> list[float]:
        return [self.largest, *self.each]

    def resume(self, grid: list[int] | None, memory: list[float]) -> None:
        super().resume(grid, memory)
        self.each = memory[1:]

    def at_output(self, state: Tensor, z: Tensor) -> float:
        before, measured = self.largest, self.measured
        largest = super().at_output(state, z)
        if self.has_grid and largest > allowed(0.0, self.rtol, self.atol):
            self.measured = measured
            states, maps = state.flatten(0, z.ndim - 3), z.flatten(0, -3)
            unit = round_off(self.flow, z.dtype)
            known = self.each or [before] * len(maps)
            self.each = [
                max(so_far, self._error(self.flow, own), unit * _norm(one))
                for so_far, own, one in zip(known, states, maps, strict=True)
            ]
            self.measured = True
        return largest

    def unresolved(self, z: Tensor) -> Tensor | None:
        """Which members the grid does not resolve W of, at their last z, `(...)`; None where it is sure to be none."""
        if not self.each:
            return None
        pairs = zip(self.each, z.flatten(0, -3), strict=True)
        found = [error > allowed(_norm(one), self.rtol, self.atol) for error, one in pairs]
        return torch.tensor(found, device="cpu").reshape(z.shape[:-2])

    def verdict(self, z: Tensor, remedy: str | None = None) -> str | None:
        which = self.unresolved(z)
        if which is None or not bool(which.any()):
            return None
        error = max(error for error, lost in zip(self.each, which.flatten(), strict=True) if lost)
        return self._sentence(of_members(which), error, remedy)


class AdaptiveGrid(FixedGrid):
    """A flow whose grid follows W, refined where the error of z, by its estimate, reaches a tenth of the tolerance.

    Or where that of the velocity would make as much of z, in the way that W has left to go.
    """

    def __init__(self, flow: Any, rtol: float, atol: float, misfit: float | None = None) -> None:
        super().__init__(flow, rtol, atol, misfit)
        if not (self.has_grid and offers(flow, ChangesGrid)):
            raise ValueError(f"adapt=True needs a flow on a depth grid, and {type(flow).__name__} has none")
        self._tail = 0.0
        self._fits = False
        self._worst = self._size

    @property
    def _size(self) -> tuple[int, int]:
        """The present grid."""
        return self.flow.grid.panels, self.flow.grid.order

    @property
    def remedy(self) -> str:
        """What helps where the grid does not resolve W: there may be no finer one to go to."""
        return self.more if _finer(self.flow.grid) is not None else _ROUGH

    def _sentence(self, members: str, error: float, remedy: str | None) -> str:
        """Names the grid that made the error, which may have been left since."""
        if self._worst == self._size:
            return super()._sentence(members, error, remedy)
        (panels, order), (now, nodes) = self._worst, self._size
        first = self.base.grid
        more = more_nodes(first) if (first.panels, first.order) == self._worst else "more nodes"
        return (
            f"the depth grid of {panels} × {order} nodes, which was left for one of {now} × {nodes}, did not resolve "
            f"W{members}: z is off by about {error:.2g}; start on {more}"
        )

    def _note(self, error: float) -> None:
        if error > self.largest:
            self._worst = self._size
        super()._note(error)

    def at_start(self, state: Tensor) -> Tensor:
        moved = self._refined(0.0, state)
        return state if moved is None else moved

    def after_step(self, t: float, state: Tensor) -> Tensor | None:
        if self.flow.grid.tail(state) <= _GROWTH * self._tail:
            return None
        return self._refined(t, state)

    def at_output(self, state: Tensor, z: Tensor) -> float:
        self._tail = min(self._tail, self.flow.grid.tail(state))
        return super().at_output(state, z)

    def memory(self) -> list[float]:
        return [self.largest, self._tail, *self._worst]

    def resume(self, grid: list[int] | None, memory: list[float]) -> None:
        super().resume(grid, memory)
        self._tail = memory[1]
        if grid is not None and tuple(grid) != self._size:
            self.flow = self.flow.on(like(self.flow.grid, *grid))
        panels, order = memory[2:] or self._size  # a former version did not say which grid made the error
        self._worst = int(panels), int(order)

    def coarsened(self, t: float, state: Tensor) -> Tensor | None:
        """The state on a coarser grid, where that keeps it; asked for at output times."""
        grid = self.flow.grid
        position = _ORDERS.index(grid.order) if grid.order in _ORDERS else 0
        if position == 0:
            return None
        with _fitting(self.flow):
            coarse = self.flow.on(like(grid, grid.panels, _ORDERS[position - 1]))
            small = self.flow.transfer(state, coarse.grid)
        lost = float(torch.linalg.matrix_norm(coarse.transfer(small, grid) - state).max())
        allowed = self._allowed(state)
        # The part of W that a grid loses enters z squared: Gauss quadrature.
        if max(self._error(coarse, small), lost**2) > _WASTE * allowed:
            return None
        with _fitting(self.flow):
            if self._course(coarse, small) > _ROOM * allowed:
                return None
        return self._move(t, state, coarse)

    def _errors(self, flow: Any, state: Tensor) -> tuple[float, float]:
        """The error of z on the grid, and what the grid would make of it by the velocity, where that is known."""
        with _fitting(flow):
            return self._error(flow, state), self._course(flow, state)

    def _course(self, flow: Any, state: Tensor) -> float:
        if not offers(flow, EstimatesCourse):
            return 0.0
        try:
            return flow.course_error(state)
        except FAILURES:  # the run, which asks for the velocity too, tells of them
            return 0.0

    def _allowed(self, state: Tensor) -> float:
        z = self.flow.product(state)
        return max(_SHARE * (self.atol + self.rtol * _norm(z)), round_off(self.flow, z.dtype) * _norm(z))

    def _refined(self, t: float, state: Tensor) -> Tensor | None:
        allowed = self._allowed(state)
        self._tail = self.flow.grid.tail(state)
        found, (error, course) = self.flow, self._errors(self.flow, state)
        if max(error, course) <= allowed:
            return None
        self._note(error)
        while max(error, course) > allowed:
            grid = _finer(found.grid)
            if grid is None and error > allowed:
                raise Stopped(
                    "depth",
                    f"the depth grid cannot resolve W at t = {t:.6g}: with {_MAX_NODES} nodes z is still off by more "
                    f"than {allowed:.2g}; {_ROUGH}",
                )
            if grid is None:
                break
            with _fitting(self.flow):
                fine = self.flow.on(grid)
                moved = self.flow.transfer(state, grid)
            before, (finer_error, course) = course, self._errors(fine, moved)
            if error <= allowed and course > before / 2:  # round-off, or a W that is rough: more nodes are of no use
                break
            found, error = fine, finer_error
        return None if found is self.flow else self._move(t, state, found)

    def _move(self, t: float, state: Tensor, target: Any) -> Tensor:
        old, new = self.flow.grid, target.grid
        self.history.append(
            f"depth grid at t = {t:.6g}: from {old.panels} × {old.order} to {new.panels} × {new.order} nodes"
        )
        moved = self.flow.transfer(state, new)
        if not self._fits:
            _try(self.flow, target, moved)
            self._fits = True
        self.flow = target
        self._tail = target.grid.tail(moved)
        return moved


@contextmanager
def _fitting(flow: Any) -> Iterator[None]:
    """Says of a flow that fails on another grid than its own what it lacks for adapt=True.

    Raises
    ------
    ValueError
        If it fails there.
    """
    try:
        yield
    except FAILURES:  # they are of the state
        raise
    except UNFIT as error:
        if is_memory(error):
            raise
        own = f"{flow.grid.panels} × {flow.grid.order} nodes"
        raise ValueError(
            f"adapt=True puts {type(flow).__name__} on other depth grids, and what it holds is for its own of {own} "
            f"alone ({error}); let its method on(grid) put that on the grid as well, or leave adapt out"
        ) from error


def _try(flow: Any, moved: Any, state: Tensor) -> None:
    """Raises ValueError where a flow that was moved to another grid has no velocity there, and its loss is not why."""
    try:
        moved.velocity(state)
    except FAILURES:  # the run tells of them
        pass
    except UNFIT:
        moved.loss.gradient(moved.product(state))  # which says for itself what is wrong
        with _fitting(flow):
            raise


class Sampled(NamedTuple):
    """A flow, its initial state, and the profile that it was sampled from with the error of z that this makes, if any.

    The error is None where it is not known.
    """

    flow: Any
    start: Tensor
    profile: Profile | None
    misfit: float | None

    def finer(self) -> Sampled | None:
        """The same on a grid of twice the order, W itself where the profile is known; None where there is no grid."""
        flow = self.flow
        if not (offers(flow, EstimatesDepth) and offers(flow, ChangesGrid)):
            return None
        fine = flow.on(like(flow.grid, flow.grid.panels, 2 * flow.grid.order))
        start = flow.transfer(self.start, fine.grid) if self.profile is None else unwarned(fine, self.profile)
        return Sampled(fine, start, self.profile, None)


def sampled(flow: Any, start: Tensor, profile: Profile | None, adapt: bool, rtol: float, atol: float) -> Sampled:
    """A flow and its initial state, and how well that stands for a profile.

    With `adapt` the grid is refined until that is a tenth of the tolerance; a profile too rough for all grids is left
    to the verdict at the end.
    """
    compares = offers(flow, KnowsMisfit)
    if profile is None or not compares:
        return Sampled(flow, start, profile, None)
    misfit = flow.misfit(start, profile)
    allowed = _SHARE * (atol + rtol * _norm(flow.product(start)))
    grid = flow.grid
    given = flow
    with _fitting(given):
        while adapt and misfit > allowed and (grid := _finer(grid)) is not None:
            flow = flow.on(grid)
            start = unwarned(flow, profile)
            misfit = flow.misfit(start, profile)
    if flow is not given:
        _try(given, flow, start)
    return Sampled(flow, start, profile, misfit)


def unwarned(flow: Any, profile: Profile) -> Tensor:
    """The state of a profile; what a grid misses of it is told by the status of the run instead of a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Unresolved)
        state: Tensor = flow.sample(profile)
    return state


def _finer(grid: DepthGrid) -> DepthGrid | None:
    """The next grid to try: of higher order, then of more panels; None at the end."""
    larger = [m for m in _ORDERS if m > grid.order]
    panels, order = (grid.panels, larger[0]) if larger else (2 * grid.panels, grid.order)
    return like(grid, panels, order) if panels * order <= _MAX_NODES else None


def _norm(z: Tensor) -> float:
    return float(torch.linalg.matrix_norm(z).max())
