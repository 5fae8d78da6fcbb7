"""Figures of what the start of two linear layers decides."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_EXPONENTS = (
    (0.5, style.BLUE, "o", r"$\alpha=\frac{1}{2}$"),
    (0.25, style.VERMILION, "s", r"$\alpha=\frac{1}{4}$ (control)"),
)


@style.house()
def min_norm(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "start": the rate by the imbalance, and the distance by the width;
        "loss": how the loss falls beside its bound.
    """
    return {"start": _start(dataset), "loss": _loss(dataset)}


def _start(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    places = np.maximum(dataset["imbalance"].values, dataset["imbalance"].values[1] / 4)
    left.loglog(places, dataset["rate_closed"], color=style.GREEN, label="closed form")
    left.loglog(places, dataset["rate"], "o", color=style.GREEN, label="measured rate")
    left.loglog(places[1:], dataset["rate_bound"][1:], color=style.BLACK, ls=(0, (3, 1.5)), lw=0.8, label="bound $c$")
    left.set_xticks(places, ["0", *(f"{value:g}" for value in dataset["imbalance"].values[1:])])
    left.set_xticks([], minor=True)
    left.set_xlabel("imbalance $a^2$ of the start")
    left.set_ylabel(r"rate over $\sigma_{\min}(X)^2$")
    widths = dataset["width"].values
    for exponent, colour, mark, label in _EXPONENTS:
        one = dataset.sel(exponent=exponent)
        right.errorbar(widths, one["distance"], one["distance_error"], fmt=mark, color=colour, label=label)
        right.plot(widths, one["distance_wide"], color=colour)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(widths, [f"{width:d}" for width in widths])
    right.set_xticks([], minor=True)
    right.set_xlabel("hidden units")
    right.set_ylabel(f"distance from the least norm {style.BETTER}")
    style.legend_below(figure, columns=5)
    return figure


def _loss(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    seen = dataset["loss"].where(dataset["loss"] > 1e-8)
    uneven = dataset["imbalance"].values[1:]
    for value, colour in zip(uneven, style.fade(len(uneven)), strict=True):
        one = seen.sel(imbalance=value)
        axes.plot(dataset["bound_time"].sel(imbalance=value), one, color=colour, label=f"$a^2$ = {value:g}")
    end = float(dataset["bound_time"].where(np.isfinite(seen)).max())
    axes.plot([0, end], [1, np.exp(-end)], color=style.BLACK, ls=(0, (3, 1.5)), lw=0.8, label="bound")
    axes.set_yscale("log")
    axes.set_xlabel(r"exponent of the bound, $2\sigma_{\min}(X)^2ct$")
    axes.set_ylabel("loss over its first value")
    style.legend_below(figure, columns=4)
    return figure


FIGURES.register("min_norm")(
    FigureSet(
        min_norm,
        {
            "start": "Left: the rate at which the residual falls along its slowest direction, for starts with "
            "Λ = U₁ᵀU₁ − VᵀV = a²; the bound of the imbalance is sharp where that is large, and says nothing of the "
            "balanced start. Right: the distance of UVᵀ from the solution of least norm, of starts with entries "
            "N(0, width^(−2α)), with standard errors; the lines are the closed limits of large width.",
            "loss": "The loss of the same starts against the exponent of their bounds: each curve lies below the "
            "dashed line, the bound itself.",
        },
    )
)
