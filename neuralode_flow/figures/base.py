"""What the figures of a study are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import xarray as xr
from matplotlib.figure import Figure

from ..finding import MEMBERS, is_of_members
from ..registry import Registry
from .style import Movie, ready, save

__all__ = ["FIGURES", "FigureSet", "Figures", "Movie", "figure_set", "ready", "save"]

Figures = Mapping[str, Figure | Movie]


@dataclass(frozen=True, eq=False)
class FigureSet:
    """The figures of a study.

    Attributes
    ----------
    draw : callable
        Dataset → figures by name.
    captions : mapping of str to str
        What each of them shows.
    """

    draw: Callable[[xr.Dataset], Figures]
    captions: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, dataset: xr.Dataset) -> Figures:
        """The figures of a dataset."""
        return self.draw(dataset)


def figure_set(study: str, dataset: xr.Dataset) -> str:
    """The name of the figures of a dataset: those of its study, or of what many members of it have found."""
    return MEMBERS if is_of_members(dataset) else study


FIGURES: Registry[FigureSet] = Registry("figure set", __package__, of=FigureSet)
