"""Figures of the search for two linear layers that close on z."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_COLOURS = {
    "relaxed balanced": style.BLUE,
    "narrower": style.ORANGE,
    "two eigenvalues": style.GREEN,
    "other": style.VERMILION,
    "dropped": style.BLACK,
    "not reached": style.GREY,
}
_LABELS = {"narrower": "relaxed balanced, narrower"}


@style.house()
def leaves(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "leaves": of which kind the leaves are, by the widths of the network;
        "change": how large ∂M is on the kernel, at the leaves and elsewhere.
    """
    return {"leaves": _kinds(dataset), "change": _change(dataset)}


def _kinds(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    cases = dataset["case"].values.astype(str)
    shares = dataset["number"] / dataset["number"].sum("kind")
    below = np.zeros(len(cases))
    for kind, colour in _COLOURS.items():
        share = shares.sel(kind=kind).values
        if share.any():
            axes.bar(range(len(cases)), share, bottom=below, width=0.8, color=colour, label=_LABELS.get(kind, kind))
        below += share
    style.category_axis(axes, cases.tolist())
    axes.set_ylim(0, 1)
    axes.set_xlabel("widths of the network, input–hidden–output")
    axes.set_ylabel("share of the searches")
    style.legend_below(figure, columns=3)
    return figure


def _change(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    curves = {
        "random starts": ("start_change", style.GREY, "-"),
        "where the search ends": ("change", style.BLUE, "-"),
        "after training": ("trained_change", style.GREEN, "-"),
        "one percent off (control)": ("pushed_change", style.VERMILION, "-"),
        "1-2-2-1, where B holds": ("chain_change", style.BLACK, "o"),
        "1-2-2-1, after training (control)": ("chain_trained", style.VERMILION, "s"),
    }
    for label, (name, colour, look) in curves.items():
        values = dataset[name].values.ravel()
        values = np.sort(values[np.isfinite(values)])
        if len(values):
            share = np.arange(1, len(values) + 1) / len(values)
            axes.plot(np.maximum(values, 1e-18), share, look, color=colour, ms=3, label=label)
    axes.set_xscale("log")
    axes.set_xlabel(r"$\|\partial M\|/\|\theta\|$ on the kernel (of 1-2-2-1 relative to its terms)")
    axes.set_ylabel("share of points that have less")
    style.legend_below(figure, columns=3)
    return figure


FIGURES.register("leaves")(
    FigureSet(
        leaves,
        {
            "leaves": "Where searches for criterion B end, by the widths of two linear layers: at layers that are "
            "relaxed balanced, contain a narrower relaxed balanced network and nothing else, or have a law with one "
            "positive and one negative eigenvalue.",
            "change": "How large ∂M is on the common kernel of ∂φ and ∂h: at random starts, where the search ends, "
            "after training from there, and one percent off. Of the network 1-2-2-1 criterion B holds at points, and "
            "no longer after training. What is below 1e-18 is drawn there.",
        },
    )
)
