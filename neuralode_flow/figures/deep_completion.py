"""Figures of matrix completion by deep factorisation."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def deep_completion(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "completion": errors and ranks by the entries that are seen; bars are the range over the draws;
        "shooting": errors of infinite depth on small matrices, from straight and from turned starts.
    """
    return {"completion": _completion(dataset), "shooting": _shooting(dataset)}


def _completion(dataset: xr.Dataset) -> Figure:
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
    return figure


def _shooting(dataset: xr.Dataset) -> Figure:
    number = dataset["shot_overlap"].size
    figure, (axes,) = style.blank(f"{style.problem(dataset)}\ninfinite depth on {number} small matrices of rank 1")
    overlap = dataset["shot_overlap"].values.ravel()
    looks = {
        "shot_straight": ("o", style.BLUE, r"from $\varepsilon I$"),
        "shot_turned": ("x", style.VERMILION, r"from $\varepsilon R$, $Rv=u$, where the first shoots up"),
    }
    for name, (marker, colour, label) in looks.items():
        axes.plot(overlap, dataset[name].values.ravel(), marker, color=colour, ls="none", label=label)
    axes.axhline(1.0, color=style.BLACK, ls=(0, (3, 1.5)), lw=0.8, label="zeros in place of the unseen entries")
    axes.set_yscale("log")
    axes.set_xlabel(r"$\langle u,v\rangle$ of the matrix $uv^\top$ over its norm")
    axes.set_ylabel(f"error of the unseen entries {style.BETTER}")
    style.legend_below(figure)
    return figure


FIGURES.register("deep_completion")(
    FigureSet(
        deep_completion,
        {
            "completion": "Reconstruction error and effective rank by the number of entries that are seen: medians "
            "over the draws, and their range.",
            "shooting": "Relative errors of infinite depth on small matrices of rank 1: now and then it shoots up "
            "(circles far above the dashed line). From a start that is turned towards such a matrix it does not "
            "(crosses).",
        },
    )
)
