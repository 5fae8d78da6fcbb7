"""Events that end a run, by name: functions that fall to zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import isnan, nan
from typing import Any

import torch
from torch import Tensor

from ..checks import of_members, positive, real
from ..flows.base import Flow
from ..flows.capabilities import KnowsLogSigma, KnowsRate, Leaves, offers
from ..matrices import frobenius
from ..registry import Registry


@dataclass(frozen=True, eq=False)
class Point:
    """A state on the way, and what an event may ask of it; each is computed when it is asked for."""

    flow: Flow
    velocity: Callable[[float, Tensor], Tensor]
    t: float
    state: Tensor

    @cached_property
    def z(self) -> Tensor:
        """The end-to-end map; a copy, as a flow may put its next one where this one is."""
        return self.flow.product(self.state).clone()

    @cached_property
    def loss(self) -> Tensor:
        """f(z)."""
        return self.flow.loss(self.z)

    @property
    def given(self) -> Tensor:
        """The state in the coordinates in which it was given."""
        return self.z if offers(self.flow, Leaves) else self.state

    @property
    def rate(self) -> Tensor:
        """Its derivative in time, in the same coordinates."""
        flow: object = self.flow
        return flow.rate(self.state) if offers(flow, KnowsRate) else self.velocity(self.t, self.state)

    @property
    def sigma(self) -> Tensor:
        """The singular values of z."""
        flow: object = self.flow
        return torch.exp(flow.log_sigma(self.state)) if offers(flow, KnowsLogSigma) else torch.linalg.svdvals(self.z)


# An event is a function of a point and of the bound that was asked for; it happens where it falls to zero or below.
# Of a batch, the last member must get below a loss, gradient or rate; the first one to reach σ_min or a norm ends it.
Event = Callable[[Point, float], float]
EVENTS: Registry[Event] = Registry("event")


@EVENTS.register("loss")
def _loss(point: Point, bound: float) -> float:
    return float(point.loss.max()) - bound


@EVENTS.register("gradient")
def _gradient(point: Point, bound: float) -> float:
    return float(frobenius(point.flow.loss.gradient(point.z), point.loss.ndim).max()) - bound


@EVENTS.register("steady")
def _steady(point: Point, bound: float) -> float:
    return float(point.rate.abs().max()) - bound


@EVENTS.register("sigma_min")
def _sigma_min(point: Point, bound: float) -> float:
    return float(_singular(point).min()) - bound


@EVENTS.register("norm")
def _norm(point: Point, bound: float) -> float:
    return bound - float(_size(point).max())


def _singular(point: Point) -> Tensor:
    """The smallest singular value of z, `(...)`."""
    if point.z.ndim != point.loss.ndim + 2:
        raise ValueError(f"stop['sigma_min'] needs a flow whose z is a matrix, got z of shape {tuple(point.z.shape)}")
    return point.sigma.amin(-1)


def _size(point: Point) -> Tensor:
    """The Frobenius norm of z, `(...)`."""
    return frobenius(point.z, point.loss.ndim)


# Where one member is enough: which are the first, `(...)`.
_FIRST: dict[str, Callable[[Point], Tensor]] = {
    "sigma_min": lambda point: _singular(point) == _singular(point).min(),
    "norm": lambda point: _size(point) == _size(point).max(),
}


@EVENTS.register("time")
def _time(point: Point, bound: float) -> float:
    return bound - point.t


# What is said of an event: {of} names members, {fell} and {rose} are the verbs.
_SENTENCES = {
    "loss": "the loss {fell} {bound:g}, as was asked for,",
    "gradient": "the gradient of the loss {fell} {bound:g}, as was asked for,",
    "steady": "no entry of the state moves faster than {bound:g}, as was asked for,",
    "sigma_min": "the smallest singular value of z{of} {fell} {bound:g}",
    "norm": "the norm of z{of} {rose} {bound:g}",
    "time": "the time {bound:g} that was asked for was reached",
    "event": "the event {name!r} happened",
}
_ON_THE_WAY = {"fell": "fell to", "rose": "rose to"}
_AT_THE_START = {"fell": "is at most", "rose": "is at least"}


@dataclass(frozen=True)
class Stop:
    """One event that was asked for.

    Attributes
    ----------
    code : str
        Its key of ENDINGS.
    name : str
    bound : float
        NaN for an event of the user's own.
    falls : callable
        Point → float, at most zero once the event has happened.
    """

    code: str
    name: str
    bound: float
    falls: Callable[[Point], float]

    def sentence(self, point: Point, *, start: bool = False) -> str:
        """What the status says of it, at the point where it happened."""
        verbs = _AT_THE_START if start else _ON_THE_WAY
        of = of_members(_FIRST[self.code](point)) if self.code in _FIRST else ""
        what = _SENTENCES[self.code].format(bound=self.bound, name=self.name, of=of, **verbs)
        return f"{what} at t = {point.t:.6g}" + (", the start" if start else "")


def checked(stop: Mapping[str, Any] | None, start: float) -> list[Stop]:
    """The events of `integrate(stop=…)`.

    Raises
    ------
    TypeError, ValueError
        If a name is unknown, or a bound is not a number above zero.
    """
    if stop is None:
        return []
    if not isinstance(stop, Mapping):
        raise TypeError(f"stop must be a dict of events and bounds such as {{'loss': 1e-6}}, got {stop!r}")
    events = [_stop(name, bound) for name, bound in stop.items()]
    if "time" in stop and not callable(stop["time"]) and not stop["time"] > start:
        raise ValueError(f"stop['time'] must be above the first time {start:g}, got {stop['time']!r}")
    return events


def _stop(name: str, bound: Any) -> Stop:
    if not isinstance(name, str):
        raise TypeError(f"the names of events in stop must be text, got {name!r}")
    if callable(bound):
        if name in EVENTS:
            raise TypeError(f"stop[{name!r}] must be a number: the name belongs to an event; give yours another name")
        return Stop("event", name, nan, partial(_user_event, name, bound))
    event = EVENTS[name]
    limit = real("stop['time']", bound) if name == "time" else positive(f"stop[{name!r}]", bound)
    return Stop(name, name, limit, lambda point: event(point, limit))


def _user_event(name: str, function: Callable[[float, Tensor, Tensor], Any], point: Point) -> float:
    value = function(point.t, point.z, point.given)
    try:
        number = float(value)
        if isnan(number):
            raise ValueError("nan")
        return number
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"stop[{name!r}] must return a number, got {value!r}") from error
