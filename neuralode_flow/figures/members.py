"""Figures of a run of many members, of any study: what they have found, and how their errors spread with depth."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..display import counted
from ..finding import MEMBERS
from . import style
from .base import FIGURES, Figures, FigureSet
from .swept import PALETTE

_MOST_PANELS, _MOST_BINS = 4, 60
_LONGEST = 40  # signs in a line of a label
# An axis is logarithmic where the largest value is so many times the least, or all are small and not as near.
_FAR, _SMALL, _NEAR = 30, 1e-3, 1.01

# Numbers that tell how others were found.
_BESIDE = (
    "seconds",
    "order_spread",
    "order_profile_spread",
    "order_expected",
    "floor",
    "floor_profile",
    "defect_scale",
)


@style.house()
def members(dataset: xr.Dataset) -> Figures:
    """The figures of any study with a dimension `seed`, drawn from its dataset alone.

    Parameters
    ----------
    dataset : xarray.Dataset

    Returns
    -------
    dict of str to Figure
        "histograms": the scalar numbers of members, orders first; "bands": errors against depth; "losses": losses
        against training time. Each where there are such numbers, of the members that ran whole, if there are any.
    """
    if "member_status" in dataset and (whole := dataset["member_status"].values == "ok").any():
        dataset = dataset.isel(seed=whole)
    found = {
        "histograms": _histograms(dataset),
        "bands": _bands(dataset, "error", "depth"),
        "losses": _bands(dataset, "loss", "time"),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _title(dataset: xr.Dataset, drawn: int, found: int, what: str) -> str:
    """Of how many members, and, where panels have no room for all, how many of what was found are drawn."""
    shown, number = dataset.sizes["seed"], dataset.attrs[MEMBERS]
    some = "" if drawn == found else f"\n{drawn} of {found} {what}; results.nc has all"
    return f"{f'{shown} of ' if shown < number else ''}{counted(number, 'member')}: {style.problem(dataset)}{some}"


def _scalars(dataset: xr.Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Numbers that each member has one of, or one for each layer rule: label and values; orders first, then errors."""
    names = [str(name) for name in dataset.data_vars if str(name) not in _BESIDE]
    for name in sorted(names, key=lambda name: (name != "order", not name.startswith("error"))):
        variable = dataset[name]
        label = str(variable.attrs.get("long_name", name)).partition(" of error_z")[0]
        if variable.dtype.kind != "f" or not {"seed"} <= {*variable.dims} <= {"seed", "rule"}:
            continue
        if "rule" not in variable.dims:
            yield label, variable.values
            continue
        for rule in dataset["rule"].values.tolist():
            yield f"{label}, {rule}", variable.sel(rule=rule).values


def _histograms(dataset: xr.Dataset) -> Figure | None:
    found = [(label, values) for label, values in _scalars(dataset) if _varies(values)]
    shown = found[:_MOST_PANELS]
    if not shown:
        return None
    title = _title(dataset, len(shown), len(found), "numbers that differ between members")
    figure, panels = style.blank(title, panels=len(shown))
    for axes, (label, values) in zip(panels, shown, strict=True):
        _histogram(axes, label, values[np.isfinite(values)])
    return figure


def _varies(values: np.ndarray) -> bool:
    return len(np.unique(values[np.isfinite(values)])) > 1


def _histogram(axes: Axes, label: str, values: np.ndarray) -> None:
    low, high = values.min(), values.max()
    bins = min(_MOST_BINS, max(5, round(2 * len(values) ** (1 / 3))))
    far = low > 0 and (high > _FAR * low or _NEAR * low < high < _SMALL)
    edges = np.geomspace(low, high, bins + 1) if far else np.linspace(low, high, bins + 1)
    heights = np.histogram(values, edges)[0]
    axes.plot(np.repeat(edges, 2), np.concatenate(([0], np.repeat(heights, 2), [0])), lw=1.2, color=style.BLUE)
    axes.axvline(values.mean(), color=style.VERMILION, lw=1.0, label=f"mean {values.mean():.4g}")
    if far:
        axes.set_xscale("log")
    axes.set_xlabel(_wrapped(label))
    axes.set_ylabel("members")
    axes.legend()


def _wrapped(label: str) -> str:
    return textwrap.fill(style.plain(label), _LONGEST)


def _bands(dataset: xr.Dataset, kind: str, along: str) -> Figure | None:
    """Quantiles over the members of variables of a kind that lie along one axis, for each layer rule or for none."""
    found = [
        str(name)
        for name, variable in dataset.data_vars.items()
        if str(name).startswith(kind) and {"seed", along} <= {*variable.dims} <= {"seed", "rule", along}
    ]
    shown = found[:_MOST_PANELS]
    if not shown:
        return None
    if along == "depth":  # a depth of 0 stands for the limit, which has no place on a logarithmic axis
        dataset = dataset.isel(depth=np.flatnonzero(dataset["depth"].values > 0))
        if not dataset.sizes["depth"]:
            return None
    title = _title(dataset, len(shown), len(found), {"error": "errors", "loss": "losses"}[kind])
    figure, panels = style.blank(title, panels=len(shown))
    for axes, name in zip(panels, shown, strict=True):
        variable = dataset[name]
        rules = dataset["rule"].values.tolist() if "rule" in variable.dims else [None]
        for rule, colour in zip(rules, style.apart(PALETTE, len(rules)), strict=True):
            own = variable if rule is None else variable.sel(rule=rule)
            _band(axes, dataset[along].values, own.transpose("seed", along).values, colour, str(rule or ""))
        axes.set_yscale("log")
        if along == "time":
            style.time_axis(axes, dataset[along].values)
        else:
            style.depth_axis(axes, dataset[along].values.tolist())
        axes.set_ylabel(_wrapped(str(variable.attrs.get("long_name", name))))
        if rules != [None]:
            axes.legend()
    return figure


def _band(axes: Axes, places: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """The median, the middle half and the range of numbers `(seed, places)`, as far as they are positive.

    A band whose lower end is not goes down to the least that is drawn.
    """
    known = np.where(np.isfinite(values), values, np.nan)
    some = (known > 0).any(0)
    if not some.any():
        return
    lines = np.full((5, len(places)), np.nan)  # where no member has one, the median and the bands are broken
    lines[:, some] = np.nanquantile(known[:, some], [0, 0.25, 0.5, 0.75, 1], axis=0)
    low, first, median, third, high = lines
    bottom = lines[lines > 0].min()
    for least, most, alpha in ((low, high, 0.12), (first, third, 0.3)):
        axes.fill_between(places, np.maximum(least, bottom), style.positive(most), color=colour, alpha=alpha, lw=0)
    axes.plot(places, style.positive(median), color=colour, label=style.plain(label) or None)


FIGURES.register(MEMBERS)(
    FigureSet(
        members,
        {
            "histograms": "How many members have found what.",
            "bands": "Errors against the number of layers: the median over the members that have one, the middle half, "
            "the range. What is 0 has no place on the axis.",
            "losses": "The loss along training: the median over the members that have come so far, the middle half, "
            "the range. What is 0 has no place on the axis.",
        },
    )
)
