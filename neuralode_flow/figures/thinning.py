"""Charts with fewer numbers, so that a page stays small: what is left out is said, and changes the picture least."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..display import evenly
from .interactive import Record

__all__ = ["thinned"]


def thinned(charts: Sequence[Record | None], most: int) -> list[Record | None]:
    """The charts of a page, with at most `most` bytes together as JSON.

    Parameters
    ----------
    charts : sequence of dict or None
        As `describe` makes them.
    most : int
        A chart may have all of its own, or an equal part of what those leave that have fewer.

    Returns
    -------
    list of dict or None
        A chart that has fewer than it had says so in its "note": a film leaves moments out, and a curve all but the
        ends and the extreme values of each stretch, so that no peak is lost. None also stands for one that is too large
        even so.
    """
    sizes = [*map(_size, charts)]
    return [
        chart if chart is None or size <= room else _fitted(chart, room)
        for chart, size, room in zip(charts, sizes, _shares(sizes, most))
    ]


def _size(part: Any) -> int:
    return len(json.dumps(part, separators=(",", ":"), ensure_ascii=False).encode())


def _fitted(chart: Record, room: int) -> Record | None:
    fewer = _fewer_moments(chart, room) if "slider" in chart else _fewer_points(chart, room)
    return fewer if _size(fewer) <= room else None


def _shares(wanted: Sequence[int], most: int) -> list[int]:
    """What each gets of `most`."""
    got = [0] * len(wanted)
    for left, i in zip(range(len(wanted), 0, -1), np.argsort(wanted)):
        got[i] = min(wanted[i], most // left)
        most -= got[i]
    return got


def _fewer_moments(chart: Record, room: int) -> Record:
    slider = chart["slider"]
    values, changes = slider["values"], slider["changes"]
    moving = _size(changes)
    shown = max(2, int(0.99 * (room - _size(chart) + moving) / moving * len(values)))
    kept = evenly(len(values), shown)

    def of(moments: list[Any]) -> list[Any]:
        return [moments[i] for i in kept]

    changes = [change | {axis: of(change[axis]) for axis in "xy" if axis in change} for change in changes]
    note = f"The slider has {shown} of {len(values)} moments."
    return chart | {"slider": slider | {"values": of(values), "changes": changes}, "note": note}


def _fewer_points(chart: Record, room: int) -> Record:
    marks = [mark for panel in chart["panels"] for mark in panel["marks"]]
    sizes = [*map(_size, marks)]
    shares = _shares(sizes, int(0.95 * (room - _size(chart) + sum(sizes))))
    sketched = map(_sketch, marks, (share / size for share, size in zip(shares, sizes)))
    panels = [panel | {"marks": [next(sketched) for _ in panel["marks"]]} for panel in chart["panels"]]
    note = "Of each stretch of a long curve it has the ends and the extreme values; the results have all."
    return chart | {"panels": panels, "note": note}


def _sketch(mark: Record, part: float) -> Record:
    """A part of a curve: of each stretch its ends, its least and greatest value, and that it is broken."""
    if part >= 1:
        return mark
    y = np.array(mark["y"], dtype=float)
    kept: set[int] = set()
    for stretch in np.array_split(np.arange(len(y)), max(1, int(part * len(y) / 5))):
        known = stretch[np.isfinite(y[stretch])]
        kept |= {stretch[0], stretch[-1], *stretch[~np.isfinite(y[stretch])][:1]}
        kept |= {known[y[known].argmin()], known[y[known].argmax()]} if len(known) else set()
    return mark | {axis: [mark[axis][i] for i in sorted(kept)] for axis in "xy"}
