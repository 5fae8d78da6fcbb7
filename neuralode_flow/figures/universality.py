"""Figures of step rules over many starts with one z₀: one line or a fan, and how far apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import style
from .base import FIGURES, FigureSet

_STARTS = {"relaxed balanced": style.BLUE, "other": style.VERMILION}
_LABELS = {"relaxed balanced": "relaxed balanced starts", "other": "other starts with the same $z_0$"}


@style.house()
def universality(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "fans": for each rule, z_n of all starts along the direction in which they spread most; "spread": how far they
        are apart, step by step.
    """
    return {"fans": _fans(dataset), "spread": _spread(dataset)}


def _fans(dataset: xr.Dataset) -> Figure:
    rules = dataset["rule"].values.tolist()
    figure, panels = style.blank(
        f"{style.problem(dataset)}\nStarts with one $z_0$ under each step rule, along the direction in which they "
        "spread most",
        panels=len(rules),
        most=3,
    )
    for axes, rule in zip(panels, rules, strict=True):
        _fan(axes, dataset.sel(rule=rule))
        axes.set_title(style.plain(f"{rule}, η = {float(dataset['rate'].sel(rule=rule)):g}"), fontsize=9)
    lines = [Line2D([], [], color=colour, label=_LABELS[kind]) for kind, colour in _STARTS.items()]
    style.legend_below(figure, *lines)
    return figure


def _fan(axes: Axes, one: xr.Dataset) -> None:
    kinds = one["kind"].values.tolist()
    z = one["z"].transpose("step", "start", "row", "column").values
    points = z.reshape(*z.shape[:2], -1)
    points = points - points[:, [kind == "relaxed balanced" for kind in kinds]].mean(axis=1, keepdims=True)
    whole = np.isfinite(points).all(axis=(1, 2))  # a run that has diverged has none at the last steps
    direction = np.linalg.svd(points[whole].reshape(-1, points.shape[-1]), full_matrices=False)[2][0]
    heights = points @ direction
    for kind in reversed(_STARTS):
        mine = [i for i, own in enumerate(kinds) if own == kind]
        axes.plot(one["step"], heights[:, mine], color=_STARTS[kind], lw=1.1)
    axes.set_xlabel("step $n$")
    axes.set_ylabel("$z_n$ less the mean", fontsize=9)


def _spread(dataset: xr.Dataset) -> Figure:
    figure, panels = style.blank(
        f"{style.problem(dataset)}\nLargest distance of a relaxed balanced start from the first, over ‖z‖", panels=2
    )
    turns = dataset["equivariant"].values.astype(bool)
    titles = ("rules that turn with the gradient", "rules that see coordinates or sizes")
    looks = _looks()
    for axes, which, title in zip(panels, (turns, ~turns), titles, strict=True):
        for rule in dataset["rule"].values[which].tolist():
            one, look = dataset.sel(rule=rule), next(looks)
            axes.plot(dataset["step"], style.positive(one["spread"].values), label=style.plain(rule), **look)
            if which is turns and float(one["floor"].max()) > 1e-12:
                grown = style.positive(one["floor"].values)
                axes.plot(
                    dataset["step"], grown, color=look["color"], ls=":", lw=1, label=f"{style.plain(rule)}: round-off"
                )
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step $n$")
        axes.set_ylabel("spread of $z_n$ (0: one line)")
    style.legend_below(figure)
    return figure


def _looks() -> Iterator[dict[str, Any]]:
    """Colours, then the same with dashes, and so on."""
    colours = (style.BLUE, style.VERMILION, style.GREEN, style.BLACK, style.PURPLE)
    return cycle({"color": colour, "ls": dash} for dash in ("-", (0, (5, 2)), (0, (3, 1, 1, 1))) for colour in colours)


FIGURES.register("universality")(
    FigureSet(
        universality,
        {
            "fans": "For each step rule, z_n of all starts with one z₀, less the mean of the relaxed balanced ones, "
            "along the direction in which it spreads most: these are one line where the rule turns with the gradient.",
            "spread": "How far relaxed balanced starts are apart, step by step; dotted, for rules that amplify "
            "round-off, how far a start and the same perturbed by 1e-15 are.",
        },
    )
)
