"""Figures of strong imbalance and its limit."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def strong_imbalance(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    depths, strengths = dataset["depth"].values, dataset["strength"].values
    palette = (style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, style.PURPLE)
    for i, (strength, colour) in enumerate(zip(strengths, style.apart(palette, len(strengths)), strict=True)):
        label = rf"$\lambda = {strength:g}/L$, $m = {float(dataset['factor'][i]):.4f}$"
        left.plot(depths, dataset["error_z"].values[i], "o-", color=colour, label=label)
        if strength > 0:
            weak = rf"$\lambda = {strength:g}/L^2$, $m = 1$"
            left.plot(depths, dataset["error_weak"].values[i], "s--", color=colour, lw=0.9, ms=3, label=weak)
            wrong = rf"$\lambda = {strength:g}/L$ against $m = 1$"
            left.plot(depths, dataset["error_balanced"].values[i], "x:", color=colour, lw=0.9, label=wrong)
        style.smooth(right, dataset["time"].values, dataset["loss"].values[i], color=colour)
    left.set_yscale("log")
    style.order_triangle(left, depths, dataset["error_z"].values, -1.0, "1")
    style.floor(left, float(dataset["error_time"].max()))
    style.depth_axis(left, depths.tolist())
    left.set_ylabel(f"error of $z$ {style.BETTER}\n" + r"$\sup_t\ \|z_L - z_\infty\|_F$")
    right.set_xlabel("training time $t$")
    right.set_ylabel("loss of the limit")
    style.legend_below(figure, columns=3)
    return {"imbalance": figure}


FIGURES.register("strong_imbalance")(
    FigureSet(
        strong_imbalance,
        {
            "imbalance": "Left: distance of L layers from their limit, m · logmean for λ = ℓ/L and logmean for "
            "λ = ℓ/L²; dotted: λ = ℓ/L against logmean itself. Right: the loss of the limits. " + style.CURVES,
        },
    )
)
