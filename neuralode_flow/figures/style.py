"""How all figures look, and how they are saved."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase, get_registered_canvas_class
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator
from PIL import Image

from ..files import atomic_write

WIDTH = 6.8  # inches: the text width of a page, so that nothing is scaled in print
HEIGHT = 4.1

# The colour-blind safe palette of Okabe and Ito.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, BLACK = "#CC79A7", "#56B4E9", "#7F7F7F", "#000000"

BETTER = "(smaller is better)"  # ends the label of an axis that measures accuracy

_MOST_DEPTHS = 12  # labels of depths that have room in the width of a page

CURVES = "Between the output times are monotone cubic curves."  # for a caption of what `smooth` draws

CATEGORIES = "categories"  # the gid of an axis of words

_FAR_BELOW = 1e-2  # of the lowest curve: to show such an error would press the curves together

STYLE: dict[Any, Any] = {
    # Text and formulas in one face that comes with Matplotlib; the second has the signs that the first lacks.
    "font.family": ["STIXGeneral", "DejaVu Sans"],
    "mathtext.fontset": "stix",
    "font.size": 10,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "figure.titlesize": 10.5,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: text stays text
}


@contextmanager
def house() -> Iterator[None]:
    """All figures are made and saved in here: the house's style on Matplotlib's own, whatever a user's file says."""
    with matplotlib.style.context(STYLE, after_reset=True), warnings.catch_warnings():
        # In a name; it stays legible in the page.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def plain(text: object) -> str:
    """What others have named, as a label on one line: a dollar sign is none of a formula, and no label starts with _.

    Matplotlib takes such a label for none.
    """
    return re.sub(r"^_|\s", lambda sign: " _" if sign[0] == "_" else " ", str(text)).replace("$", r"\$")


def problem(dataset: xr.Dataset) -> str:
    """What was studied, for a title."""
    return plain(dataset.attrs.get("problem", ""))


def limit(dataset: xr.Dataset) -> str:
    """What is called the limit: the flow that z₀ decides, or in steps those from another start with that z₀."""
    return "balanced start, same steps" if "rate" in dataset.attrs else "intrinsic limit"


@dataclass(frozen=True, eq=False)
class Movie:
    """A figure that moves: under a slider in a report, and as a film if it is worth one.

    Attributes
    ----------
    figure : Figure
    frame : callable
        frame(i) draws its i-th state.
    values : array (frames,)
        What the slider shows at each of them.
    label : str
        What the values are.
    film : bool
        Whether it is saved as a film; else as a picture of its last frame.
    """

    figure: Figure
    frame: Callable[[int], Any]
    values: np.ndarray
    label: str = "training time $t$"
    film: bool = True

    @property
    def frames(self) -> int:
        """How many there are."""
        return len(self.values)


