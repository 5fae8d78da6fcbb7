"""Figures of momentum: the laws of its steps, and how they tend to its flow."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_MOVING = "moving"


@style.house()
def momentum(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "laws": the distance of steps from the laws of heavy ball, beside how far what they are about has moved; and
        the distance of heavy ball from the momentum flow, by the number of steps.
    """
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    _laws(left, dataset)
    _limit(right, dataset)
    style.legend_below(figure, columns=3)
    return {"laws": figure}


def _laws(axes: Axes, dataset: xr.Dataset) -> None:
    """Along the steps of the moving start: what the laws say, and what would be seen without them."""
    steps, limit = dataset["step"].values, dataset.sel(start=_MOVING, model=0)
    layers = dataset.sel(start=_MOVING, model=int(dataset["model"][-1]))
    ball, nesterov = limit.sel(rule="heavy_ball"), limit.sel(rule="nesterov")
    curves = (
        (ball["law_moved"], "how far $C$ has moved", {"color": style.BLACK, "ls": (0, (4, 2))}),
        (nesterov["skew_error"], r"Nesterov: law of skew $N$", {"color": style.VERMILION}),
        (ball["law_error"], "heavy ball: law of $C$", {"color": style.BLUE}),
        (ball["skew_error"], r"heavy ball: law of skew $N$", {"color": style.SKY}),
        (
            layers.sel(rule="heavy_ball")["law_error"],
            f"heavy ball: law of $C$, {int(layers['model'])} layers",
            {"color": style.GREEN},
        ),
    )
    for values, label, look in curves:
        axes.plot(steps, style.positive(values.values), label=label, **look)
    axes.set_yscale("log")
    axes.set_xlabel("step $n$, from a moving start")
    axes.set_ylabel("relative distance, sup over depth")


def _limit(axes: Axes, dataset: xr.Dataset) -> None:
    """The distance of heavy ball from the flow, of all models and starts."""
    steps = dataset["steps"].values
    looks = {
        "plain": (style.PURPLE, r"$\beta = 1 - \alpha h$", "1"),
        "centred": (style.ORANGE, r"$\beta = (2-\alpha h)/(2+\alpha h)$", "2"),
    }
    for order, (scheme, (colour, label, text)) in enumerate(looks.items(), 1):
        errors = dataset["error_z"].sel(scheme=scheme)
        for L in dataset["model"].values:
            for i, start in enumerate(dataset["start"].values):
                first = L == 0 and i == 0
                mark = "o-" if L == 0 else "x:"
                values = errors.sel(model=L, start=start).values
                axes.plot(steps, values, mark, color=colour, label=label if first else None, alpha=1 if L == 0 else 0.6)
        axes.set_yscale("log")
        style.order_triangle(axes, steps, errors.values, -float(order), text)
    style.floor(axes, float(dataset["error_time"]))
    style.depth_axis(axes, steps.tolist())
    axes.set_xlabel("steps up to the last time")
    axes.set_ylabel(f"distance from the flow {style.BETTER}")


FIGURES.register("momentum")(
    FigureSet(
        momentum,
        {
            "laws": "Left: along steps from a moving start, the distance from the exact laws of heavy ball at infinite "
            "depth (and in the deepest Euler network), beside how far C has moved and how far Nesterov's steps miss "
            "the law. Right: the distance of heavy ball from the momentum flow, in z and over all t, where a step "
            "takes the time h; circles are infinite depth, crosses Euler networks, each at rest and moving.",
        },
    )
)
