"""Several runs in common axes: their curves, and the numbers that they found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..finding import sentence
from . import style

# What is worth laying over: a curve over the axis, in linear or logarithmic measure.
_CURVES = {
    "error_z": ("depth", True),
    "error_profile": ("depth", True),
    "loss": ("time", False),
    "loss_continuous": ("time", False),
    "distance_from_limit": ("time", True),
    "distance_closed": ("time", True),
    "spread": ("time", True),
    "singular_values": ("time", False),
    "drift": ("time", True),
    "law_drift": ("time", True),
}


_MARKERS = "os^Dv"
_PALETTE = [style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.BLACK]


@style.house()
def overlay(runs: Mapping[str, xr.Dataset]) -> dict[str, Figure]:
    """One figure for each quantity that all runs have as a curve.

    Parameters
    ----------
    runs : mapping of str to xarray.Dataset
        By the label of each in the legend.

    Raises
    ------
    ValueError
        If they have no curve in common.
    """
    figures = {}
    for name, (axis, logarithmic) in _CURVES.items():
        if runs and all(name in run and axis in run[name].dims for run in runs.values()):
            figures[name] = _common(runs, name, axis, logarithmic)
    if not figures:
        raise ValueError(f"the runs have no curve in common (looked for: {', '.join(_CURVES)})")
    return figures


def points(run: xr.Dataset) -> int:
    """How many points the curves of a run have that `overlay` draws."""
    return sum(run[name].size for name in _CURVES if name in run)


@style.house()
def by_setting(records: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> dict[str, Figure]:
    """For each setting with numbers that differ, the numbers of all records against it, on a logarithmic axis.

    There are as many numbers as looks, the first ones.

    Parameters
    ----------
    records : sequence of mapping
        Of each run: its settings, and the numbers that were found.
    settings : sequence of str
        Which of the keys are settings.
    """
    own = {"member", *settings, *(name.rpartition(".")[2] for name in settings)}
    numbers = [key for record in records for key in record if key not in own]
    figures = {}
    for setting in settings:
        known = [record for record in records if _is_number(record.get(setting))]
        if len({record[setting] for record in known}) < 2:
            continue
        curves = {}
        for name in dict.fromkeys(numbers):
            points = [(r[setting], r[name]) for r in known if _is_number(r.get(name)) and r[name] > 0]
            if len({y for _, y in points}) > 1:
                curves[name] = np.array(sorted(points), dtype=float)
            if len(curves) == len(_PALETTE) * len(_MARKERS):
                break
        if curves:
            figures[setting] = _points(setting, curves)
    return figures


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _points(setting: str, curves: Mapping[str, np.ndarray]) -> Figure:
    figure, (axes,) = style.blank(f"What the runs found, by {style.plain(setting)}")
    for i, (name, points) in enumerate(curves.items()):
        look: dict[str, Any] = {
            "color": _PALETTE[i % len(_PALETTE)],
            "marker": _MARKERS[i // len(_PALETTE) % len(_MARKERS)],
            "ls": "none",
        }
        axes.plot(*points.T, **look, label=style.plain(name.replace("_", " ")))
    axes.set_yscale("log")
    xs = np.concatenate([points[:, 0] for points in curves.values()])
    if xs.min() > 0 and xs.max() >= 30 * xs.min():
        axes.set_xscale("log")
    axes.set_xlabel(style.plain(setting))
    style.legend_below(figure)
    return figure


def _common(runs: Mapping[str, xr.Dataset], name: str, axis: str, logarithmic: bool) -> Figure:
    first = next(iter(runs.values()))[name]
    figure, (axes,) = style.blank(sentence(style.plain(first.attrs.get("long_name", name.replace("_", " ")))))
    for i, (label, run) in enumerate(runs.items()):
        curves = run[name].transpose(axis, ...).values.reshape(run.sizes[axis], -1)
        for k, curve in enumerate(curves.T):
            values = style.positive(curve) if logarithmic else curve
            dashes = ["-", (0, (5, 2)), (0, (3, 1, 1, 1)), ":"][i // len(_PALETTE) % 4]
            colour = _PALETTE[i % len(_PALETTE)]
            axes.plot(run[axis], values, color=colour, ls=dashes, label=style.plain(label) if k == 0 else None)
    if logarithmic:
        axes.set_yscale("log")
    if axis == "depth":
        style.depth_axis(axes, np.unique(np.concatenate([run["depth"].values for run in runs.values()])).tolist())
    else:
        axes.set_xlabel("training time $t$")
    style.legend_below(figure, columns=2)
    return figure
