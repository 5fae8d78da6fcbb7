"""What every study is given, and what it promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_origin

import xarray as xr

from ..depth import DepthSolver
from ..depth.grid import Profile
from ..finding import Finding
from ..intrinsic.systems import System
from ..problems import Problem
from ..registry import Registry
from ..signatures import parameters
from ..time.endings import REACHED
from ..time.trajectory import Trajectory
from .clock import AnyClock, Clock, Schedule, Start, Steps

__all__ = [
    "INPUTS", "STUDIES", "TRAINED", "AnyClock", "Clock", "Progress", "Reads", "Schedule", "Start", "Steps", "Study",
    "check_matrices", "summarise", "whole",
]  # fmt: skip

Progress = Callable[[float, str], None]


# What the `run` of a study may declare beside its settings, and the group of the config that makes it.
INPUTS: dict[Any, str] = {
    Problem: "problem",
    Profile: "initial",
    System: "system",
    DepthSolver: "depth",
    Clock: "time",
    AnyClock: "time",  # of a study that is also one of training in steps
}


@dataclass(frozen=True)
class Reads:
    """In the annotation of an input, ``Annotated[Clock, Reads(("max_seconds",))]``: those of its fields that matter."""

    names: tuple[str, ...]


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
        keyword parameters. progress(fraction, what), if it has that parameter, is called as the work goes on.
    summarise : callable
        The dataset's flat record for summary.json; by default that of its finding. A study that states none gives one
        of its own: study, status, verdict, errors, orders.
    question : str
        What it answers, for the report.
    accepts : tuple of str
        Groups of the config that it took before and that change nothing now: they may still be set.
    trained : callable, optional
        What is trained in steps, of the arguments of `run`: a flow and its start, on which a step rule is tried before
        any work is done.
    steps : str
        What of its settings tells the steps that it takes by itself, for the sentence that refuses others.
    own_axes : mapping of str to tuple of str
        Axes whose values follow from what is drawn, and the groups of the config whose seeds change them: members that
        differ in one of these are no one run.
    """

    run: Callable[..., xr.Dataset]
    summarise: Callable[[xr.Dataset], dict[str, Any]] = summarise
    question: str = ""
    accepts: tuple[str, ...] = ()
    trained: Callable[..., Start] | None = None
    steps: str = ""
    own_axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def takes_steps(self) -> bool:
        """Whether it is also a study of training in steps: it declares a clock of any kind."""
        return AnyClock in {_kind(parameter.annotation) for parameter in parameters(self.run).values()}

    @property
    def inputs(self) -> dict[str, str]:
        """The group of the config that makes each input, by the parameter that takes it."""
        kinds = {name: _kind(p.annotation) for name, p in parameters(self.run).items()}
        return {name: INPUTS[kind] for name, kind in kinds.items() if kind in INPUTS}

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """The fields that matter of those groups of the config of which not all do."""
        annotations = [p.annotation for p in parameters(self.run).values()]
        told = [(INPUTS.get(_kind(kind), ""), it) for kind in annotations for it in get_args(kind)[1:]]
        return {group: it.names for group, it in told if group and isinstance(it, Reads)}

    @property
    def groups(self) -> set[str]:
        """The groups of the config that are read for its inputs; an initialisation starts from z₀ of the problem."""
        wanted = {*self.inputs.values(), *self.accepts}
        return wanted | {"problem"} if "initial" in wanted else wanted


def _kind(annotation: Any) -> Any:
    """What an annotation says without what Annotated adds."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def check_matrices(problem: Problem, why: str) -> None:
    """Raises ValueError of a problem in one dimension, and says why the study has nothing to show there."""
    if problem.z0.shape[-1] == 1:
        raise ValueError(f"problem={problem.name} has z of one number, {why}; take d = 2 or more")


# Of the first loss: with more of it left nothing is known of where training ends.
TRAINED = 0.1


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


STUDIES: Registry[Study] = Registry("study", __package__, of=Study)
