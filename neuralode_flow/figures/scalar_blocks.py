"""Figures of a scalar network of S residual blocks and its limit."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def scalar_blocks(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    networks = dataset["network"].values.tolist()
    shades = dict(zip([n for n in networks if n], style.fade(len(networks) - 1), strict=True))
    for n in networks:
        look = {"color": shades[n]} if n else {"color": style.BLACK, "ls": (0, (4, 2))}
        shown = n in (networks[1], networks[-1], 0)
        label = (f"$S = {n}$" if n else r"$S = \infty$") if shown else None
        style.smooth(left, dataset["time"].values, dataset["r"].sel(network=n).values, label=label, **look)
    left.set_xlabel("training time $t$")
    left.set_ylabel("$r(t)$")
    depths = dataset["depth"].values
    right.plot(depths, dataset["error_r"], "o-", color=style.BLUE, label=r"$\sup_t |r_S - r_\infty|$")
    right.set_ylabel(f"error of $r$ {style.BETTER}")
    right.set_yscale("log")
    style.order_triangle(right, depths, dataset["error_r"].values, -1.0, "1")
    style.floor(right, float(dataset["error_time"]))
    style.depth_axis(right, depths.tolist())
    right.set_xlabel("blocks $S$")
    style.legend_below(figure)
    return {"blocks": figure}


FIGURES.register("scalar_blocks")(
    FigureSet(
        scalar_blocks,
        {
            "blocks": "Left: r(t) for several numbers of blocks and in the limit. Right: the distance from the limit. "
            + style.CURVES,
        },
    )
)
