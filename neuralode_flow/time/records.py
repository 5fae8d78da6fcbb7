"""What a run records at its outputs: z, loss, drift of the law, the error in depth, and what an observer returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..checks import all_finite, of_members
from ..flows.capabilities import KnowsLogSigma, Leaves, TellsLawChange, offers
from ..laws import drift
from .base import FAILURES, Stepper
from .endings import Stopped
from .members import advice, culprits, not_finite
from .resolution import FixedGrid
from .trajectory import Trajectory

Observer = Callable[[int, Tensor], Tensor | None]

# What is recorded, and what it is called in sentences.
_COLUMNS = {"z": "end-to-end map", "loss": "loss", "drift": "law", "carried_log_sigma": "logarithm of σ"}


def given(flow: Any, state: Tensor) -> Tensor:
    """A state in the coordinates in which it was given."""
    return flow.leave(state) if offers(flow, Leaves) else state


class Records:
    """The rows of a trajectory: one for each output, and one for the end of a run that ends elsewhere.

    Parameters
    ----------
    grid : FixedGrid
        It has the flow.
    start : Tensor
        The state at `t`.
    t : float
    observe : callable, optional
    checks : bool
        Whether the drift of the law and the error in depth are measured; they are NaN else.

    Attributes
    ----------
    outputs : int
        How many outputs there are.
    last : float and Tensor
        Time and state where z was computed last.
    law_modes : dict or None
        The last drift by Legendre mode, where the flow tells it.
    drift_of : callable or None
        The drift of a state, where the law is known not to stay.
    """

    def __init__(
        self, grid: FixedGrid, start: Tensor, t: float, observe: Observer | None, *, checks: bool = True
    ) -> None:
        self.grid = grid
        self.start = start
        self.observe = observe
        self.checks = checks
        self.outputs = 0
        self.last = t, start
        self.times: list[float] = []
        names = [name for name in _COLUMNS if name != "carried_log_sigma" or offers(grid.flow, KnowsLogSigma)]
        self.columns: dict[str, list[Tensor]] = {name: [] for name in names}
        self.depth_errors: list[float] = []
        self.observed: list[Tensor] = []
        self.law_modes: dict[str, list[Any]] | None = None
        self.drift_of: Callable[[Tensor], Tensor] | None = None
        self.most: Tensor | None = None
        self._moved: Callable[[Tensor], Tensor] | None = None  # how far the law has moved from the start

    @property
    def members(self) -> torch.Size:
        """The leading axes of a batch; none before the first row."""
        return self.columns["loss"][0].shape if self.times else torch.Size()

    def take_up(self, reached: Trajectory, outputs: int) -> None:
        """Begins with the first rows of a trajectory that was saved."""
        self.outputs, kept = outputs, slice(outputs)
        self.times = reached.times.tolist()[kept]
        self.columns = {name: list(getattr(reached, name).to(self.start.device)[kept]) for name in self.columns}
        self.depth_errors = reached.depth_error.tolist()[kept]
        if reached.observed is not None:
            self.observed = list(reached.observed.to(self.start.device))[kept]

    def drop(self, outputs: int, last: tuple[float, Tensor]) -> None:
        """Goes back to when there were fewer outputs."""
        self.outputs, self.last, kept = outputs, last, slice(outputs)
        self.times, self.depth_errors, self.observed = self.times[kept], self.depth_errors[kept], self.observed[kept]
        self.columns = {name: values[kept] for name, values in self.columns.items()}

    def change_grid(self) -> None:
        """Goes on on another grid: the law of the start is that of its panel polynomials there."""
        self._moved = None

    def until(self, t: float, points: list[float], stepper: Stepper, good: Tensor) -> None:
        """Records the outputs inside the last step, up to t; `good` is a state at which nothing has failed."""
        while self.outputs < len(points) and points[self.outputs] <= t:
            point = points[self.outputs]
            self.output(point, stepper.at(point), good, stepper.z if point == stepper.t else None)

    def output(self, t: float, state: Tensor, good: Tensor, z: Tensor | None = None) -> None:
        """Records the next output, with z of the state where that is known."""
        self.add(t, state, good, z)
        if self.observe is not None:
            shown = given(self.grid.flow, state)
            # The state is the caller's own at the start, the method's where a step ends: an observer may write into it.
            seen = self.observe(self.outputs, shown.clone() if shown is state else shown)
            if seen is not None:
                self._check_observed(seen)
                self.observed.append(seen.clone())
        self.outputs += 1

    def _check_observed(self, seen: Any) -> None:
        """Raises at once what could not be stacked at the end of a long run."""
        if not isinstance(seen, Tensor):
            raise TypeError(f"observe must return a tensor or None, got {type(seen).__name__}")
        first = self.observed[0] if self.observed else seen
        if seen.shape != first.shape or seen.dtype != first.dtype or len(self.observed) != self.outputs:
            raise ValueError(
                f"observe must return tensors of one shape and dtype at every output, got {tuple(first.shape)} "
                f"{first.dtype} before and {tuple(seen.shape)} {seen.dtype} at output {self.outputs}"
            )

    def add(self, t: float, state: Tensor, good: Tensor, z: Tensor | None = None) -> None:
        """Adds a row; raises Stopped unless all of it is finite, and no loss is beyond `most`."""
        flow = self.grid.flow
        try:
            z = flow.product(state) if z is None else z
            values = {"z": z, "loss": flow.loss(z)}
            self._check(t, values, values["loss"].shape)
            # A law need not know what to say of numbers that are none.
            seen = {"drift": self._drift(state)} if self.checks else {}
            if "carried_log_sigma" in self.columns:
                seen["carried_log_sigma"] = flow.log_sigma(state)
            self._check(t, seen, values["loss"].shape)
            values |= seen
            if self.checks:
                depth_error = self.grid.at_output(state, z)
            else:
                values["drift"], depth_error = torch.full_like(values["loss"], torch.nan), math.nan
        except FAILURES as error:
            which = culprits(flow.product, FAILURES, state, good, self.members)
            raise Stopped(
                "velocity",
                f"the end-to-end map{of_members(which)} could not be computed at t = {t:.6g}: {error}{advice(which)}",
            ) from error
        if self.most is not None and bool((beyond := values["loss"] > self.most).any()):
            loss = float(values["loss"][beyond].max())
            raise Stopped("not_finite", f"the loss{of_members(beyond)} has grown to {loss:.3g}{advice(beyond)}")
        self.times.append(t)
        self.depth_errors.append(depth_error)
        for name, value in values.items():
            self.columns[name].append(value.clone())  # a flow may put its next one where this one is
        self.last = t, state

    def _check(self, t: float, values: Mapping[str, Tensor], members: torch.Size) -> None:
        """Raises Stopped unless these are finite."""
        for name, value in values.items():
            if not all_finite(value):
                which = not_finite(value, members)
                why = "the flow blew up, or its step was too large" if self.times else "it is so from the start"
                raise Stopped(
                    "not_finite",
                    f"the {_COLUMNS[name]}{of_members(which)} is not finite at t = {t:.6g}: {why}{advice(which)}",
                )

    def _drift(self, state: Tensor) -> Tensor:
        if self.drift_of is not None:
            return self.drift_of(state)
        self._moved = self._moved or self._from_start()
        return self._moved(state)

    def _from_start(self) -> Callable[[Tensor], Tensor]:
        """The drift of a state; a flow that knows what its grid can hold says how much of a change is none."""
        flow, origin = self.grid.flow, self.grid.moved(self.start)
        if not offers(flow, TellsLawChange):
            law = flow.law(origin)
            return lambda state: drift(flow.law(state), law)
        change = flow.law_changes(origin)

        def moved(state: Tensor) -> Tensor:
            found = change(state)
            self.law_modes = {"drift": found.modes.tolist(), "bound": found.bounds.tolist()}
            return found.drift

        return moved

    def tensors(self) -> dict[str, Any]:
        """The columns of the trajectory."""
        columns: dict[str, Any] = {name: torch.stack(values) for name, values in self.columns.items()}
        device = self.columns["loss"][0].device
        for name, numbers in (("times", self.times), ("depth_error", self.depth_errors)):
            columns[name] = torch.tensor(numbers, dtype=torch.float64, device=device)
        return columns | {"observed": torch.stack(self.observed) if self.observed else None}
