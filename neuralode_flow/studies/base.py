"""What every study is given, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from torch import Tensor

from ..depth.grid import DepthGrid, Profile
from ..problems import Problem
from ..registry import Registry

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Setup:
    """The numerical experiment: what is trained, from where, and how it is integrated.

    Attributes
    ----------
    problem : Problem
        Loss and z₀.
    initial : callable
        Profile W0(s).
    grid : DepthGrid
    depth : str
        Name of the depth solver.
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

    problem: Problem
    initial: Profile
    grid: DepthGrid
    depth: str
    times: Tensor
    method: str
    rtol: float
    atol: float
    step: float | None = None
    checkpoints: Path | None = None
    save_every: float = 60.0

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
    """

    run: Callable[..., xr.Dataset]
    summarise: Callable[[xr.Dataset], dict[str, Any]]


STUDIES: Registry[Study] = Registry("study")
