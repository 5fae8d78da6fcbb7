"""Figures of many starts with one z₀: curves that fall together or fan out, and by how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import style
from .base import FIGURES, FigureSet

_COLOURS = {"one_shift": style.BLUE, "any_shift": style.GREEN, "detour": style.VERMILION}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (3, 1, 1, 1)), (0, (1, 3)))
_LABELS = {"one_shift": "relaxed balanced, one λ", "any_shift": "relaxed balanced, any λ", "detour": "others"}


@style.house()
def initialisations(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of a study of initialisations, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "fan": the curves z(t) in the plane in which they spread most; "spread": their largest distance over time.
    """
    return {"fan": _fan(dataset), "spread": _spread(dataset)}


def _fan(dataset: xr.Dataset) -> Figure:
    depths = [depth for depth in dataset["depth"].values.tolist() if depth][:1] + [0]
    figure, panels = style.blank(
        f"{style.problem(dataset)}\nStarts with one $z_0$, in the plane in which their curves $z(t)$ spread most",
        panels=len(depths),
    )
    for axes, depth in zip(panels, depths, strict=True):
        _curves(axes, dataset.sel(depth=depth))
        axes.set_title(f"{depth} layers" if depth else "infinite depth", fontsize=10)
    style.legend_below(figure, *panels[0].get_legend_handles_labels()[0])
    return figure


def _curves(axes: Axes, dataset: xr.Dataset) -> None:
    z = dataset["z"].transpose("family", "start", "time", "row", "column").values
    points = z.reshape(-1, z.shape[-1] * z.shape[-2])
    whole = np.isfinite(points).all(axis=1)  # a run that has stopped early has none at the last times
    centred = points - points[whole].mean(axis=0)
    plane = np.linalg.svd(centred[whole], full_matrices=False)[2][:2]
    flat = (centred @ plane.T).reshape(*z.shape[:3], -1)
    order = {"detour": 0, "any_shift": 1, "one_shift": 2}
    for name in sorted(dataset["family"].values.tolist(), key=lambda name: order[name]):
        curves = flat[dataset["family"].values.tolist().index(name)]
        for i, curve in enumerate(curves):
            label = _LABELS[name] if i == 0 else None
            dashes = (0, (4, 2)) if name == "any_shift" else "-"
            style.smooth(axes, curve[:, 0], curve[:, -1], color=_COLOURS[name], ls=dashes, lw=1.2, label=label)
    axes.plot(*flat[0, 0, 0, [0, -1]], "o", color=style.BLACK, ms=5)
    axes.set_xlabel("first direction")
    axes.set_ylabel("second direction")


def _spread(dataset: xr.Dataset) -> Figure:
    depths, times = dataset["depth"].values.tolist(), dataset["time"].values
    figure, (axes,) = style.blank(
        f"{style.problem(dataset)}\nLargest Frobenius distance between two starts of a family"
    )
    finite = [depth for depth in depths if depth]
    more = [(0, (i, 1, 1, 1)) for i in range(4, len(finite))]
    dashes: dict[int, Any] = {0: ":"} | dict(zip(finite, [*_DASHES, *more], strict=False))
    for name in dataset["family"].values.tolist():
        for depth in depths:
            values = style.positive(dataset["spread"].sel(family=name, depth=depth).values)
            look = {"color": _COLOURS[name], "ls": dashes[depth]}
            axes.plot(times, values, **look, gid=f"{_LABELS[name]}\n{_depth_label(depth)}")
    axes.set_yscale("log")
    axes.set_xlabel("training time $t$")
    axes.set_ylabel("spread of $z$ (0: one curve)")
    colours = [Line2D([], [], color=colour, label=_LABELS[name]) for name, colour in _COLOURS.items()]
    depth_marks = [Line2D([], [], color=style.BLACK, ls=dashes[depth], label=_depth_label(depth)) for depth in depths]
    style.legend_below(figure, *colours, *depth_marks)
    return figure


def _depth_label(depth: int) -> str:
    return f"L = {depth}" if depth else "infinite depth"


FIGURES.register("initialisations")(
    FigureSet(
        initialisations,
        {
            "fan": "Curves z(t) of all starts, projected on the plane in which they spread most; they begin at "
            "the dot. " + style.CURVES,
            "spread": "Largest Frobenius distance between two starts of a family, for networks and in the limit.",
        },
    )
)
