"""Figures by study: each is drawn from a saved dataset and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr
from matplotlib.figure import Figure

from ..registry import Registry
from .convergence import convergence
from .style import save
from .trajectory import trajectory

__all__ = ["FIGURES", "save"]

FIGURES: Registry[Callable[[xr.Dataset], dict[str, Figure]]] = Registry("figure set")
FIGURES.register("convergence")(convergence)
FIGURES.register("trajectory")(trajectory)