def blank(title: str, panels: int = 1, most: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure of the fixed width with `panels` axes under the lines of a title, wrapped to fit.

    Up to three stand side by side, more of them in rows of at most `most`.
    """
    columns = panels if panels <= 3 else most
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDTH, HEIGHT * (1 + 0.8 * (rows - 1))), layout="constrained")
    figure.suptitle("\n".join(map(_wrapped, title.splitlines())), x=0.01, ha="left")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in axes[panels:]:
        empty.remove()
    return figure, axes[:panels]


def _wrapped(line: str) -> str:
    """A line, broken to fit, but not between a backslash and its dollar sign."""
    return textwrap.fill(line.replace(r"\$", "\0"), 105).replace("\0", r"\$")


def legend_below(figure: Figure, *handles: Any, columns: int = 4) -> None:
    """One legend for all axes, under them, where it hides no curve; by default of all labelled curves."""
    found = handles or [line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=found, loc="outside lower center", ncols=columns)


class Smooth(Line2D):
    """A line that is drawn as a monotone cubic curve through its points, which stay its data."""

    def draw(self, renderer: RendererBase) -> None:
        """Draws the curve."""
        x, y = (np.asarray(values, dtype=float) for values in self.get_data(orig=False))
        self.set_data(*_curve(x, y, self.axes is not None and self.axes.get_yscale() == "log"))
        super().draw(renderer)
        self.set_data(x, y)


def _curve(x: np.ndarray, y: np.ndarray, logarithmic: bool) -> tuple[np.ndarray, np.ndarray]:
    """Points of a curve through the given ones; these themselves where it could not be told."""
    if len(x) < 3 or not np.isfinite([x, y]).all() or (logarithmic and not (y > 0).all()):
        return x, y
    from scipy.interpolate import PchipInterpolator

    number = np.arange(len(x))
    forward = bool((np.diff(x) > 0).all())
    dense = np.interp(np.arange(0, len(x) - 0.9, 0.125), number, x if forward else number)
    across = dense if forward else PchipInterpolator(number, x)(dense)
    values = PchipInterpolator(x if forward else number, np.log(y) if logarithmic else y)(dense)
    return across, np.exp(values) if logarithmic else values


def smooth(axes: Axes, x: np.ndarray, y: np.ndarray, **look: Any) -> list[Line2D]:
    """What `axes.plot` draws, as curves through the points: `y` is `(n,)` or `(n, curves)`."""
    import scipy.interpolate  # noqa: F401  # for `_curve`: here, and not in each process that draws

    lines = axes.plot(x, y, **look)
    for line in lines:
        line.__class__ = Smooth
    return lines


def fade(count: int) -> list[tuple[float, ...]]:
    """`count` blues from light to dark."""
    shades = matplotlib.colormaps["Blues"](np.linspace(0.3, 0.95, count))
    return [tuple(shade) for shade in shades]


def apart(colours: Sequence[str], count: int) -> list[str]:
    """`count` colours, no two alike: the first of these, or, where there are too few, from violet to red."""
    if count <= len(colours):
        return list(colours[:count])
    return [matplotlib.colors.to_hex(shade) for shade in matplotlib.colormaps["turbo"](np.linspace(0.03, 0.93, count))]


def positive(values: np.ndarray) -> np.ndarray:
    """`values` with NaN wherever a logarithmic axis has no place for them."""
    values = np.asarray(values, dtype=float)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def triangle(
    axes: Axes, ends: tuple[float, float], factor: float, slope: float, text: str, above: bool = False
) -> None:
    """A triangle with the given slope on logarithmic axes: its long side is factor · x^slope between the ends.

    It lies below the curves that it is about, or above them.
    """
    left, right = float(ends[0]), float(ends[1])
    first, last = factor * left**slope, factor * right**slope
    corner = (right, first) if above else (left, last)
    axes.fill([left, right, corner[0]], [first, last, corner[1]], facecolor="none", edgecolor=GREY, lw=0.8)
    side, away = (3, "left") if above else (-3, "right")
    middle = np.sqrt(first * last)
    axes.annotate(text, (corner[0], middle), (side, 0), textcoords="offset points", ha=away, va="center", fontsize=8)


def order_triangle(axes: Axes, xs: np.ndarray, errors: np.ndarray, slope: float, text: str) -> None:
    """A triangle above the highest of the curves `errors`, `(..., x)`, with the slope that they should have."""
    xs, highest = np.asarray(xs, dtype=float), np.nanmax(positive(errors).reshape(-1, len(xs)), axis=0)
    part = slice(len(xs) // 3, max(len(xs) // 3 + 2, 2 * len(xs) // 3 + 1))
    factor = float(np.nanmax(highest[part] / xs[part] ** slope))
    triangle(axes, (xs[part][0], xs[part][-1]), 1.8 * factor, slope, text, above=True)


def floor(axes: Axes, value: float) -> None:
    """Shades what is below the error of the reference itself, or tells that error where it is far below all curves.

    Nothing is said where it is not known.
    """
    if not np.isfinite(value) or value <= 0:
        return
    low, high = axes.get_ylim()
    far = value < _FAR_BELOW * low
    text = f"the solver's own error is {value:.0e}" if far else "below the solver's own error"
    axes.text(0.01, 0.015, text, transform=axes.transAxes, fontsize=8)
    if not far:
        low = min(low, value / 10)
        axes.axhspan(low, value, color="#EFEFEF", lw=0, zorder=0)
        axes.set_ylim(low, high)


def time_axis(axes: Axes, times: np.ndarray) -> None:
    """Training time; long runs, of which most happens early, get a logarithmic axis."""
    axes.set_xlabel("training time $t$")
    if times[-1] > 50:
        axes.set_xscale("symlog", linthresh=1.0)


def depth_axis(axes: Axes, depths: Sequence[int]) -> None:
    """A logarithmic axis whose ticks are depths of the data, thinned until their labels fit."""
    axes.set_xscale("log", base=2)
    low, high = min(depths), max(depths)
    place = axes.get_subplotspec()
    room = np.log2(high / low) / (_MOST_DEPTHS if place is None else _MOST_DEPTHS // place.get_gridspec().ncols)
    ticks: list[int] = []
    for depth in sorted(depths):
        if not ticks or np.log2(depth / ticks[-1]) >= room:
            ticks.append(depth)
    axes.set_xticks(ticks, [str(depth) for depth in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low / 1.25, high * 1.25)
    axes.set_xlabel("number of layers $L$")


def category_axis(axes: Axes, names: Sequence[str]) -> None:
    """A horizontal axis of words, at 0, 1, 2, …; long ones are broken, and stand upright where they are many."""
    axes.set_xticks(range(len(names)), [textwrap.fill(name.replace("_", " "), 14) for name in names])
    axes.tick_params("x", rotation=90 if len(names) > 4 else 0)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.xaxis.set_gid(CATEGORIES)


def ready(formats: Sequence[str]) -> None:
    """Imports what writes such files: once, before processes are forked that save figures side by side."""
    for suffix in formats:
        get_registered_canvas_class(suffix)
    Image.preinit()


# Without dates; a PNG that is 5 % larger than the smallest takes a tenth less of the time.
_WRITTEN: dict[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}},
    "pdf": {"metadata": {"CreationDate": None}},
}


def save(figure: Figure | Movie, stem: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Writes `stem`.png and `stem`.pdf, each whole or not at all, and without dates: equal data give equal files.

    A film becomes `stem`.gif.

    Returns
    -------
    list of Path
        One for each of the `formats`; or the GIF.
    """
    if isinstance(figure, Movie):
        if figure.film:
            path = stem.with_name(f"{stem.name}.gif")
            atomic_write(path, _gif(figure))
            return [path]
        figure.frame(figure.frames - 1)
        figure = figure.figure
    paths = []
    for suffix in formats:
        image = io.BytesIO()
        with house():
            figure.savefig(image, format=suffix, **_WRITTEN[suffix])
            figure.set_layout_engine(None)  # it takes as long as the drawing, and has its result
        path = stem.with_name(f"{stem.name}.{suffix}")
        atomic_write(path, image.getvalue())
        paths.append(path)
    return paths


def _gif(movie: Movie) -> bytes:
    """The frames of a movie, ten in a second, the last one held."""
    pictures = []
    for i in range(movie.frames):
        movie.frame(i)
        image = io.BytesIO()
        with house():
            movie.figure.savefig(image, format="png", dpi=90)
        pictures.append(Image.open(image).convert("P", palette=Image.Palette.ADAPTIVE))
    result = io.BytesIO()
    held = [100] * (len(pictures) - 1) + [2000]
    pictures[0].save(result, format="gif", save_all=True, append_images=pictures[1:], duration=held, loop=0)
    return result.getvalue()
