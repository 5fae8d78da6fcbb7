"""What every study is given, and what it promises."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
import xarray as xr
from torch import Tensor

from ..depth import DepthSolver
from ..depth.grid import Profile
from ..finding import Finding
from ..intrinsic.systems import System
from ..problems import Problem
from ..registry import Registry
from ..signatures import parameters
from ..time.base import METHODS, fixed_steps
from ..time.endings import REACHED
from ..time.trajectory import Trajectory
from .pace import Pace

Progress = Callable[[float, str], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Clock:
    """How the integrations of a study run.

    Attributes
    ----------
    times : Tensor (T,)
        Output times.
    method : str
        Time method.
    rtol, atol : float
        Tolerances in time.
    step : float or None
        Step size of fixed-step methods.
    checkpoints : Path or None
        Folder in which the integrations of the study are saved, each under its own name.
    save_every : float
        Seconds of wall time between two savings of an integration.
    max_evaluations : int or None
        Budget of each integration; by default that of `integrate`.
    max_seconds : float or None
        Budget of wall time of all integrations together, counted from `started`.
    started : float
        When this was made, by `time.monotonic`.
    pace : Pace
        What watches the progress of all integrations.
    """

    times: Tensor
    method: str
    rtol: float
    atol: float
    step: float | None = None
    checkpoints: Path | None = None
    save_every: float = 60.0
    max_evaluations: int | None = None
    max_seconds: float | None = None
    started: float = field(default_factory=time.monotonic)
    pace: Pace = field(default_factory=Pace)

    def tight(self) -> Self:
        """The same with more accurate steps, to measure the error in time; `time_error` compares the two.

        The tolerances are 100 times smaller, as far as float64 goes, and every step of a method of fixed steps is cut
        in two. A time is put between each two output times, since there are methods whose steps end at all of them:
        every second of the new times is one of the old.
        """
        between = (self.times[1:] + self.times[:-1]) / 2
        times = torch.cat((self.times[:1], torch.stack((between, self.times[1:]), dim=-1).flatten()))
        step = None if self.step is None else self.step / 2
        return replace(self, rtol=max(self.rtol / 100, 2.3e-14), atol=self.atol / 100, step=step, times=times)

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
        return max(1e-14, *others, *([] if self.fixed_steps else [error_time]))

    @property
    def fixed_steps(self) -> bool:
        """Whether the method has steps of a given size, whose error does not follow the tolerances."""
        return fixed_steps(METHODS[self.method])

    def options(self, name: str) -> dict[str, Any]:
        """How `integrate` is called for one integration of the study, which is saved and taken up by its name."""
        return {
            "method": self.method,
            "rtol": self.rtol,
            "atol": self.atol,
            "step": self.step,
            "checkpoint": self.checkpoints and self.checkpoints / f"{name}.npz",
            "every": self.save_every,
            **self.budgets(),
            "progress": self.pace.watch(self.method) or False,
        }

    def budgets(self) -> dict[str, Any]:
        """What is left to an integration that begins now, as arguments of `integrate`."""
        left: dict[str, Any] = {}
        if self.max_evaluations is not None:
            left["max_evaluations"] = self.max_evaluations
        if self.max_seconds is not None:
            spent = time.monotonic() - self.started
            left["max_seconds"] = max(self.max_seconds - spent, 1e-9)
        return left

    def used_up(self) -> bool:
        """Whether the wall time of the whole run is over: for what is computed without an integration."""
        return self.max_seconds is not None and time.monotonic() - self.started >= self.max_seconds


# What the `run` of a study may declare beside its settings, and the group of the config that makes it.
INPUTS: dict[Any, str] = {
    Problem: "problem",
    Profile: "initial",
    System: "system",
    DepthSolver: "depth",
    Clock: "time",
}


def summarise(dataset: xr.Dataset) -> dict[str, Any]:
    """The flat record for summary.json of a dataset that states its finding."""
    return Finding.of(dataset).record()


@dataclass(frozen=True)
class Study:
    """A study by name.

    Attributes
    ----------
    run : callable
        ``run(problem: Problem, clock: Clock, *, <settings>, progress=None)`` → xarray.Dataset that states a `Finding`.
        What it takes in is declared by annotation, any of `INPUTS`, and made of the config; its settings are the
        keyword parameters. progress(fraction, what) is called as the work goes on.
    summarise : callable
        The dataset's flat record for summary.json; by default that of its finding. A study that states none gives one
        of its own: study, status, verdict, errors, orders.
    question : str
        What it answers, for the report.
    accepts : tuple of str
        Groups of the config that it took before and that change nothing now: they may still be set.
    """

    run: Callable[..., xr.Dataset]
    summarise: Callable[[xr.Dataset], dict[str, Any]] = summarise
    question: str = ""
    accepts: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, str]:
        """The group of the config that makes each input, by the parameter that takes it."""
        annotations = {name: p.annotation for name, p in parameters(self.run).items()}
        return {name: INPUTS[kind] for name, kind in annotations.items() if kind in INPUTS}

    @property
    def groups(self) -> set[str]:
        """The groups of the config that are read for its inputs; an initialisation starts from z₀ of the problem."""
        wanted = {*self.inputs.values(), *self.accepts}
        return wanted | {"problem"} if "initial" in wanted else wanted


def whole(path: Trajectory, what: str) -> Trajectory:
    """A path that reached the last time with numbers to trust; its target may be out of reach.

    Raises
    ------
    RuntimeError
        If it is none: says what it was and how it ended.
    """
    if path.ending not in REACHED:
        raise RuntimeError(f"the {what} could not be computed: {path.status}")
    return path


STUDIES: Registry[Study] = Registry("study")
