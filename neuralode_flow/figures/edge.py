"""Figures of gradient descent at the edge of stability."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

# Name, label, colour and dashes of what is followed at infinite depth.
_DESCENT = ("descent", "gradient descent", style.BLUE, "-")
_CENTRAL = ("central", "central flow", style.VERMILION, (0, (4, 2)))
_FLOW = ("flow", "gradient flow", style.GREY, "-")


@style.house()
def edge(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (above, beside, below, last) = style.blank(style.problem(dataset), panels=4)
    _along(above, dataset, "sharpness")
    _bounds(above, dataset)
    _along(beside, dataset, "loss")
    beside.set_yscale("log")
    _apart(below, dataset)
    _limit(last, dataset)
    style.legend_below(figure, *above.get_legend_handles_labels()[0], columns=4)
    return {"edge": figure}


def _along(axes: Axes, dataset: xr.Dataset, what: str) -> None:
    """Sharpness or loss against time: of networks pale, of infinite depth in full."""
    times = dataset["time"].values
    of_descent = dataset[f"{what}_descent"].values
    for n, line in enumerate(of_descent[:-1]):
        label = "networks" if n == 0 else None
        axes.plot(times, _shown(line, what), color=style.SKY, alpha=0.5, lw=1.0, label=label)
    for name, text, colour, dashes in (_FLOW, _DESCENT, _CENTRAL):
        line = of_descent[-1] if name == "descent" else dataset[f"{what}_{name}"].values
        axes.plot(times, _shown(line, what), color=colour, ls=dashes, label=text)
    axes.set_xlabel("training time $t$")
    axes.set_ylabel(what)


def _shown(line: np.ndarray, what: str) -> np.ndarray:
    return style.positive(line) if what == "loss" else line


def _bounds(axes: Axes, dataset: xr.Dataset) -> None:
    """2/η, and the least sharpness of minimisers."""
    for name, text in (("edge", r"$2/\eta$"), ("least_sharpness", "least")):
        value = float(dataset[name])
        axes.axhline(value, color=style.BLACK, ls=(0, (1, 2)), lw=1.0)
        axes.text(0.99, value, text, transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)


def _apart(axes: Axes, dataset: xr.Dataset) -> None:
    """The distance of both flows from gradient descent."""
    for name, text, colour, dashes in (_FLOW, _CENTRAL):
        values = style.positive(dataset[f"apart_{name}"].values)
        axes.plot(dataset["time"].values, values, color=colour, ls=dashes, label=text)
    axes.set_yscale("log")
    axes.set_xlabel("training time $t$")
    axes.set_ylabel(f"distance of $W$ from descent {style.BETTER}")


def _limit(axes: Axes, dataset: xr.Dataset) -> None:
    """The distance of the final sharpness from that of infinite depth."""
    depths, errors = dataset["depth"].values[:-1], style.positive(dataset["error"].values[:-1])
    axes.plot(depths, errors, "o-", color=style.BLUE)
    axes.set_yscale("log")
    order = float(dataset["expected_order"])
    style.order_triangle(axes, depths, errors, -order, f"{order:g}")
    style.depth_axis(axes, depths.tolist())
    axes.set_ylabel(f"error of final sharpness {style.BETTER}")
    style.floor(axes, float(dataset["error_grid"]))


FIGURES.register("edge")(
    FigureSet(
        edge,
        {
            "edge": "Above: sharpness and loss of gradient descent, of gradient flow and of the central flow at "
            "infinite depth; pale: gradient descent of networks; dotted: 2/η, and the least sharpness of a minimiser. "
            "Below: distance of the weights of both flows from gradient descent, L² over depth; and how far the "
            "sharpness at which networks settle is from that of infinite depth.",
        },
    )
)
