"""Figures of gradient descent beside gradient flow and the modified flow."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from . import style
from .base import FIGURES, FigureSet

# Name, label, colour, marker and slope of each distance.
_FLOW = ("flow", r"GD $-$ flow", style.BLUE, "o", 1)
_MODIFIED = ("modified", r"GD $-$ modified flow", style.VERMILION, "s", 2)
_CLOSED = ("closed", r"modified flow $-$ closed on $z$", style.GREY, "^", 1)


@style.house()
def learning_rate(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    _errors(left, dataset)
    _constants(right, dataset)
    style.legend_below(figure, *left.get_legend_handles_labels()[0], columns=3)
    return {"rates": figure}


def _errors(axes: Axes, dataset: xr.Dataset) -> None:
    """The distances against η, of all depths: those of networks pale, of infinite depth in full."""
    rates = dataset["rate"].values
    axes.set_yscale("log")
    for name, label, colour, marker, slope in (_FLOW, _MODIFIED, _CLOSED):
        lines = np.atleast_2d(style.positive(dataset[f"error_{name}"].values))
        if not np.isfinite(lines).any():
            continue
        for line in lines[:-1]:
            axes.plot(rates, line, color=colour, alpha=0.35, lw=1.0, marker=marker, markersize=6, fillstyle="none")
        axes.plot(rates, lines[-1], color=colour, marker=marker, markersize=3.5, label=f"|{label}|")
        if name != "closed":
            top = float(np.nanmax(lines / rates**slope))
            style.triangle(axes, (rates[-1], rates[len(rates) // 2]), 1.6 * top, slope, str(slope))
    _rate_axis(axes, rates)
    low, high = axes.get_ylim()
    axes.set_ylim(low / 3, high)
    axes.set_ylabel(f"error of $z$ {style.BETTER}")
    style.floor(axes, float(dataset["error_time"].max()))


def _rate_axis(axes: Axes, rates: np.ndarray) -> None:
    shown = rates[:: -(-len(rates) // 5)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [f"{rate:.3g}" for rate in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(rates[-1] / 1.35, rates[0] * 1.2)
    axes.set_xlabel(r"learning rate $\eta$")


def _constants(axes: Axes, dataset: xr.Dataset) -> None:
    """The errors at the smallest rate over their powers of η, against L; dashed: those of infinite depth."""
    depths = dataset["depth"].values[:-1]
    for name, _, colour, marker, _ in (_FLOW, _MODIFIED):
        values = dataset[f"constant_{name}"].values
        axes.plot(depths, values[:-1], marker, color=colour, ls="-")
        axes.axhline(values[-1], color=colour, ls=(0, (4, 2)), lw=1.0)
    axes.text(0.01, 0.015, "dashed: infinite depth", transform=axes.transAxes, fontsize=8)
    style.depth_axis(axes, depths.tolist())
    axes.set_ylim(0, None)
    axes.set_ylabel(r"the same over $\eta$, and over $\eta^2$")


FIGURES.register("learning_rate")(
    FigureSet(
        learning_rate,
        {
            "rates": "Left: largest distance over training time between the end-to-end maps of gradient descent and of "
            "gradient flow, and of the modified flow, against the learning rate; filled: infinite depth; pale: "
            "networks. The modified flow in z alone misses its own part at order 1. Right: the same at the smallest "
            "rate, over η and over η², against the number of layers; dashed: infinite depth.",
        },
    )
)
