"""Figures of two balanced layers between the lazy and the rich regime."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def lazy_to_rich(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    balances = dataset["balance"].values
    shown = [i for i, balance in enumerate(balances) if balance >= 0]
    # A loss is a square: what is left of it below that of the error of z is round-off.
    least = float(np.nanmax(dataset["error_z"].values, initial=0.0)) ** 2 / 2
    for i, shade in zip(shown, style.fade(len(shown)), strict=True):
        loss = dataset["loss"].values[i]
        known = np.where(loss > least, loss, np.nan)
        left.plot(dataset["time"], known, color=shade, label=rf"$\lambda = {balances[i]:g}$")
    left.set_yscale("log")
    style.floor(left, least)
    left.set_xlabel("training time $t$")
    left.set_ylabel("loss")
    size = np.abs(balances)
    kernel, error = (style.positive(dataset[name].values) for name in ("kernel_change", "error_z"))
    for sign, mark, colour in ((1, "o", style.BLUE), (-1, "s", style.VERMILION)):
        part = (np.sign(balances) == sign) & (size > 0)
        name = r"$\lambda > 0$" if sign > 0 else r"$\lambda < 0$"
        right.plot(size[part], kernel[part], mark + "-", color=colour, label=f"change of the kernel, {name}")
    right.plot(size[size > 0], error[size > 0], "x", color=style.BLACK, label="error to the closed solution")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel(r"$|\lambda|$")
    right.set_ylabel(f"relative change, error {style.BETTER}")
    style.legend_below(figure)
    return {"regimes": figure}


FIGURES.register("lazy_to_rich")(
    FigureSet(
        lazy_to_rich,
        {
            "regimes": "Left: loss for several balances, as far as it is above that of the error of z. "
            "Right: how far the tangent kernel moves, and the error to the "
            "closed solution.",
        },
    )
)
