"""The curves of several runs in common axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..finding import sentence
from . import style
from .swept import PALETTE

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


def _common(runs: Mapping[str, xr.Dataset], name: str, axis: str, logarithmic: bool) -> Figure:
    """One panel for each layer rule, where a curve has rules, with each run in its own colour."""
    rules = [*dict.fromkeys(rule for run in runs.values() if "rule" in run[name].dims for rule in _rules(run))]
    title = sentence(style.plain(_common_name([run[name] for run in runs.values()])))
    figure, panels = style.blank(title, panels=max(1, len(rules)))
    shown: list[str | None] = [*rules] or [None]
    for axes, rule in zip(panels, shown, strict=True):
        for (label, run), look in zip(runs.items(), _looks(len(runs)), strict=True):
            for k, curve in enumerate(_curves(run, name, axis, rule)):
                values = style.positive(curve) if logarithmic else curve
                axes.plot(run[axis], values, label=style.plain(label) if k == 0 else None, **look)
        _axes(axes, runs, axis, logarithmic)
        if rule is not None:
            axes.set_title(style.plain(rule))
    handles = {line.get_label(): line for axes in reversed(panels) for line in axes.get_lines()}
    named = [handles[label] for label in map(style.plain, runs) if label in handles]
    style.legend_below(figure, *named, columns=2)
    return figure


def _common_name(curves: Sequence[xr.DataArray]) -> str:
    """What all curves are called; that of the variable where runs mean other things by it."""
    names = {str(curve.attrs.get("long_name", "")) for curve in curves}
    return names.pop() if len(names) == 1 and "" not in names else str(curves[0].name).replace("_", " ")


_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (3, 1, 1, 1)), ":")


def _looks(count: int) -> list[dict[str, Any]]:
    """Colours and dashes, no two alike: all colours first, then again in the next dashes."""
    colours = style.apart(PALETTE, max(len(PALETTE), -(-count // len(_DASHES))))
    return [{"color": colour, "ls": dash} for dash in _DASHES for colour in colours][:count]


def _rules(run: xr.Dataset) -> list[str]:
    return [str(rule) for rule in run["rule"].values]


def _curves(run: xr.Dataset, name: str, axis: str, rule: str | None) -> np.ndarray:
    """The curves of a run over an axis, `(curves, n)`: those of a rule, or all."""
    values = run[name]
    if rule is not None and "rule" in values.dims:
        values = values.isel(rule=[i for i, own in enumerate(_rules(run)) if own == rule])
    return values.transpose(..., axis).values.reshape(-1, run.sizes[axis])


def _axes(axes: Axes, runs: Mapping[str, xr.Dataset], axis: str, logarithmic: bool) -> None:
    if logarithmic:
        axes.set_yscale("log")
    if axis == "depth":
        style.depth_axis(axes, np.unique(np.concatenate([run["depth"].values for run in runs.values()])).tolist())
    else:
        axes.set_xlabel("training time $t$")
