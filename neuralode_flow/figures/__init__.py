"""Figures by study: each is drawn from a saved dataset and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import xarray as xr
from matplotlib.figure import Figure

from ..registry import Registry
from .closure import closure
from .conservation_laws import conservation_laws
from .convergence import convergence
from .initialisations import initialisations
from .style import Movie, save
from .trajectory import trajectory

__all__ = ["FIGURES", "Movie", "save"]

FIGURES: Registry[Callable[[xr.Dataset], Mapping[str, Figure | Movie]]] = Registry("figure set")
FIGURES.register("closure")(closure)
FIGURES.register("conservation_laws")(conservation_laws)
FIGURES.register("convergence")(convergence)
FIGURES.register("initialisations")(initialisations)
FIGURES.register("trajectory")(trajectory)
