"""Figures of gradient descent beside the perceptron that it becomes."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_LOOKS = {"linear": (style.BLUE, "o-", "linear"), "two_layer": (style.VERMILION, "s-", "two layers")}
_THRESHOLD = 40.0


@style.house()
def perceptron(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "training": mistakes and loss of gradient descent, step by step, with the mistakes of the perceptron;
        "threshold": how far gradient descent is from the perceptron, by what decides it.
    """
    return {"training": _training(dataset), "threshold": _threshold(dataset)}


def _training(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    steps, rates = dataset["step"].values[1:], dataset["rate"].values
    for rate, colour in zip(rates, style.fade(len(rates)), strict=True):
        one = dataset.sel(rate=rate).isel(step=slice(1, None))
        left.plot(steps, style.positive(one["mistakes"].values), color=colour, lw=1.0)
        right.plot(steps, style.positive(one["loss"].values), color=colour, label=rf"$\gamma$ = {rate:g}", lw=1.0)
    shares = style.positive(dataset["perceptron_mistakes"].values[1:])
    left.plot(steps, shares, color=style.BLACK, ls=(0, (3, 1.5)), label="perceptron", lw=0.8)
    for axes, label in ((left, "share of mistakes"), (right, "logistic loss")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("step $t$")
        axes.set_ylabel(label)
    style.legend_below(figure, columns=4)
    return figure


def _threshold(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    products = dataset["product"].values
    for name, (colour, mark, label) in _LOOKS.items():
        axes.plot(
            products, style.positive(dataset["deviation"].sel(model=name).values), mark, color=colour, label=label
        )
    _exponential(axes, products, dataset["deviation"].values.max(axis=0))
    axes.axvline(_THRESHOLD, color=style.GREY, ls=(0, (4, 2)), lw=1.0, label="40: the sigmoid is the indicator")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(r"$\gamma\,\min|$margin$|$, and $c^2\min|$margin$|$ of two layers")
    axes.set_ylabel(f"distance from the perceptron {style.BETTER}")
    style.legend_below(figure, columns=4)
    return figure


def _exponential(axes: Axes, products: np.ndarray, highest: np.ndarray) -> None:
    """exp(−product) through the highest of the deviations between 4 and 40."""
    within = (products > 4) & (products < _THRESHOLD)
    if not within.any():
        return
    across = np.linspace(4, 30, 60)
    lift = float((np.log(highest[within]) + products[within]).max())
    axes.plot(across, np.exp(lift - across), color=style.GREY, lw=0.8, label="exp(−product)")


FIGURES.register("perceptron")(
    FigureSet(
        perceptron,
        {
            "training": "Gradient descent on the linear model from 0, step by step, for step sizes γ from small (pale) "
            "to large (dark). Left: the share of samples on the wrong side; a curve ends where there is none, and the "
            "dashed one is the perceptron. Right: the logistic loss.",
            "threshold": "The largest distance of gradient descent from the perceptron on its way to separation, over "
            "the size of θ, against the step size (linear) or the squared scale of the start (two layers), each times "
            "the margin nearest to 0. Right of the dashed line both are one, to round-off.",
        },
    )
)
