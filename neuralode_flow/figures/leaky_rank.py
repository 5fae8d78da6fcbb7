"""Figures of leaky ReLU networks that tend to the network of largest margin."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_CASES = {
    "orthogonal": (style.BLUE, "nearly orthogonal data"),
    "correlated": (style.VERMILION, "correlated data (control)"),
    "large_start": (style.GREY, "large start (control)"),
}
_LOSSES = {"exponential": "o-", "logistic": "s--"}


@style.house()
def leaky_rank(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "rank": the stable rank in steps of gradient descent, by the scale of the start;
        "direction": how the gradient flow tends to the closed limit.
    """
    return {"rank": _rank(dataset), "direction": _direction(dataset)}


def _rank(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset))
    steps, scales = dataset["step"].values + 1, dataset["scale"].values
    for scale, colour in zip(scales, style.fade(len(scales)), strict=True):
        ranks = dataset["step_rank"].sel(scale=scale).values
        axes.plot(steps, ranks, color=colour, label=rf"$\kappa$ = {scale:g}")
    axes.axhline(2.0, color=style.BLACK, ls=(0, (3, 1.5)), lw=0.8, label="2")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("1 + steps of gradient descent")
    axes.set_ylabel("stable rank of $W$")
    style.legend_below(figure, columns=4)
    return figure


def _direction(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    times = dataset["time"].values
    for case, (colour, label) in _CASES.items():
        for loss, look in _LOSSES.items():
            one = dataset.sel(case=case, loss=loss)
            left.plot(times, one["deviation"].values, look, color=colour, label=f"{label}, {loss} loss")
            if case != "correlated":  # where it hangs on the steps
                right.plot(times, one["third"].values, look, color=colour)
    for axes, what in ((left, f"distance of the direction {style.BETTER}"), (right, r"$\sigma_3/\sigma_1$ of $W$")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(times, [f"{time:g}" for time in times])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("training time $t$")
        axes.set_ylabel(what)
    left.plot(times, dataset["deviation"].values[0, 0, 0] * times[0] / times, color=style.BLACK, lw=0.6, label="1/t")
    style.legend_below(figure, columns=2)
    return figure


FIGURES.register("leaky_rank")(
    FigureSet(
        leaky_rank,
        {
            "rank": "The stable rank of W in steps of gradient descent, from starts of small (pale) to large (dark) "
            "scale; at κ = 1 the start and the first step are of one size. Below the dashed line the rank is at most "
            "two.",
            "direction": "Left: the distance of the direction of W along the gradient flow from that of the closed "
            "network of largest margin, whose rank is two; the thin line is 1/t. Right: what is left of the third "
            "singular value; that of correlated data is not drawn, since it hangs on the steps: samples slide along "
            "kinks there. Correlated data have another limit than the closed form; a large start takes much longer.",
        },
    )
)
