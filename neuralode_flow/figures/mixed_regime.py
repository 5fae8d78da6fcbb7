"""Figures of wide random two-layer networks against the closed flow."""

from __future__ import annotations

import matplotlib
import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@matplotlib.rc_context(style.STYLE)
def mixed_regime(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(dataset.attrs["problem"], panels=2)
    widths, colours = dataset["width"].values, (style.BLUE, style.GREEN, style.ORANGE, style.VERMILION, style.PURPLE)
    for i, product in enumerate(dataset["product"].values):
        colour = colours[i % len(colours)]
        label = rf"$\sigma^2 w = {product:g}$"
        left.plot(dataset["step"], dataset["loss"].values[i], color=colour, label=label)
        right.plot(widths, dataset["error_z"].values[i], "o-", color=colour)
    style.slope_guide(right, widths, float(dataset["error_z"][:, 0].max()) * 1.3, -0.5, "order 1/2")
    left.set_yscale("log")
    left.set_xlabel(r"training time $t\,\max(1, \sigma^2 w)$")
    left.set_ylabel("loss of the closed flow")
    right.set_yscale("log")
    style.depth_axis(right, widths.tolist())
    right.set_xlabel("width $w$")
    right.set_ylabel("distance of random networks")
    style.legend_below(figure)
    return {"regimes": figure}


FIGURES.register("mixed_regime")(
    FigureSet(
        mixed_regime,
        {
            "regimes": "Left: loss of the closed flow from z = 0. Right: distance of random networks of width w.",
        },
    )
)
