"""Figures of wide random two-layer networks against the closed flow."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def mixed_regime(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    widths, products = dataset["width"].values, dataset["product"].values
    palette = (style.BLUE, style.GREEN, style.ORANGE, style.VERMILION, style.PURPLE)
    for i, (product, colour) in enumerate(zip(products, style.apart(palette, len(products)), strict=True)):
        label = rf"$\sigma^2 w = {product:g}$"
        style.smooth(left, dataset["time"].values, dataset["test_error"].values[i], color=colour, label=label)
        right.plot(widths, dataset["error_z"].values[i], "o-", color=colour)
    lazy = float(dataset["test_error_lazy"])
    left.axhline(lazy, color=style.BLACK, ls=(0, (4, 2)), lw=1.0, label="least of the lazy limit")
    left.set_xlabel(r"training time $t\,\max(1, \sigma^2 w)$")
    left.set_ylabel(rf"test error $\|z - A\|_F^2\,/\,\|A\|_F^2$ {style.BETTER}")
    right.set_xscale("log")
    right.set_yscale("log")
    style.order_triangle(right, widths, dataset["error_z"].values, -0.5, "½")
    style.floor(right, float(dataset["error_time"].max()))
    right.set_xlabel("width $w$")
    right.set_ylabel(f"distance of random networks {style.BETTER}")
    style.legend_below(figure)
    return {"regimes": figure}


FIGURES.register("mixed_regime")(
    FigureSet(
        mixed_regime,
        {
            "regimes": "Left: test error of the closed flow from z = 0 to the target A, from rich to lazy. Right: "
            "distance of random networks of width w from it.",
        },
    )
)
