"""Figures of linear residual networks at n layers against their limit."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def residual_scaling(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    depths = dataset["depth"].values
    for i in range(dataset.sizes["target"]):
        label = r"one target, $\det T > 0$" if i == 0 else None
        left.plot(depths, dataset["error_z"].values[:, i], "o-", color=style.BLUE, lw=0.9, ms=3, label=label)
    left.set_yscale("log")
    style.order_triangle(left, depths, dataset["error_z"].transpose("target", "depth").values, -1.0, "1")
    style.floor(left, float(dataset["error_time"].max()))
    style.depth_axis(left, depths.tolist())
    left.set_xlabel("layers $n$")
    left.set_ylabel(f"error of $z$ {style.BETTER}\n" + r"$\sup_t\ \|z_n(t) - z_\infty(t)\|_F$")
    worst = int(dataset["stall"].values.argmax())
    networks = dataset["network"].values.tolist()
    shades = dict(zip([n for n in networks if n], style.fade(len(networks) - 1), strict=True))
    for n in networks:
        look = {"color": shades[n]} if n else {"color": style.BLACK, "ls": (0, (4, 2))}
        label = f"{n} layers" if n else "limit"
        style.smooth(
            right, dataset["time"].values, dataset["loss_beyond"].sel(network=n).values[:, worst], label=label, **look
        )
    right.axhline(float(dataset["stall"][worst]), color=style.VERMILION, lw=1.0, label=r"$\sigma_{\min}(T)^2/2$")
    right.set_yscale("log")
    right.set_xlabel("training time $t$")
    right.set_ylabel(r"loss of a target with $\det T < 0$")
    style.legend_below(figure, columns=4)
    return {"scaling": figure}


FIGURES.register("residual_scaling")(
    FigureSet(
        residual_scaling,
        {
            "scaling": "Left: error of n layers for all targets with det T > 0. Right: loss of one with det T < 0. "
            + style.CURVES,
        },
    )
)
