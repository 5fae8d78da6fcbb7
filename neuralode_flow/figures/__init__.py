"""Figures by study: each is drawn from a saved dataset and nothing else, one file each."""

import os
import sys
from contextlib import suppress

_BACKEND = "MPLBACKEND"


def _import_matplotlib() -> None:
    """Imports Matplotlib whatever backend it is told to use: no window is opened here.

    A notebook tells its own to all programs that it starts, and one that is not known here is an error of the import.
    """
    told = os.environ.pop(_BACKEND, None)
    import matplotlib

    if told is not None:
        os.environ[_BACKEND] = told
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = told


if "matplotlib" not in sys.modules:
    _import_matplotlib()

from .base import FIGURES, Figures, FigureSet, Movie, figure_set, ready, save  # noqa: E402
from .interactive import describe  # noqa: E402
from .thinning import thinned  # noqa: E402

__all__ = ["FIGURES", "FigureSet", "Figures", "Movie", "describe", "figure_set", "ready", "save", "thinned"]
