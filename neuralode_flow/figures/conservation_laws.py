"""Figures of the number of conservation laws of random networks."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def conservation_laws(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of a count of laws, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "counts": the number found against the known one, and the gaps in the singular values that decided.
    """
    figure, (left, right) = style.blank("Independent conservation laws of random networks", panels=2)
    most = float(dataset["known"].max()) + 1
    left.plot([0, most], [0, most], color=style.GREY, lw=1.0)
    for kind, colour, mark in (("linear", style.BLUE, "o"), ("relu", style.VERMILION, "x")):
        rows = dataset.where(dataset["kind"] == kind, drop=True)
        left.plot(rows["known"], rows["found"], mark, color=colour, label=f"{kind} networks", alpha=0.7)
        for name, shade in (("smallest_nonzero", 1.0), ("largest_zero", 0.45)):
            right.plot(rows["dimension"], style.positive(rows[name].values), mark, color=colour, alpha=shade)
    left.set_xlabel("known number of laws")
    left.set_ylabel("number found")
    right.set_yscale("log")
    right.set_xlabel("number of parameters")
    right.set_ylabel("singular values beside the cut, relative")
    style.legend_below(figure)
    return {"counts": figure}


FIGURES.register("conservation_laws")(
    FigureSet(
        conservation_laws,
        {
            "counts": "Number of independent laws that was found against the known one; a point on the line is a "
            "network that agrees.",
        },
    )
)
