"""Curves of several runs of one study in common axes."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

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


@matplotlib.rc_context(style.STYLE)
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
        if all(name in run and axis in run[name].dims for run in runs.values()):
            figures[name] = _common(runs, name, axis, logarithmic)
    if not figures:
        raise ValueError(f"the runs have no curve in common (looked for: {', '.join(_CURVES)})")
    return figures


def _common(runs: Mapping[str, xr.Dataset], name: str, axis: str, logarithmic: bool) -> Figure:
    first = next(iter(runs.values()))[name]
    figure, (axes,) = style.blank(str(first.attrs.get("long_name", name.replace("_", " "))).capitalize())
    palette = [style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.BLACK]
    for i, (label, run) in enumerate(runs.items()):
        curves = run[name].transpose(axis, ...).values.reshape(run.sizes[axis], -1)
        for k, curve in enumerate(curves.T):
            values = style.positive(curve) if logarithmic else curve
            dashes = ["-", (0, (5, 2)), (0, (3, 1, 1, 1)), ":"][i // len(palette) % 4]
            colour = palette[i % len(palette)]
            axes.plot(run[axis], values, color=colour, ls=dashes, label=label if k == 0 else None)
    if logarithmic:
        axes.set_yscale("log")
    if axis == "depth":
        style.depth_axis(axes, np.unique(np.concatenate([run["depth"].values for run in runs.values()])).tolist())
    else:
        axes.set_xlabel("training time $t$")
    style.legend_below(figure, columns=2)
    return figure
