"""What every study is given, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import xarray as xr
from torch import Tensor

from ..depth.grid import DepthGrid, Profile
from ..intrinsic.systems import System
from ..problems import Problem
from ..registry import Registry
from ..time.endings import REACHED
from ..time.trajectory import Trajectory

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
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
    """

    # The groups of the config that a study with this setup needs besides time and study.
    sections: ClassVar[tuple[str, ...]] = ()

    times: Tensor
    method: str
    rtol: float
    atol: float
    step: float | None = None
    checkpoints: Path | None = None
    save_every: float = 60.0

    @property
    def title(self) -> str:
        """What is studied, in one sentence."""
        return ""

    def tight(self) -> Self:
        """The same with 100 times smaller tolerances, as far as float64 goes: what it changes is the error in time."""
        return replace(self, rtol=max(self.rtol / 100, 2.3e-14), atol=self.atol / 100)

    def options(self, name: str) -> dict[str, Any]:
        """How `integrate` is called for one integration of the study, which is saved and taken up by its name."""
        return {
            "method": self.method,
            "rtol": self.rtol,
            "atol": self.atol,
            "step": self.step,
            "checkpoint": self.checkpoints and self.checkpoints / f"{name}.npz",
            "every": self.save_every,
        }


@dataclass(frozen=True, kw_only=True)
class ProblemSetup(Clock):
    """A training problem and the grid in depth; the study chooses the initialisations.

    Attributes
    ----------
    problem : Problem
        Loss and z₀.
    grid : DepthGrid
    depth : str
        Name of the depth solver.
    """

    sections: ClassVar[tuple[str, ...]] = ("problem", "depth")

    problem: Problem
    grid: DepthGrid
    depth: str

    @property
    def title(self) -> str:
        return self.problem.title


@dataclass(frozen=True, kw_only=True)
class Setup(ProblemSetup):
    """A network in depth: what is trained, from where, and on which grid.

    Attributes
    ----------
    initial : callable
        Profile W0(s).
    """

    sections: ClassVar[tuple[str, ...]] = ("problem", "initial", "depth")

    initial: Profile


@dataclass(frozen=True, kw_only=True)
class SystemSetup(Clock):
    """A factorisation of the literature.

    Attributes
    ----------
    system : System
    """

    sections: ClassVar[tuple[str, ...]] = ("system",)

    system: System

    @property
    def title(self) -> str:
        return self.system.title


@dataclass(frozen=True)
class Study:
    """A study by name.

    Attributes
    ----------
    run : callable
        ``run(setup, *, <own keyword parameters>, progress=None)`` → xarray.Dataset; progress(fraction, what) is called
        as the work goes on.
    summarise : callable
        The dataset's flat record for summary.json: study, status, verdict, errors, orders.
    setup : type
        The kind of setup that it runs on; it says which groups of the config are read.
    question : str
        What it answers, for the report.
    """

    run: Callable[..., xr.Dataset]
    summarise: Callable[[xr.Dataset], dict[str, Any]]
    setup: type[Clock] = Setup
    question: str = ""


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
