"""Figures of matrix completion at infinite depth."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def volume_form(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "volume": singular values and the volume form along training; "entropy": that of the gauge orbit.
    """
    return {"volume": _volume(dataset), "entropy": _entropy(dataset)}


def _volume(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    times = dataset["time"].values
    for i in range(dataset.sizes["mode"]):
        label = r"singular values $\sigma_i$" if i == 0 else None
        style.smooth(left, times, dataset["singular_values"].values[:, i], color=style.BLUE, label=label)
    style.smooth(
        left, times, dataset["effective_rank"].values, color=style.VERMILION, ls=(0, (4, 2)), label="effective rank"
    )
    left.set_yscale("log")
    left.set_ylabel(r"singular values $\sigma_i$, effective rank")
    right.set_ylabel("logarithm of the volume form")
    style.smooth(right, times, dataset["log_volume"].values, color=style.GREEN, label="log volume form, formula")
    right.plot(times[::4], dataset["log_volume_metric"][::4], "x", color=style.BLACK, label="from the metric")
    for axes in (left, right):
        axes.set_xlabel("training time $t$")
    style.legend_below(figure)
    return figure


def _entropy(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    times, networks = dataset["time"].values, dataset["network"].values[:-1]
    for N, shade in zip(networks, style.fade(len(networks)), strict=True):
        style.smooth(left, times, dataset["entropy"].sel(network=N).values, color=shade, label=f"{N} layers")
    limit = dataset["entropy"].sel(network=0)
    style.smooth(left, times, limit.values, color=style.VERMILION, ls=(0, (4, 2)), label="infinite depth")
    left.set_xlabel("training time $t$")
    left.set_ylabel(r"entropy $\frac{1}{2}\sum_{i<j}\log K_{ij}$")
    found = dataset["entropy_orbit"].sel(balance="balanced")
    for N in found["factors"].values:
        label = "from tangent vectors" if found["factors"][0] == N else None
        left.plot(found["end"].values, found.sel(factors=N).values, "x", color=style.BLACK, label=label)
    looks = {"entropy_gap": ("o-", "entropy of N layers"), "entropy_rest": ("s--", r"without $-(d-1)\log\det z/2N$")}
    for name, (look, label) in looks.items():
        right.plot(networks, dataset[name].values, look, label=label)
    right.set_yscale("log")
    style.depth_axis(right, networks.tolist())
    right.set_xlabel("layers $N$")
    right.set_ylabel(f"distance from infinite depth {style.BETTER}")
    style.legend_below(figure)
    return figure


FIGURES.register("volume_form")(
    FigureSet(
        volume_form,
        {
            "volume": "Left: singular values and effective rank of z. Right: the volume form along training, by its "
            "formula and from the metric. " + style.CURVES,
            "entropy": "Left: the entropy of the gauge orbit of N balanced layers along training, and that of infinite "
            "depth; crosses are measured from the tangent vectors of orbits of 2 and 4 layers. Right: its distance "
            "from infinite depth, the largest over time, of order 1 in 1/N, and of order 2 without its first part.",
        },
    )
)
