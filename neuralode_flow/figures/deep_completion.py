"""Figures of matrix completion by deep factorisation."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def deep_completion(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone; bars are the range over the draws."""
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    networks = dataset["network"].values.tolist()
    shades = dict(zip([n for n in networks if n], style.fade(len(networks) - 1), strict=True))
    for n in networks:
        look = {"color": shades[n]} if n else {"color": style.VERMILION, "ls": (0, (4, 2))}
        label = f"{n} layers" if n else "infinite depth"
        for axes, name in ((left, "unseen"), (right, "effective_rank")):
            values = dataset[name].sel(network=n)
            middle, low, high = values.median("member"), values.min("member"), values.max("member")
            axes.errorbar(
                dataset["entries"], middle, yerr=[middle - low, high - middle], capsize=2, label=label, **look
            )
    left.set_yscale("log")
    left.set_ylabel(f"relative error of the unseen entries {style.BETTER}")
    right.set_ylabel("effective rank of $z$")
    for axes in (left, right):
        axes.set_xlabel("entries that are seen")
    style.legend_below(figure, *left.get_legend_handles_labels()[0])
    return {"completion": figure}


FIGURES.register("deep_completion")(
    FigureSet(
        deep_completion,
        {
            "completion": "Reconstruction error and effective rank by the number of entries that are seen: medians "
            "over the draws, and their range.",
        },
    )
)
