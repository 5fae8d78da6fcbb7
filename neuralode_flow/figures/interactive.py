"""A drawn figure as data, from which a page can draw it again and let its reader zoom, hover, hide and move.

What is described is what Matplotlib was told to draw, so that a figure is written once and not twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import Transform

from ..compat import dash_pattern
from .markup import to_html
from .style import CATEGORIES, Movie, Smooth, house

Record = dict[str, Any]

# Values are written with so many significant digits: more than a picture shows, fewer than fill a page. The frames of a
# movie are most of a page.
_DIGITS = 7
_DIGITS_OF_FRAMES = 5


class NotDescribed(Exception):
    """The figure has a part that can only be shown as a picture."""


@house()
def describe(figure: Figure | Movie) -> Record | None:
    """The figure as numbers, strings, lists and mappings; None if it has a part that can only be shown as a picture.

    Parameters
    ----------
    figure : Figure or Movie
        A movie becomes a chart with a slider, and keeps the state of its last frame.

    Returns
    -------
    dict or None
        "title" (HTML); "legend", entries with a label and a look; "panels", each with its axes and its "marks": curves
        and points `x`, `y` with a look and the legend entries that they belong to; for a movie also "slider", with the
        values of its frames and what each of them changes.
    """
    movie = figure if isinstance(figure, Movie) else None
    drawing = movie.figure if movie else figure
    assert isinstance(drawing, Figure)
    if movie:
        movie.frame(movie.frames - 1)
    try:
        legend = _Legend(drawing)
        described = [list(_described(axes)) for axes in drawing.axes]
        record: Record = {
            "title": to_html(drawing.get_suptitle()),
            "legend": legend.entries,
            "panels": [_panel(axes, parts, legend) for axes, parts in zip(drawing.axes, described)],
        }
        if movie:
            for panel in record["panels"]:
                panel["texts"] = []  # they belong to one frame
            artists = [[artist for artist, _ in parts] for parts in described]
            record["slider"] = {
                "label": to_html(movie.label),
                "values": _numbers(movie.values),
                "changes": list(_changes(movie, artists)),
            }
    except NotDescribed:
        return None
    return record


class _Legend:
    """The entries of all legends of a figure, and which of them a curve belongs to.

    A curve belongs to the entries that its `gid` names, one in a line; else to that of its label, which is also that of
    its error bars; else to the first that looks like it in colour, dashes and marker; else to that of its colour, as a
    reader would say, where there is but one, or it is no line.
    """

    def __init__(self, figure: Figure) -> None:
        legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()) is not None)]
        pairs = [pair for legend in legends for pair in zip(legend.legend_handles, legend.get_texts())]
        self.names = [text.get_text() for _, text in pairs]
        self.entries = [_look(handle) | {"label": to_html(name)} for (handle, _), name in zip(pairs, self.names)]

    def of(self, artist: Artist, look: Record, bars: ErrorbarContainer | None) -> list[int]:
        """The numbers of the entries that an artist belongs to, which may be a part of a curve with error bars."""
        gid = artist.get_gid()
        if gid is not None:
            named = gid.split("\n")
            return [i for i, name in enumerate(self.names) if name in named]
        label = str((artist if bars is None else bars).get_label())
        if label in self.names:
            return [i for i, name in enumerate(self.names) if name == label]
        if bars is not None and bars.lines[0] is not None:
            artist, look = bars.lines[0], _look(bars.lines[0])
        for keys in (("color", "dash", "marker"), ("color", "dash"), ("color",)):
            same = [i for i, entry in enumerate(self.entries) if all(entry.get(key) == look.get(key) for key in keys)]
            if same and (len(same) == 1 or "marker" in keys or not isinstance(artist, Line2D)):
                return same[:1]
        return []


def _panel(axes: Axes, parts: Sequence[tuple[Artist, Record]], legend: _Legend) -> Record:
    panel: Record = {"title": to_html(axes.get_title())}
    for name, axis, limits in (("x", axes.xaxis, axes.get_xlim()), ("y", axes.yaxis, axes.get_ylim())):
        panel[name] = _axis(axis, limits)
    bars = {part: own for own in axes.containers if isinstance(own, ErrorbarContainer) for part in own.get_children()}
    panel["marks"] = [
        mark | _named(artist) | {"entries": legend.of(artist, mark, bars.get(artist))} for artist, mark in parts
    ]
    panel["texts"] = [
        {
            "x": x,
            "y": y,
            "text": to_html(text.get_text()),
            "inside": bool(text.get_transform() == axes.transAxes),
        }
        for text in axes.texts
        for x, y in [getattr(text, "xy", text.get_position())]
        if text.get_text()
    ]
    return panel


def _named(artist: Artist) -> Record:
    label = str(artist.get_label())
    return {"name": to_html(label)} if label and not label.startswith("_") else {}


def _axis(axis: Axis, limits: tuple[float, float]) -> Record:
    record: Record = {"label": to_html(axis.get_label_text()), "scale": axis.get_scale(), "limits": _numbers(limits)}
    if record["scale"] not in ("linear", "log", "symlog"):
        raise NotDescribed
    if record["scale"] == "symlog":
        record["threshold"] = getattr(axis.get_transform(), "linthresh", 1.0)
    if isinstance(axis.get_major_locator(), FixedLocator):
        places = axis.get_majorticklocs()
        labels = map(to_html, axis.get_major_formatter().format_ticks(list(places)))
        record["ticks"] = list(zip(_numbers(places), labels))
    if axis.get_gid() == CATEGORIES:
        record["names"] = [label for _, label in record["ticks"]]
    return record


def _described(axes: Axes) -> Iterator[tuple[Artist, Record]]:
    """The marks of some axes, in the order in which they are drawn."""
    if axes.images:
        raise NotDescribed
    for artist in sorted([*axes.patches, *axes.collections, *axes.lines], key=lambda artist: artist.get_zorder()):
        if artist.get_visible():
            yield artist, _mark(axes, artist)


def _mark(axes: Axes, artist: Artist) -> Record:
    if isinstance(artist, Line2D):
        return _look(artist) | _bent(artist) | {"kind": _kind(axes, artist.get_transform())} | _data(artist)
    if isinstance(artist, (PathCollection, LineCollection)):
        return _look(artist) | {"kind": "curve"} | _data(artist)
    if isinstance(artist, Patch):
        return _look(artist) | {"kind": _kind(axes, artist.get_data_transform())} | _data(artist)
    raise NotDescribed


def _bent(line: Line2D) -> Record:
    """How a line goes from point to point, where it is not straight: in steps, or as a curve."""
    if isinstance(line, Smooth):
        return {"shape": "spline"}
    steps = {"steps-post": "hv", "steps-pre": "vh", "steps": "vh", "steps-mid": "hvh"}.get(line.get_drawstyle())
    return {} if steps is None else {"shape": steps}


def _kind(axes: Axes, transform: Transform) -> str:
    """What the coordinates are; x or y of a line or a band across the whole axes is a part of their width."""
    x_is_data, y_is_data = transform.contains_branch_seperately(axes.transData)
    if not (x_is_data or y_is_data):
        raise NotDescribed
    return "curve" if x_is_data and y_is_data else "upright" if x_is_data else "across"


def _data(artist: Artist, digits: int = _DIGITS) -> Record:
    """Coordinates of an artist; null parts the pieces of a broken line."""
    if isinstance(artist, Line2D):
        x, y = (np.asarray(values, dtype=float) for values in artist.get_data(orig=False))
    elif isinstance(artist, PathCollection):
        x, y = np.ma.filled(np.ma.asarray(artist.get_offsets()), np.nan).reshape(-1, 2).T
    elif isinstance(artist, LineCollection):
        # A segment that is not finite has no points.
        segments = [np.reshape(segment, (-1, 2)) for segment in artist.get_segments()]
        pieces = [np.vstack((segment, [[np.nan, np.nan]])) for segment in segments if len(segment)]
        x, y = np.concatenate([np.empty((0, 2)), *pieces]).T
    else:
        assert isinstance(artist, Patch)
        outline = artist.get_patch_transform().transform_path(artist.get_path())
        polygons = outline.to_polygons(closed_only=False)  # none of an outline without a point
        x, y = np.asarray(polygons[0] if polygons else np.empty((0, 2))).T
    return {"x": _numbers(x, digits), "y": _numbers(y, digits)}


def _look(artist: Any) -> Record:
    """Colour, dashes, width and marker of an artist; that it is pale or its markers hollow, where they are."""
    if getattr(artist, "lines", None):  # the handle of a curve with error bars
        return _look(artist.lines[0])
    alpha = artist.get_alpha()
    return _painted(artist) | ({} if alpha is None or np.ndim(alpha) else {"opacity": float(alpha)})


def _painted(artist: Any) -> Record:
    if isinstance(artist, Line2D):
        style, marker = artist.get_linestyle(), artist.get_marker()
        line = style not in ("None", "", " ", None)
        return {
            "color": to_hex(artist.get_color()),
            "dash": _dash(artist) if line else None,
            "width": float(artist.get_linewidth()) if line else 0.0,
            "marker": "" if marker in ("None", "", " ", None) else str(marker),
            "size": float(artist.get_markersize()),
        } | _hollow(not to_rgba(artist.get_markerfacecolor())[-1] or artist.get_fillstyle() == "none")
    if isinstance(artist, PathCollection):
        sizes, faces = artist.get_sizes(), artist.get_facecolor()
        size = float(np.sqrt(sizes.max())) if len(sizes) else 4.0
        color = _first(faces if len(faces) else artist.get_edgecolor())
        return {"color": color, "dash": None, "width": 0.0, "marker": "o", "size": size} | _hollow(not len(faces))
    if isinstance(artist, LineCollection):
        return {
            "color": _first(artist.get_edgecolor()),
            "dash": [],
            "width": float(np.ravel(artist.get_linewidth())[0]),
        }
    if isinstance(artist, Patch):
        face, edge = np.asarray(artist.get_facecolor()), np.asarray(artist.get_edgecolor())
        bare = not edge[-1]  # as bars are: they are known by what fills them
        return {
            "color": _first([face if bare else edge]),
            "dash": [],
            "width": 0.0 if bare else float(artist.get_linewidth()),
            "fill": _first([face]) if face[-1] else None,
        }
    raise NotDescribed


def _hollow(is_so: bool) -> Record:
    return {"hollow": True} if is_so else {}


def _dash(line: Line2D) -> list[float]:
    """On and off lengths in units of the width; empty for a solid line."""
    return [float(length) for length in dash_pattern(line)]


def _first(colours: Any) -> str:
    return to_hex(colours[0]) if len(colours) else "#000000"


def _changes(movie: Movie, artists: Sequence[Sequence[Artist]]) -> Iterator[Record]:
    """Of each mark that moves: where it is, and its coordinates in each frame."""
    history: list[list[list[Record]]] = [[[] for _ in panel] for panel in artists]
    for i in range(movie.frames):
        movie.frame(i)
        for panel, record in zip(artists, history):
            for artist, frames in zip(panel, record):
                frames.append(_data(artist, _DIGITS_OF_FRAMES))
    for p, marks in enumerate(history):
        for m, frames in enumerate(marks):
            moved = {key: [frame[key] for frame in frames] for key in ("x", "y")}
            changing = {key: values for key, values in moved.items() if any(v != values[0] for v in values)}
            if changing:
                yield {"panel": p, "mark": m, **changing}


def _numbers(values: Any, digits: int = _DIGITS) -> list[float | None]:
    """Numbers of few digits; None for what is not finite."""
    return [float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=float).tolist()]
