"""Figures of a factorisation: z by the flow of θ and by a flow in z alone, and what they differ by."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..display import evenly
from . import style
from .base import FIGURES, FigureSet

_MOST_CURVES = 12


@style.house()
def closure(dataset: xr.Dataset) -> dict[str, Figure | style.Movie]:
    """The figures of a closure study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure or Movie
        "flow": entries of z along training, and the errors; of a spline also "spline", its knots and the function, and
        "training", the same as a movie.
    """
    figures: dict[str, Figure | style.Movie] = {"flow": _flow(dataset)}
    if "knots" in dataset:
        figures["spline"] = _spline(dataset)
        figures["training"] = _movie(dataset)
    return figures


def _flow(dataset: xr.Dataset) -> Figure:
    times, z = dataset["time"].values, dataset["z"].values
    attrs = dataset.attrs
    figure, (left, right) = style.blank(f"{attrs['problem']}\n{attrs['source']}", panels=2)
    moved = np.argsort(-np.ptp(z, axis=0))[:_MOST_CURVES]
    for i, component in enumerate(moved):
        label = "flow of θ" if i == 0 else None
        style.smooth(left, times, z[:, component], color=style.BLUE, lw=1.8, alpha=0.8, label=label)
        for name, text, colour in (("closed", "flow in z alone", style.BLACK), ("control", "control", style.VERMILION)):
            if f"z_{name}" in dataset:
                curve = dataset[f"z_{name}"].values[:, component]
                label = text if i == 0 else None
                style.smooth(left, times, curve, color=colour, ls=(0, (4, 2)), lw=1.0, label=label)
    most = f" (the {len(moved)} that move most)" if len(moved) < z.shape[1] else ""
    left.set_ylabel(f"entries of z{most}")
    curves = {
        "distance_closed": ("distance of the flow in z alone", style.BLACK),
        "distance_control": ("distance of the control", style.VERMILION),
        "law_drift": ("drift of the laws", style.GREEN),
    }
    for name, (text, colour) in curves.items():
        if name in dataset and np.isfinite(style.positive(dataset[name].values)).any():
            right.plot(times, style.positive(dataset[name].values), color=colour, label=text)
            right.set_yscale("log")
    right.axhline(attrs["bound"], color=style.GREY, ls=":", lw=1.0, label="bound")
    right.set_yscale("log")
    right.set_ylabel(f"error {style.BETTER}")
    for axes in (left, right):
        axes.set_xlabel("training time $t$")
    style.legend_below(figure, columns=5)
    return figure


def _spline(dataset: xr.Dataset) -> Figure:
    times = dataset["time"].values
    figure, (left, right) = style.blank(f"{style.problem(dataset)}\n{style.plain(dataset.attrs['source'])}", panels=2)
    shown = evenly(len(times), 6)
    for i, shade in zip(shown, style.fade(len(shown)), strict=True):
        left.plot(dataset["grid"], dataset["function"][i], color=shade, label=f"t = {times[i]:.4g}")
    _samples(left, dataset)
    right.plot(times, dataset["knots"].values, color=style.BLUE, lw=1.0)
    right.set_ylim(*_range(dataset))
    right.set_ylabel("knots $-b_j/w_j$")
    right.set_xlabel("training time $t$")
    style.legend_below(figure, columns=7)
    return figure


def _samples(axes: Axes, dataset: xr.Dataset) -> None:
    axes.plot(dataset["x"], dataset["y"], "o", color=style.VERMILION, ms=4, label="samples")
    axes.set_xlabel("$x$")
    axes.set_ylabel("$y$")


def _range(dataset: xr.Dataset) -> tuple[float, float]:
    grid = dataset["grid"].values
    return float(grid.min()), float(grid.max())


def _movie(dataset: xr.Dataset) -> style.Movie:
    """The function, its knots on the axis and the slopes that they add, along training."""
    times, knots, slopes = (dataset[name].values for name in ("time", "knots", "slopes"))
    figure, (axes,) = style.blank(f"{style.problem(dataset)}\nThe spline and its knots along training")
    _samples(axes, dataset)
    axes.set_xlim(*_range(dataset))
    shown = np.concatenate((dataset["function"].values.ravel(), dataset["y"].values.ravel()))
    low, high = shown.min(), shown.max()
    margin = 0.08 * (high - low)
    axes.set_ylim(low - 2 * margin, high + margin)
    (curve,) = axes.plot([], [], color=style.BLUE, label="function")
    heights = 0.3 + 0.7 * np.abs(slopes) / max(float(np.abs(slopes).max()), 1e-300)
    (marks,) = axes.plot([], [], color=style.BLACK, lw=1.4, label="knots")
    time = axes.text(0.02, 0.95, "", transform=axes.transAxes)
    style.legend_below(figure)

    def frame(i: int) -> None:
        curve.set_data(dataset["grid"].values, dataset["function"].values[i])
        half = heights[i] * margin / 2
        foot, top, gap = low - margin - half, low - margin + half, np.full(knots.shape[1], np.nan)
        marks.set_data(np.column_stack((knots[i], knots[i], gap)).ravel(), np.column_stack((foot, top, gap)).ravel())
        time.set_text(f"t = {times[i]:.4g}")

    return style.Movie(figure, frame, times)


FIGURES.register("closure")(
    FigureSet(
        closure,
        {
            "flow": "Left: entries of z along training, by the flow of θ and by the flow in z alone. Right: their "
            "distance, the drift of the conservation laws, and the bound. " + style.CURVES,
            "spline": "Left: the function along training. Right: its knots.",
            "training": "The function and its knots along training; the longer a mark, the larger the slope that its "
            "knot adds.",
        },
    )
)
