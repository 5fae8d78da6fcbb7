"""Figures of the identifiability of ReLU networks."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_KINDS = {
    "plain": (style.BLUE, "o", "neurons that switch"),
    "dead": (style.VERMILION, "s", "a dead neuron (control)"),
    "twin": (style.ORANGE, "^", "twins (control)"),
    "unadapted": (style.GREY, ".", "normal biases"),
}
_WAYS = {
    "recovered": (style.BLUE, "o", "from the outputs"),
    "from_paths": (style.GREEN, "D", r"from $\Phi$ and signs"),
    "twin_recovered": (style.ORANGE, "^", "from the outputs, twins (control)"),
}

_OUTPUTS = {"recovered": "fitted", "twin_recovered": "twin_fitted"}


@style.house()
def identifiability(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "rank": what the rank of the outputs' derivative misses;
        "recovered": how far recovered parameters are.
    """
    return {"rank": _rank(dataset), "recovered": _recovered(dataset)}


def _rank(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    names = dataset["network"].values.tolist()
    shift = np.linspace(-0.08, 0.08, dataset.sizes["draw"])
    for i, (kind, (colour, mark, label)) in enumerate(_KINDS.items()):
        where = np.add.outer(np.arange(len(names)) + 0.2 * (i - 1.5), shift)
        values = dataset["missing"].sel(kind=kind).values
        axes.plot(where.ravel(), values.ravel(), mark, ms=3.5, color=colour, label=label)
    style.category_axis(axes, names)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_yticks([0, 2, 4, 6, 8, 10, 20, 40], ["0", "2", "4", "6", "8", "10", "20", "40"])
    axes.set_ylim(bottom=-0.8)
    axes.set_xlabel("widths of the layers")
    axes.set_ylabel("parameters − hidden neurons − rank")
    style.legend_below(figure)
    return figure


def _recovered(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    names = dataset["network"].values.tolist()
    for i, (name, (colour, mark, label)) in enumerate(_WAYS.items()):
        values = style.positive(dataset[name].values)
        if name in _OUTPUTS:
            values = np.where(dataset[_OUTPUTS[name]].values <= dataset.attrs["fitted_up_to"], values, np.nan)
        where = np.arange(len(names))[:, None] + 0.25 * (i - 1) + np.linspace(-0.08, 0.08, values.shape[1])
        axes.plot(where.ravel(), values.ravel(), mark, ms=3.5, color=colour, label=label)
    axes.axhline(float(dataset["start"].median()), color=style.BLACK, lw=0.8, ls=(0, (3, 1.5)), label="start")
    axes.set_yscale("log")
    style.category_axis(axes, names)
    axes.set_xlabel("widths of the layers")
    axes.set_ylabel(rf"distance of $\theta$ up to rescaling {style.BETTER}")
    style.legend_below(figure)
    return figure


FIGURES.register("identifiability")(
    FigureSet(
        identifiability,
        {
            "rank": "What the derivative of the outputs at the samples misses of the rank parameters − hidden neurons, "
            "at which the outputs determine the parameters up to rescaling; a point for each network.",
            "recovered": "Distance of recovered parameters from those that made the outputs, or the paths; searches "
            "that do not find the outputs are left out. The dashed line is where searches start. Networks with twins "
            "have the same outputs at other parameters.",
        },
    )
)
