"""Figures of the interpolants that diagonal networks reach."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def interpolant(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    scales = dataset["scale"].values
    for name, colour, label in (("to_l1", style.BLUE, r"to least $\ell_1$ norm, by scale"),
                                ("to_l2", style.VERMILION, r"to least $\ell_2$ norm, by scale")):  # fmt: skip
        left.loglog(scales, dataset[name], "o-", color=colour, label=label)
    left.set_xlabel(r"scale $\alpha$ of the start")
    left.set_ylabel(f"distance of $b$ {style.BETTER}")
    right.loglog(
        dataset["gap"], dataset["uneven_to_l2"], "s-", color=style.ORANGE, label=r"to least $\ell_2$ norm, by shape"
    )
    right.set_xlabel(r"$1-s$, $s$ the shape of a start of scale 1")
    right.set_ylabel(f"distance of $b$ {style.BETTER}")
    style.legend_below(figure)
    return {"interpolant": figure, "margin": _margin(dataset)}


def _margin(dataset: xr.Dataset) -> Figure:
    figure, (axes,) = style.blank(style.problem(dataset), panels=1)
    axes.loglog(dataset["norm"], dataset["margin_missed"], "o-", color=style.BLUE, label="classifier in training")
    axes.axhline(float(dataset["control_missed"]), color=style.GREY, ls=(0, (4, 2)), label=r"widest $\ell_2$ margin")
    axes.set_xlabel(r"$\Vert b\Vert_1$")
    axes.set_ylabel(r"part of the widest $\ell_1$ margin that is missed" + f"\n{style.BETTER}")
    style.legend_below(figure)
    return figure


FIGURES.register("interpolant")(
    FigureSet(
        interpolant,
        {
            "interpolant": "Distance of b, where training ends, from the two interpolants. Left: by the scale of the "
            "start, by the formula. Right: by its shape.",
            "margin": "The classifier of the same samples: its ℓ₁ margin tends to the widest one.",
        },
    )
)
