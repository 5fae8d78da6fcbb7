"""Figures of strong imbalance and its limit."""

from __future__ import annotations

import matplotlib
import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@matplotlib.rc_context(style.STYLE)
def strong_imbalance(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(dataset.attrs["problem"], panels=2)
    depths, colours = dataset["depth"].values, (style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, style.PURPLE)
    for i, strength in enumerate(dataset["strength"].values):
        colour = colours[i % len(colours)]
        label = rf"$\ell = {strength:g}$, $m = {float(dataset['factor'][i]):.4f}$"
        left.plot(depths, dataset["error_z"].values[i], "o-", color=colour, label=label)
        right.plot(dataset["time"], dataset["loss"].values[i], color=colour)
    style.slope_guide(left, depths, float(dataset["error_z"].max()) * 1.3, -1.0, "order 1")
    left.set_yscale("log")
    style.depth_axis(left, depths.tolist())
    left.set_ylabel(r"$\sup_t \Vert z_L - z_\infty\Vert_F$")
    right.set_xlabel("training time $t$")
    right.set_ylabel("loss of the limit")
    style.legend_below(figure)
    return {"imbalance": figure}


FIGURES.register("strong_imbalance")(
    FigureSet(
        strong_imbalance,
        {
            "imbalance": "Left: distance of L layers from the limit m · logmean. Right: the loss of the limits.",
        },
    )
)
