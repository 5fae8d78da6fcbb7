"""Figures of layers that rewrite along one key: their limit in depth, and blocks in training."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_RULES = {
    "euler": (style.BLUE, "o-", "Euler"),
    "exp_left": (style.ORANGE, "v-", "exponential, left nodes"),
    "cayley": (style.GREEN, "s-", "Cayley"),
    "exp": (style.PURPLE, "D--", "exponential"),
}
_TARGETS = {
    "reflection": (style.BLUE, r"to a reflection, $\beta = 2$"),
    "partial": (style.GREEN, r"to the block of $\beta = 3/2$"),
    "beyond": (style.VERMILION, "to 1.2 reflections"),
}
_GATES = {"sigmoid": (style.PURPLE, r"$\beta = 2\sigma(c)$"), "limit": (style.ORANGE, "gates of the limit")}


@style.house()
def delta_rewrite(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "training": the loss of one block towards three targets, and det z of several blocks towards a reflection;
        "depth": how far layers are from their limit in depth, and their determinant from its own.
    """
    return {"training": _training(dataset), "depth": _depth(dataset)}


def _training(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    late = dataset.isel(time=slice(1, None))
    times = late["time"].values
    for name, (colour, label) in _TARGETS.items():
        loss = style.positive(late["loss"].sel(target=name).values)
        _draws(left, times, np.where(loss > 1e-12, loss, np.nan), colour, label)
    left.plot(times, 1 / (4 * times), color=style.BLACK, ls=(0, (4, 2)), lw=0.8, label="$1/(4t)$")
    for name, (colour, label) in _GATES.items():
        _draws(right, times, late["det_layers"].sel(gate=name).values, colour, label)
    right.axhline(0.0, color=style.GREY, lw=0.8)
    left.set_yscale("log")
    left.set_ylabel("loss of one block")
    right.set_ylabel(r"$\det z$ of several blocks, to a reflection")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("training time $t$")
    style.legend_below(figure, columns=3)
    return figure


def _draws(axes: Axes, times: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """A curve for each draw, under one label."""
    for number, line in enumerate(values.T):
        axes.plot(times, line, color=colour, lw=1.0, label=None if number else label)


def _depth(dataset: xr.Dataset) -> Figure:
    figure, panels = style.blank(style.problem(dataset), panels=2)
    depths = dataset["depth"].values
    labels = (r"$\|X_L - X(1)\|\,/\,\|X(1)\|$", r"$|\det P_L - \exp(-\int b)|$")
    for axes, name, label in zip(panels, ("error_x", "error_det"), labels, strict=True):
        for rule, (colour, mark, said) in _RULES.items():
            values = style.positive(dataset[name].sel(rule=rule).values)
            axes.plot(depths, values, mark, color=colour, ms=3, label=said if name == "error_x" else None)
        axes.set_yscale("log")
        for slope, rules in ((2, ["exp", "cayley"]), (1, ["euler", "exp_left"])):
            style.order_triangle(axes, depths, dataset[name].sel(rule=rules).values, -float(slope), str(slope))
        style.depth_axis(axes, depths.tolist())
        axes.set_xlabel("layers $L$")
        axes.set_ylabel(f"{label} {style.BETTER}")
    style.legend_below(figure)
    return figure


FIGURES.register("delta_rewrite")(
    FigureSet(
        delta_rewrite,
        {
            "training": "Left: the loss of one block I − βkkᵀ with β = 2σ(c), a curve for each draw: a reflection is "
            "approached like 1/(4t) (dashed), the block of β = 3/2 exponentially (cut at 1e-12), and 1.2 times a "
            "reflection not at all. Right: several blocks towards a reflection cross det z = 0; with the gates of the "
            "limit in depth, which stay below 1, they do not.",
            "depth": "Layers X + βk(vᵀ − kᵀX) with gates that are those of layer rules, against "
            "dX/ds = b k(vᵀ − kᵀX): how far X is from its limit, and the determinant of the product of the "
            "shortcuts from its own.",
        },
    )
)
