"""What the runs of a sweep have found, against the settings that were swept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import style

MARKERS = "os^Dv"
PALETTE = [style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.BLACK]
MOST_CURVES = len(PALETTE) * len(MARKERS)  # as many as looks
MOST_PANELS = 4
_MOST_TICKS = 8
_LONGEST = 60  # signs of a category
_LOGARITHMIC = 30  # the ratio of the largest to the least value from which an axis is logarithmic


@dataclass(frozen=True, eq=False)
class Quantity:
    """One number that all runs have found.

    Attributes
    ----------
    label : str
    values : array (runs,)
        NaN where a run has none.
    spreads : array (runs,), optional
        What is drawn as bars, to either side.
    aim : float
        What it should be; NaN where nothing is known.
    """

    label: str
    values: np.ndarray
    spreads: np.ndarray | None = None
    aim: float = float("nan")


@style.house()
def against(
    title: str, label: str, runs: Sequence[Mapping[str, Any]], quantities: Sequence[Quantity], logarithmic: bool = False
) -> Figure | None:
    """A figure of quantities with a panel for each setting that differs, the first `MOST_PANELS` of them.

    Settings that are numbers have an axis of numbers, all others one of categories. Lines join runs that differ in the
    setting of a panel alone.

    Parameters
    ----------
    title : str
    label : str
        Of the vertical axes.
    runs : sequence of mapping
        The settings of each run, by the names that are shown.
    quantities : sequence of Quantity
        The first `MOST_CURVES` are drawn.
    logarithmic : bool
        The vertical axes are; what is not positive is left out then.

    Returns
    -------
    Figure or None
        None if no setting differs, or there is no number to show.
    """
    shown = [q for q in quantities if np.isfinite(_drawn(q, logarithmic)).any()][:MOST_CURVES]
    settings = differing(runs)
    if not settings or not shown:
        return None
    figure, panels = style.blank(title, panels=len(settings[:MOST_PANELS]))
    for axes, name in zip(panels, settings, strict=False):
        _panel(axes, runs, name, shown, logarithmic)
        axes.set_ylabel(label)
    style.legend_below(figure, *panels[0].get_legend_handles_labels()[0], columns=2 if len(shown) > 4 else 4)
    return figure


def _drawn(quantity: Quantity, logarithmic: bool) -> np.ndarray:
    return style.positive(quantity.values) if logarithmic else np.asarray(quantity.values, dtype=float)


def differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same in all runs that have them."""
    return [name for name in dict.fromkeys(key for run in runs for key in run) if _differs(runs, name)]


def by_axis(quantities: Sequence[Quantity], logarithmic: bool) -> Iterator[tuple[bool, list[Quantity]]]:
    """Quantities that go on one axis, and whether it is logarithmic: that has no place for what is not positive."""
    apart: dict[bool, list[Quantity]] = {}
    for quantity in quantities:
        known = quantity.values[np.isfinite(quantity.values)]
        apart.setdefault(logarithmic and bool((known > 0).all()), []).append(quantity)
    yield from apart.items()


def _differs(runs: Sequence[Mapping[str, Any]], name: str) -> bool:
    return len({str(run[name]) for run in runs if name in run}) > 1


def _panel(
    axes: Axes, runs: Sequence[Mapping[str, Any]], name: str, quantities: Sequence[Quantity], logarithmic: bool
) -> None:
    places, apart = _places(axes, [run.get(name) for run in runs])
    for i, quantity in enumerate(quantities):
        xs, ys = places + apart * (i - (len(quantities) - 1) / 2) / len(quantities), _drawn(quantity, logarithmic)
        shown = style.plain(quantity.label)
        look: dict[str, Any] = {"color": PALETTE[i % len(PALETTE)], "gid": shown}
        known = np.isfinite(xs) & np.isfinite(ys)
        if not apart:
            for part in _joined(runs, name, known):
                axes.plot(xs[part], ys[part], lw=0.5, **look)
        axes.plot(xs[known], ys[known], marker=MARKERS[i // len(PALETTE)], ls="none", label=shown, **look)
        if quantity.spreads is not None:
            half = np.where(np.isfinite(quantity.spreads), quantity.spreads, 0.0)[known]
            axes.vlines(xs[known], ys[known] - half, ys[known] + half, lw=1.0, **look)
    for aim in {quantity.aim for quantity in quantities if np.isfinite(quantity.aim)}:
        axes.axhline(aim, color=style.GREY, lw=0.8, ls=(0, (1, 2)), zorder=0)
    if logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel(style.plain(name))


def _places(axes: Axes, values: Sequence[Any]) -> tuple[np.ndarray, float]:
    """Where the runs stand on the horizontal axis, and how far the quantities of a run may be drawn apart."""
    known = [value for value in values if value is not None]
    if not all(is_number(value) for value in known):
        names = [*dict.fromkeys(str(value) for value in known)]
        style.category_axis(axes, [style.plain(name) for name in _cut(names)])
        return np.array([np.nan if value is None else names.index(str(value)) for value in values]), 0.5
    places = np.array([np.nan if value is None else value for value in values], dtype=float)
    ticks = np.unique(places[np.isfinite(places)])
    if ticks[0] > 0 and ticks[-1] >= _LOGARITHMIC * ticks[0]:
        axes.set_xscale("log")
    elif len(ticks) <= _MOST_TICKS:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    return places, 0.0


def _cut(names: Sequence[str]) -> list[str]:
    """Names without the middle of long ones, as far as they are still told apart."""
    half = _LONGEST // 2
    cut = [name if len(name) <= _LONGEST else f"{name[:half]}…{name[-half:]}" for name in names]
    return [name if cut.count(short) > 1 else short for name, short in zip(names, cut, strict=True)]


def is_number(value: Any) -> bool:
    """Whether a setting has a place on an axis of numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _joined(runs: Sequence[Mapping[str, Any]], name: str, known: np.ndarray) -> Iterator[list[int]]:
    """The runs that differ in one setting alone, in its order."""
    alike: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        if known[i]:
            alike.setdefault(str({key: value for key, value in run.items() if key != name}), []).append(i)
    for part in alike.values():
        if len(part) > 1:
            yield sorted(part, key=lambda i: runs[i][name])
