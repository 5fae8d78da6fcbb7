"""Figures of the loss surface of univariate ReLU networks."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_LAWS = {"normal": (style.BLUE, "normal weights and biases"), "uniform": (style.VERMILION, "torch.nn.Linear")}


@style.house()
def spline_landscape(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "critical": the lowest critical point, and where the runs have ended;
        "knots": the knots at the start, and their laws.
    """
    return {"critical": _critical(dataset), "knots": _knots(dataset)}


def _critical(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    left.plot(dataset["x"], dataset["y"], "o", color=style.GREY, ms=3, label="samples")
    left.plot(dataset["grid"], dataset["curve"], color=style.BLUE, label="lowest critical point")
    left.set_xlabel("$x$")
    left.set_ylabel("$y(x)$")
    smooth = dataset["smooth"].values.astype(bool)
    for which, colour, mark, label in (
        (smooth, style.BLUE, "o", "pieces hold a critical point"),
        (~smooth, style.VERMILION, "x", "a sample would cross a knot"),
    ):
        right.plot(
            dataset["critical_loss"].values[which],
            dataset["counted"].values[which],
            mark,
            color=colour,
            label=label,
            alpha=0.7,
        )
    right.set_xscale("log")
    right.set_xlabel("loss of the fit on the pieces where a run ended")
    right.set_ylabel("flat directions")
    style.legend_below(figure, columns=4)
    return figure


def _knots(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    places = dataset["bin"].values
    for law, (colour, label) in _LAWS.items():
        one = dataset.sel(start=law)
        axes.step(places, one["knots"], where="mid", color=colour, lw=0.9, label=label)
        axes.plot(places, one["law"], color=style.BLACK, ls=(0, (3, 1.5)), lw=0.8)
    axes.plot([], [], color=style.BLACK, ls=(0, (3, 1.5)), lw=0.8, label="closed form")
    axes.set_xlim(float(np.min(places)), float(np.max(places)))
    axes.set_xlabel("knot $-b/w$ at the start")
    axes.set_ylabel("density")
    style.legend_below(figure)
    return figure


FIGURES.register("spline_landscape")(
    FigureSet(
        spline_landscape,
        {
            "critical": "Left: the network of the lowest critical point that was found; on each piece it is the line "
            "fitted to the samples there. Right: the flat directions counted on the pieces in which runs have ended.",
            "knots": "Knots of random networks at the start, as histograms, and their laws: that of Cauchy, and that "
            "of the ratio of two uniform numbers.",
        },
    )
)
