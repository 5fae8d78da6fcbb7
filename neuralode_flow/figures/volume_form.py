"""Figures of matrix completion at infinite depth."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def volume_form(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    times = dataset["time"].values
    for i in range(dataset.sizes["mode"]):
        label = r"singular values $\sigma_i$" if i == 0 else None
        style.smooth(left, times, dataset["singular_values"].values[:, i], color=style.BLUE, label=label)
    style.smooth(
        left, times, dataset["effective_rank"].values, color=style.VERMILION, ls=(0, (4, 2)), label="effective rank"
    )
    left.set_yscale("log")
    left.set_ylabel(r"singular values $\sigma_i$, effective rank")
    right.set_ylabel("logarithm of the volume form")
    style.smooth(right, times, dataset["log_volume"].values, color=style.GREEN, label="log volume form, formula")
    right.plot(times[::4], dataset["log_volume_metric"][::4], "x", color=style.BLACK, label="from the metric")
    for axes in (left, right):
        axes.set_xlabel("training time $t$")
    style.legend_below(figure)
    return {"volume": figure}


FIGURES.register("volume_form")(
    FigureSet(
        volume_form,
        {
            "volume": "Left: singular values and effective rank of z. Right: the volume form along training, by its "
            "formula and from the metric. " + style.CURVES,
        },
    )
)
