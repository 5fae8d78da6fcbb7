"""Where, inside a step, an event happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isnan
from sys import float_info

from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from ..flows.falling import loss_falls
from .base import FAILURES, Stepper, Velocity
from .endings import Stopped
from .events import Point, Stop
from .resolution import FixedGrid

# Inside a step an event is looked at in these parts of it, on the sketch that the method makes.
_PARTS = (0.25, 0.5, 0.75)

# A sketch that comes this near to zero, as a part of its range within the step, is followed by the method itself.
_NEAR = 0.05

# Around the bottom of the sketch, in this part of the place where it lies, the method repeats its step so many times.
_AROUND, _REPEATED = 0.1, 12

# To which part of a time and of a step an event is located: as closely as a time can be told, after a long time too.
_NEAREST, _OF_STEP = 4 * float_info.epsilon, 1e-12


class Happened(Stopped):
    """A run has come to an event that was asked for, at a point on its way."""

    def __init__(self, event: Stop, point: Point, *, start: bool = False) -> None:
        super().__init__(event.code, event.sentence(point, start=start))
        self.t, self.state = point.t, point.state


def value(event: Stop, point: Point) -> float:
    """What an event is worth; raises Stopped where it cannot be computed."""
    try:
        found = event.falls(point)
    except FAILURES as error:
        raise Stopped("velocity", f"an event could not be computed at t = {point.t:.6g}: {error}") from error
    if isnan(found):
        raise Stopped(
            "not_finite", f"the event {event.name!r} is not a number at t = {point.t:.6g}: z is not finite there"
        )
    return found


class Lookout:
    """Looks out for events, step by step.

    Parameters
    ----------
    events : sequence of Stop
    velocity : Velocity
    grid : FixedGrid
        It has the flow.
    """

    def __init__(self, events: Sequence[Stop], velocity: Velocity, grid: FixedGrid) -> None:
        self.events = events
        self.velocity = velocity
        self.grid = grid
        self._falls = loss_falls(grid.flow)  # then it has not been lower inside a step than at the end of it
        self._values: dict[int, tuple[float, float]] = {}  # of each event, when and how high it was last

    def point(self, stepper: Stepper, t: float) -> Point:
        """The state inside the last step."""
        return Point(self.grid.flow, self.velocity, t, stepper.at(t))

    def at_start(self, t: float, state: Tensor) -> None:
        """Ends the run at the first event in their order that has happened at the start."""
        here = Point(self.grid.flow, self.velocity, t, state)
        event = next((event for event in self.events if value(event, here) <= 0), None)
        if event is not None:
            raise Happened(event, here, start=True)

    def inside(self, stepper: Stepper, before: float) -> tuple[float, Stop] | None:
        """Time and event of the first one that happens inside the last step."""
        happened = [(at, event) for event in self.events if (at := self._time(event, stepper, before)) is not None]
        return min(happened, key=lambda pair: pair[0]) if happened else None

    def _time(self, event: Stop, stepper: Stepper, before: float) -> float | None:
        def falls(t: float) -> float:
            return value(event, self.point(stepper, t))

        key, after = id(event), stepper.t
        known = self._values.get(key)
        first = known[1] if known is not None and known[0] == before else falls(before)
        last = falls(after)
        self._values[key] = (after, last)
        if first <= 0:
            return before
        below = None
        if event.code != "time" and not (event.code == "loss" and self._falls and last < first):
            below = self._dip(event, stepper, (before, first), (after, last))
        if below is None and last <= 0:
            below = after
        return None if below is None else _root(falls, before, below)

    def _dip(self, event: Stop, stepper: Stepper, start: tuple[float, float], end: tuple[float, float]) -> float | None:
        """A time inside the step at which the event has happened, though perhaps it has not at the end of it.

        The event is followed along the sketch: at three points inside, and to the bottom where these show one.
        """
        span = end[0] - start[0]
        times = [start[0], *(start[0] + part * span for part in _PARTS), end[0]]

        def slope(t: float, _: Tensor) -> Tensor:
            h = 1e-3 * span
            low, high = max(start[0], t - h), min(end[0], t + h)
            return (stepper.sketch(high) - stepper.sketch(low)) / (high - low)

        def sketched(t: float) -> float:
            try:
                value = event.falls(Point(self.grid.flow, slope, t, stepper.sketch(t)))
            except (*FAILURES, TypeError, ValueError):
                return inf  # a sketch may leave the maps on which the event is defined
            return inf if isnan(value) else value

        values = [start[1], *(sketched(t) for t in times[1:-1]), end[1]]
        finite = [value for value in values if value < inf]
        near = _NEAR * (max(finite) - min(finite)) if finite else 0.0
        for low, high in _valleys(values):
            bottom = minimize_scalar(
                sketched, bounds=(times[low], times[high]), method="bounded", options={"xatol": 1e-4 * span}
            )
            between = list(zip(values[low + 1 : high], times[low + 1 : high], strict=True))
            value, at = min([*between, (float(bottom.fun), float(bottom.x))])
            if value <= near and (found := self._bottom(event, stepper, at, (times[low], times[high]))) is not None:
                return found
        return None

    def _bottom(self, event: Stop, stepper: Stepper, at: float, within: tuple[float, float]) -> float | None:
        """A time at which the method itself says that the event has happened, near one at which its sketch does."""

        def falls(t: float) -> float:
            return value(event, self.point(stepper, t))

        if falls(at) <= 0:
            return at
        reach = _AROUND * (within[1] - within[0])
        bounds = max(within[0], at - reach), min(within[1], at + reach)
        closer = minimize_scalar(falls, bounds=bounds, method="bounded", options={"maxiter": _REPEATED})
        return float(closer.x) if closer.fun <= 0 else None


def _valleys(values: list[float]) -> list[tuple[int, int]]:
    """Between which of five equidistant points a function has a minimum that is lower than both of them, in turn.

    At the ends that is told by the slope of the parabola through the nearest three.
    """
    last = len(values) - 1
    found = [
        (i - 1, i + 1)
        for i in range(1, last)
        if values[i] <= min(values[i - 1], values[i + 1]) and values[i] < max(values[i - 1], values[i + 1])
    ]
    if values[0] <= values[1] and -3 * values[0] + 4 * values[1] - values[2] < 0:
        found.insert(0, (0, 1))
    if values[last] <= values[last - 1] and 3 * values[last] - 4 * values[last - 1] + values[last - 2] > 0:
        found.append((last - 1, last))
    return found


def _root(falls: Callable[[float], float], before: float, below: float) -> float:
    """The far side of a root between `before`, where `falls` is above zero, and `below`, where it is not."""
    least = _OF_STEP * (below - before)
    at = float(brentq(falls, before, below, xtol=least, rtol=_NEAREST))
    # An event that jumps up and down may need more.
    beyond = max(least, _NEAREST * abs(at))
    while falls(at) > 0:
        at, beyond = min(below, at + beyond), 2 * beyond
    return at
