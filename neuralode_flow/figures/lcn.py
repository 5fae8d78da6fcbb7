"""Figures of the metric of linear convolutional networks."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_COLOURS = {
    "inside": (style.BLUE, "inside the theorem"),
    "beyond": (style.VERMILION, "beyond it (control)"),
    "exchanged": (style.ORANGE, "of one shape (control)"),
    "equal norms": (style.GREEN, "and equal norms"),
}
_DASHES = ("-", "--")


@style.house()
def lcn(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "metric": how far metrics at one composed filter with one balance are apart;
        "flows": the same of training.
    """
    return {"metric": _metric(dataset), "flows": _flows(dataset)}


def _metric(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    shift = np.linspace(-0.3, 0.3, dataset.sizes["draw"])
    for side, (colour, label) in _COLOURS.items():
        at = np.flatnonzero(dataset["side"].values == side)
        values = style.positive(dataset["apart"].values[at])
        where = np.add.outer(at, shift)
        axes.plot(where.ravel(), values.ravel(), ".", color=colour, label=label)
    axes.set_yscale("log")
    style.category_axis(axes, dataset["text"].values.tolist())
    axes.set_xlabel("network")
    axes.set_ylabel(f"distance of $M$ at one $z$ and one balance\n{style.BETTER}")
    style.legend_below(figure)
    return figure


def _flows(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    seen: dict[str, int] = {}
    for name in dataset["flow"].values.tolist():
        case = dataset.sel(case=name)
        side, text = str(case["side"].values), str(case["text"].values)
        dash = _DASHES[seen.setdefault(side, 0)]
        seen[side] += 1
        curves = style.positive(dataset["flow_apart"].sel(flow=name).values[:, 1:])
        for i, curve in enumerate(curves):
            label = text if i == 0 else None
            axes.plot(dataset["time"].values[1:], curve, ls=dash, color=_COLOURS[side][0], label=label)
    axes.set_yscale("log")
    style.time_axis(axes, dataset["time"].values)
    axes.set_ylabel(f"distance of $z$ of two flows\n{style.BETTER}")
    style.legend_below(figure)
    return figure


FIGURES.register("lcn")(
    FigureSet(
        lcn,
        {
            "metric": "Distance of the metric M of the network from that of the factorisation of its composed filter z "
            "with the same balances whose M is farthest; a point for each network. On the left z has one "
            "factorisation, and the points are round-off.",
            "flows": "Two flows with one composed filter and one balance at the start. Inside the theorem: training, "
            "and the flow of z alone with the metric by the roots of z. Beyond it: training from two factorisations.",
        },
    )
)
