"""Figures of the width that certifies training, and of training as width grows."""

from __future__ import annotations

import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_FAMILIES = {
    "equal": (style.BLUE, "samples in n dimensions"),
    "fixed": (style.ORANGE, "in a fixed dimension"),
    "few": (style.GREY, "in few dimensions (control)"),
}


@style.house()
def width(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "certified": the certified width against the number of samples, and the width that is enough;
        "training": what training does to W, F and the kernel as width grows;
        "scale": accuracy on digits by the scale of the start.
    """
    return {"certified": _certified(dataset), "training": _training(dataset), "scale": _scale(dataset)}


def _certified(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    sizes = dataset["size"].values
    for family, (colour, label) in _FAMILIES.items():
        axes.loglog(sizes, dataset["certified"].sel(family=family), "o-", color=colour, label=f"certified, {label}")
    equal = dataset["certified"].sel(family="equal").values
    axes.loglog(sizes, equal[0] * (sizes / sizes[0]) ** 2.0, color=style.BLACK, lw=0.6, label=r"$n^2$")
    axes.loglog(dataset["fitted"], dataset["enough"], "s", color=style.VERMILION, label="enough, in a fixed dimension")
    axes.set_xlabel("number of samples $n$")
    axes.set_ylabel("width")
    style.legend_below(figure, columns=3)
    return figure


def _training(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    widths = dataset["width"].values
    for name, colour, look, label in (
        ("movement", style.BLUE, "o", r"$\Vert W-W_0\Vert$"),
        ("kernel_change", style.VERMILION, "s", "tangent kernel, relative"),
    ):
        left.loglog(widths, dataset[name], look, color=colour, alpha=0.5, label=label)
        mean = dataset[name].mean("draw").values
        order = {"movement": 1, "kernel_change": 2}[name]
        left.loglog(widths, mean[-1] * (widths[-1] / widths) ** order, color=colour, lw=0.8, label=f"order {order}")
    left.set_ylabel("movement in training")
    for name, colour, look, label in (
        ("rate_of_the_start", style.ORANGE, "^", "at the start"),
        ("rate_of_the_end", style.GREEN, "v", "at the end"),
    ):
        off = abs(dataset["rate"] / dataset[name] - 1)
        right.loglog(widths, off, look, color=colour, alpha=0.5, label=f"under the kernel {label}")
    right.set_ylabel(f"error of the late rate {style.BETTER}")
    for axes in (left, right):
        axes.set_xlabel("width $m$")
    handles = [line for axes in (left, right) for line in _once(axes)]
    style.legend_below(figure, *handles, columns=3)
    return figure


def _once(axes: Axes) -> list[Artist]:
    """A handle for each label."""
    lines, labels = axes.get_legend_handles_labels()
    return list(dict(zip(labels, lines, strict=True)).values())


def _scale(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    after = dataset["accuracy"].sel(when="after")
    for part, colour, label in (("train", style.BLUE, "trained on"), ("test", style.VERMILION, "others")):
        axes.semilogx(dataset["scale"], after.sel(part=part), "o-", color=colour, label=f"images, {label}")
    axes.axvline(1.0, color=style.GREY, ls=(0, (4, 2)), label="He et al.")
    axes.set_xlabel(r"$\omega_2$ over that of He et al., $\omega_1\omega_2$ fixed")
    axes.set_ylabel("accuracy")
    style.legend_below(figure)
    return figure


FIGURES.register("width")(
    FigureSet(
        width,
        {
            "certified": "The width from which the start certifies that gradient flow fits n samples, in closed form, "
            "and, far below, the one that is enough. The thin line is the square of n.",
            "training": "Left: how far training takes the weights W and the tangent kernel as the width grows; the "
            "lines have the orders 1 and 2. Right: the rate at which the loss falls at last against that under the "
            "tangent kernel, of the start and of the end.",
            "scale": "Accuracy of two layers on handwritten digits by the scale of the second layer at the start; the "
            "first is scaled the other way.",
        },
    )
)
