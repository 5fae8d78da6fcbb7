"""How a study moves through training time: along flows by `Clock`, in the steps of an optimiser by `Steps`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from ..depth.grid import Profile
from ..flows.base import Flow
from ..flows.capabilities import Samples, offers
from ..matrices import frobenius
from ..time.base import METHODS, fixed_steps
from ..time.descend import check_rule, descend
from ..time.integrate import integrate
from ..time.progress import Report
from ..time.steprule import STEP_RULES
from ..time.trajectory import Trajectory, common_times, stopped
from .pace import Pace
from .together import Call, Paths

Result = TypeVar("Result")

# What is trained, and from where.
Start = tuple[Flow, Tensor | Profile]


@dataclass(frozen=True, eq=False, kw_only=True)
class Schedule:
    """What all the runs of a study have in common.

    Attributes
    ----------
    times : Tensor (T,)
        Output times.
    checkpoints : Path or None
        Folder in which the runs of the study are saved, each under its own name.
    save_every : float
        Seconds of wall time between two savings of a run.
    max_evaluations : int or None
        Budget of each run; by default that of `integrate` or `descend`.
    max_seconds : float or None
        Budget of wall time of all runs together, counted from `started`.
    started : float
        When this was made, by `time.monotonic`.
    pace : Pace
        What watches the progress of all integrations.
    """

    times: Tensor
    checkpoints: Path | None = None
    save_every: float = 60.0
    max_evaluations: int | None = None
    max_seconds: float | None = None
    started: float = field(default_factory=time.monotonic)
    pace: Pace = field(default_factory=Pace)

    def saving(self, name: str) -> dict[str, Any]:
        """How one run of the study is saved, and taken up by its name, and what is left to it: as arguments."""
        file = self.checkpoints and self.checkpoints / f"{name}.npz"
        return {"checkpoint": file, "every": self.save_every, **self.budgets()}

    def budgets(self) -> dict[str, Any]:
        """What is left to a run that begins now, as arguments of `integrate`."""
        left: dict[str, Any] = {}
        if self.max_evaluations is not None:
            left["max_evaluations"] = self.max_evaluations
        if self.max_seconds is not None:
            spent = time.monotonic() - self.started
            left["max_seconds"] = max(self.max_seconds - spent, 1e-9)
        return left

    def solved(self, solve: Callable[[list[Any]], list[Result]], posed: Any, kind: Any) -> Result:
        """solve([posed])[0]; where members run side by side, of solve for all that pose what is of the same kind.

        A kind of None is like no other.
        """
        return solve([posed])[0]

    def run(self, flow: Flow, state: Any, name: str, times: Tensor | None = None, **more: Any) -> Trajectory:
        """One run of the study."""
        raise NotImplementedError

    def beside(
        self, flows: Sequence[Flow], states: Tensor, name: str, times: Tensor | None = None, **more: Any
    ) -> Paths:
        """`run` for several members, from states `(members, …)`, each as it would be alone.

        Of `observe` each has its own.
        """
        if not flows:
            raise ValueError("there must be at least one flow, got none")
        looks = more.pop("observe", None) or [None] * len(flows)
        names = [name] if len(flows) == 1 else [f"{name}-{i}" for i in range(len(flows))]
        paths = [
            self.run(flow, state, own, times, **more, **({} if look is None else {"observe": look}))
            for flow, state, own, look in zip(flows, states, names, looks, strict=True)
        ]
        return Paths.of(paths, self.times if times is None else times)

    def used_up(self) -> bool:
        """Whether the wall time of the whole run is over: for what is computed without an integration."""
        return self.max_seconds is not None and time.monotonic() - self.started >= self.max_seconds


@dataclass(frozen=True, eq=False, kw_only=True)
class Clock(Schedule):
    """How the integrations of a study run.

    Attributes
    ----------
    method : str
        Time method.
    rtol, atol : float
        Tolerances in time.
    step : float or None
        Step size of fixed-step methods.
    checks : bool
        Whether the drift of laws and the error in depth are measured.
    carried_out : callable
        `integrate`, or the `Company` of a member that runs beside others.
    """

    in_steps: ClassVar[bool] = False

    method: str
    rtol: float
    atol: float
    step: float | None = None
    checks: bool = True
    carried_out: Callable[..., Trajectory] = integrate

    def run(
        self, flow: Flow, state: Tensor | Profile, name: str, times: Tensor | None = None, **more: Any
    ) -> Trajectory:
        """A flow from a state at the output times, or at others; more are arguments of `integrate`."""
        at = self.times if times is None else times
        return self.carried_out(flow, state, at, **{**self.options(name), **more})

    def beside(
        self, flows: Sequence[Flow], states: Tensor, name: str, times: Tensor | None = None, **more: Any
    ) -> Paths:
        if len(flows) < 2 or self.checkpoints is not None:  # each is saved by itself
            return super().beside(flows, states, name, times, **more)
        looks = more.pop("observe", None) or [None] * len(flows)
        options = {**self.options(name), **more}
        calls = [
            Call(flow, state, self.times if times is None else times, options | {"observe": look})
            for flow, state, look in zip(flows, states, looks, strict=True)
        ]
        return Paths(calls)

    def solved(self, solve: Callable[[list[Any]], list[Result]], posed: Any, kind: Any) -> Result:
        solved = getattr(self.carried_out, "solved", None)
        if solved is None or kind is None:
            return super().solved(solve, posed, kind)
        own = self.method, self.rtol, self.atol, self.step, self.max_evaluations, self.checks, *self.times.tolist()
        found = solved(solve, posed, (kind, own))
        return super().solved(solve, posed, kind) if found is None else found

    def by_z(
        self, closed: Flow, z0: Tensor, other: Callable[[], Start], name: str, times: Tensor | None = None, **more: Any
    ) -> Trajectory:
        """What z₀ alone decides on relaxed balanced starts: the flow that is closed on z."""
        return self.run(closed, z0, name, times, **more)

    def decides(self, z0: Tensor) -> bool:
        """Whether z₀ alone decides anything: `by_z` can be asked."""
        return True

    @property
    def decided(self) -> bool:
        """Whether z₀ alone decides all z on relaxed balanced starts."""
        return True

    @property
    def control(self) -> dict[str, Any]:
        """What the runs are controlled by, as attributes of a dataset."""
        return {"method": self.method, "rtol": self.rtol, "atol": self.atol}

    def tight(self) -> Self:
        """The same with more accurate steps, to measure the error in time; `time_error` compares the two.

        The tolerances are 100 times smaller, as far as float64 goes, and every step of a method of fixed steps is cut
        in two. A time is put between each two output times, since there are methods whose steps end at all of them:
        every second of the new times is one of the old. Drift and depth error, which are known, are not measured again.
        """
        between = (self.times[1:] + self.times[:-1]) / 2
        times = torch.cat((self.times[:1], torch.stack((between, self.times[1:]), dim=-1).flatten()))
        step = None if self.step is None else self.step / 2
        rtol, atol = max(self.rtol / 100, 2.3e-14), self.atol / 100
        return replace(self, rtol=rtol, atol=atol, step=step, times=times, checks=False)

    def time_error(self, z: Tensor, tight: Tensor) -> Tensor:
        """The error in time of a path z `(T, …)`, entry by entry, from its path `(2T − 1, …)` at `tight()`.

        Half a step of a method of order 1 leaves half the error, so that the difference counts twice there; of a
        higher order it leaves less, and the error is overstated, at most twofold. Smaller tolerances leave nothing.
        """
        return (2.0 if self.fixed_steps else 1.0) * (tight[::2] - z)

    def floor(self, error_time: float, *others: float) -> float:
        """What is left of the distance of a network from its limit when the number of layers has no part in it.

        Errors of its own in time are in it where the steps follow the tolerances. Steps of a given size are the same on
        both sides: their error is that of both flows, and the sequence of the one tends to that of the other.
        """
        return max([1e-14, *others, *([] if self.fixed_steps else [error_time])])

    @property
    def fixed_steps(self) -> bool:
        """Whether the method has steps of a given size, whose error does not follow the tolerances."""
        return fixed_steps(METHODS[self.method])

    def watched(self) -> Report | None:
        """What is to be told of the progress of one integration."""
        return self.pace.watch(self.method)

    def options(self, name: str) -> dict[str, Any]:
        """How `integrate` is called for one integration of the study, which is saved and taken up by its name."""
        control = {"method": self.method, "rtol": self.rtol, "atol": self.atol, "step": self.step}
        return {**control, **self.saving(name), "progress": self.watched() or False, "checks": self.checks}


@dataclass(frozen=True, eq=False, kw_only=True)
class Steps(Schedule):
    """How the trainings in steps of a study run: the steps are what is studied, and have no error in time.

    What is measured in its place is round-off: how far one rounding of the start takes z away.

    Attributes
    ----------
    rule : str
        Step rule.
    rate : float
        Step size, of which the distance of two output times is a multiple.
    settings : dict
        Options of the rule.
    nudged : bool
        Whether starts are off by one rounding.
    """

    in_steps: ClassVar[bool] = True

    rule: str
    rate: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    nudged: bool = False

    def run(
        self,
        flow: Flow,
        state: Tensor | Profile,
        name: str,
        times: Tensor | None = None,
        *,
        adapt: bool = False,
        estimate: bool = False,
        checks: bool = True,
        **more: Any,
    ) -> Trajectory:
        """A flow in steps from a state to the last of the output times, or of others; more are arguments of `descend`.

        The depth grid stays the same in steps, whatever `adapt` says, and the law is looked at, whatever `checks` says.
        `estimate` measures what one rounding of the start does, as `time_error`, by a second run.
        """
        last = float((self.times if times is None else times)[-1])
        arguments = {"record": self.record, **self.saving(name), **more, **self.settings}
        start = self._start(flow, state)
        path = descend(flow, start, max(1, round(last / self.rate)), self.rule, self.rate, **arguments)
        if not estimate or stopped([path]) != "ok":
            return path
        again = {name: value for name, value in more.items() if name not in ("stop", "observe")}
        return self._measured(path, self.tight().run(flow, start, f"{name}-rounding", path.times, **again))

    def by_z(
        self, closed: Flow, z0: Tensor, other: Callable[[], Start], name: str, times: Tensor | None = None, **more: Any
    ) -> Trajectory:
        """What z₀ alone decides on relaxed balanced starts: the same steps from another start with that z₀.

        No flow of z has it (docs/steps.md): steps of the closed flow are off by the order of the rate.
        """
        return self.run(*other(), name, times, **more)

    def decides(self, z0: Tensor) -> bool:
        """Whether z₀ alone decides anything: under the rules that turn with the gradient, where starts have that z₀."""
        return self.decided and bool((torch.linalg.det(z0) > 0).all())

    @property
    def decided(self) -> bool:
        """Whether z₀ alone decides all z on relaxed balanced starts."""
        return STEP_RULES[self.rule].equivariant

    @property
    def control(self) -> dict[str, Any]:
        """What the runs are controlled by, as attributes of a dataset."""
        settings = ", ".join(f"{name} = {value}" for name, value in self.settings.items())
        return {"method": self.rule, "rate": self.rate, "record": self.record, "options": settings}

    @property
    def record(self) -> int:
        """Steps between two output times."""
        return round(float(self.times[1] - self.times[0]) / self.rate)

    def check(self, flow: Flow, state: Tensor | Profile) -> None:
        """Raises TypeError or ValueError where the rule cannot train a flow from a state."""
        check_rule(flow, state, self.rule, self.rate, **self.settings)

    def tight(self) -> Self:
        """The same from starts that are off by one rounding; `time_error` compares the two."""
        return replace(self, nudged=True)

    def time_error(self, z: Tensor, tight: Tensor) -> Tensor:
        """What one rounding of the start does to a path z `(T, …)`, entry by entry, from its path at `tight()`."""
        return tight - z

    def floor(self, error_time: float, *others: float) -> float:
        """What is left of the distance of a network from its limit when the number of layers has no part in it."""
        return max(1e-14, error_time, *others)

    def watched(self) -> Report | None:
        """None: the number of steps is known, and no other steps would be fewer."""
        return None

    def _start(self, flow: Flow, state: Tensor | Profile) -> Tensor | Profile:
        if not self.nudged:
            return state
        start = state if isinstance(state, Tensor) else flow.sample(state) if offers(flow, Samples) else state
        assert isinstance(start, Tensor)
        noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
        # W = 0 has none; that of z = I is meant.
        size = start.abs().max() if bool(start.any()) else 1.0
        return start + torch.finfo(start.dtype).eps * size * noise.to(start)

    def _measured(self, path: Trajectory, other: Trajectory) -> Trajectory:
        """A path with its distance from another, which may not have come as far."""
        n, axes = common_times(path.times, other.times), path.loss.ndim
        gap = torch.full_like(path.loss, torch.nan, dtype=torch.float64)
        gap[:n] = frobenius(self.time_error(path.z[:n], other.z[:n]), axes).double()
        measured = replace(path, time_error=gap.reshape(len(gap), -1).amax(-1))
        if n == len(path.times):
            return measured
        known = f"the effect of round-off is known up to t = {float(path.times[n - 1]):.6g} only"
        return replace(measured, status=f"{known}: {other.status}", ending=other.ending)


AnyClock = Clock | Steps
