"""Figures of linear networks of three kinds, and of what their layers lead them to."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_KINDS = {
    "fully_connected": (style.GREY, "fully connected"),
    "diagonal": (style.BLUE, "diagonal"),
    "convolution": (style.VERMILION, "convolutional"),
}
_LOOKS = ("o-", "s--", "^:", "v-.")


@style.house()
def unifying(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "direction": how classifiers tend to their directions;
        "interpolant": how interpolants tend to their ends, by the scale of the start.
    """
    return {"direction": _direction(dataset), "interpolant": _interpolant(dataset)}


def _direction(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    for kind, (colour, label) in _KINDS.items():
        for depth, look in zip(dataset["depth"].values, _LOOKS, strict=False):
            one = dataset.sel(network=kind, depth=depth)
            margins, errors = one["margin"].values, one["deviation"].values
            left.plot(margins, errors, look, color=colour, label=f"{label}, {depth} layers")
            guide = errors[-1] * (margins / margins[-1]) ** -float(one["expected"])
            left.plot(margins, guide, color=style.BLACK, lw=0.6)
            right.plot(margins, one["singular"].values, look, color=colour)
    for axes, what in ((left, "$b$"), (right, "layers")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("margin of the classifier")
        axes.set_ylabel(f"distance, direction of {what} {style.BETTER}")
    style.legend_below(figure, columns=3)
    return figure


def _interpolant(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    for kind in dataset["kind"].values:
        colour, label = _KINDS[str(kind)]
        for depth, look in zip(dataset["depth"].values, _LOOKS, strict=False):
            one = dataset.sel(kind=kind, depth=depth)
            scaled = one["small"].values ** float(one["to_l1_expected"])
            left.plot(scaled, one["to_l1"].values, look, color=colour, label=f"{label}, {depth} layers")
            right.plot(one["large"].values, one["to_l2"].values, look, color=colour)
    for axes, what in ((left, "least $\\ell_1$ norm"), (right, "least $\\ell_2$ norm")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylabel(f"distance from {what} {style.BETTER}")
    left.set_xlabel(r"scale $\alpha$ of the start, to the expected power")
    right.set_xlabel(r"scale $\alpha$ of the start")
    right.set_xticks(np.sort(dataset["large"].values), [f"{scale:g}" for scale in np.sort(dataset["large"].values)])
    right.set_xticks([], minor=True)
    style.legend_below(figure, columns=2)
    return figure


FIGURES.register("unifying")(
    FigureSet(
        unifying,
        {
            "direction": "Left: the distance of the direction of a classifier from the stationary one of the margin of "
            "its network, as the margin grows; the thin lines have the order that is expected. Right: the distance of "
            "the directions of its layers from singular vectors of the tensor.",
            "interpolant": "The distance of the interpolants from those of least weighted ℓ₁ norm (left, small starts) "
            "and ℓ₂ norm (right, large starts), each in the basis of its network: Fourier's for a convolutional one. "
            "On the left all slopes are expected to be 1.",
        },
    )
)
